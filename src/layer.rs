//! The layers of the stack, one a file. Their order, with the reasons, is in
//! [`stack`](crate::stack) alone.

// HTTP/1.1 and HTTP/2 call the stack. A function with two callers is not inlined by itself, and each layer's future would
// be returned, so copied, instead of made in its place: 150 instructions a request.
#![allow(clippy::inline_always)]

pub mod authenticate;
pub mod find_route;
pub mod forward;
pub mod observe;
pub mod rescue;
pub mod sanitize;
pub mod serve_cached;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::future::{Future, Ready};
use std::pin::Pin;

use futures_util::future::Either;
use http::Response;

use crate::body::Body;
use crate::failure::Failure;

/// The outcome of every layer below `rescue`.
pub type LayerResult = Result<Response<Body>, Failure>;

/// A response that takes a while.
pub type BoxedResponse = Pin<Box<dyn Future<Output = LayerResult> + Send>>;

/// A response that is there at once, or the future of the inner service.
pub type ImmediateOr<F> = Either<Ready<LayerResult>, F>;

/// Responds without calling the inner service.
pub fn immediate<F>(result: LayerResult) -> ImmediateOr<F> {
    Either::Left(std::future::ready(result))
}
