//! Sends one request over a new connection.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};

use crate::Fallible;

/// Where a server listens.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Port(u16),
    Socket(PathBuf),
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

pub(crate) type Headers<'a> = [(&'a str, &'a str)];

pub(crate) fn get(port: u16, path: &str, headers: &Headers<'_>) -> Fallible<Response> {
    send(&Address::Port(port), "GET", path, headers, "")
}

pub(crate) fn send(
    address: &Address,
    method: &str,
    path: &str,
    headers: &Headers<'_>,
    body: &str,
) -> Fallible<Response> {
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost:8080");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned())))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match address {
            Address::Port(port) => {
                exchange(TokioIo::new(TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await?), request).await
            }
            Address::Socket(path) => exchange(TokioIo::new(UnixStream::connect(path).await?), request).await,
        }
    })
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Fallible<Response>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(stream).await?;
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Response { status: head.status.as_u16(), headers: head.headers, body })
}
