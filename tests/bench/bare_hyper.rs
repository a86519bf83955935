//! The lower limit: hyper with one response to everything, without authentication, cache, log or metrics.
//!
//! Its response has the bytes of a row of authorized keys, so the distance to it is what a gateway built on
//! hyper does besides HTTP.

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
    let headers: HeaderMap = rails::responses::headers(1)?;
    let body = Bytes::from(rails::responses::authorized_keys(&keys::key(1), rails::responses::ROW));
    serve::forever(options.port, &options.socket, ready(()), move |_| {
        let mut response = Response::new(Full::new(body.clone()));
        *response.headers_mut() = headers.clone();
        async { Ok::<_, Infallible>(response) }
    })
}
