//! The floor: hyper with one answer to everything. No authentication, no cache, no log, no metrics.
//!
//! Its answer has the bytes of a row of authorized keys, so the distance to it is what a gateway that
//! is built on hyper does besides HTTP.

use std::convert::Infallible;
use std::future::ready;
use std::path::PathBuf;

use http::HeaderMap;
use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;

use crate::{Fallible, keys, rails, serve};

#[derive(clap::Args)]
pub(crate) struct Options {
    port: u16,
    socket: PathBuf,
}

pub(crate) fn run(options: &Options) -> Fallible<()> {
    let headers: HeaderMap = rails::answers::headers(1)?;
    let body = Bytes::from(rails::answers::authorized_keys(&keys::key(1), rails::answers::ROW));
    serve::forever(options.port, &options.socket, ready(()), move |_| {
        let mut answer = Response::new(Full::new(body.clone()));
        *answer.headers_mut() = headers.clone();
        async { Ok::<_, Infallible>(answer) }
    })
}
