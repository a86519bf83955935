//! The target of a request on its way to Rails.

use http::{Request, Version};

use crate::body::Body;
use crate::upstream::connection::target::join_root;
use crate::upstream::error::Error;

/// Prepares a request, whose target is a path below the relative URL `root`, for any server and protocol. The
/// connection frames it anew.
pub(super) fn prepare_target(request: &mut Request<Body>, root: &str) -> Result<(), Error> {
    request.body_mut().drop_trailers();
    *request.version_mut() = Version::HTTP_11;
    let uri = join_root(root, std::mem::take(request.uri_mut()));
    *request.uri_mut() = uri.ok_or(Error::Unusable("no URI for the path"))?;
    Ok(())
}
