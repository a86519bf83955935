//! A request as the server passes it to its service.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::net::IpAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use tower::Service;

use super::callers::AcceptedCallers;
use super::connection_handle::ConnectionHandle;
use crate::body::BodyDriver;
use crate::header::ClientScheme;
use crate::refusal::Refusal;

/// What answers the requests of a server.
pub trait RequestService:
    Service<
        Inbound,
        Response = Response<<Self as RequestService>::Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + Send
    + 'static
{
    /// Of the responses.
    type Body: HttpBody<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static;
}

impl<S, B> RequestService for S
where
    S: Service<Inbound, Response = Response<B>, Error = Infallible, Future: Send + 'static> + Send + 'static,
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static,
{
    type Body = B;
}

/// A request with its client connection.
#[derive(Debug)]
pub struct Inbound {
    /// As hyper has read it, behind the gate.
    pub request: Request<Incoming>,
    /// Has to be driven while the body of `request` is read.
    pub body_driver: Option<Box<dyn BodyDriver>>,
    /// Why the gate has refused the request, whose head is not in `request` then. The service answers with it.
    pub refusal: Option<Refusal>,
    /// The peer's address, or the one that a PROXY header has in its place; `None` on a unix socket.
    pub peer: Option<IpAddr>,
    /// The client's address: the peer's, or the one that a trusted proxy says.
    pub remote_ip: Option<IpAddr>,
    /// Of the URL that the client has asked for, as far as the gateway or a trusted proxy knows.
    pub scheme: ClientScheme,
    /// Whose requests the listener takes; `None`: all.
    pub accept: Option<AcceptedCallers>,
    /// Where the service reports trust.
    pub connection: ConnectionHandle,
}

/// For services that take requests of [`http`]: an extension of those of [`Inbound::into_request`].
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// `None` on a unix socket.
    pub ip: Option<IpAddr>,
    /// Where the service reports trust.
    pub connection: ConnectionHandle,
}

impl Inbound {
    /// The request with its [`Peer`] as an extension, and with its [`Refusal`] as another one, if it was refused.
    pub fn into_request(self) -> Request<Incoming> {
        let Self { mut request, refusal, peer: ip, connection, .. } = self;
        let extensions = request.extensions_mut();
        extensions.insert(Peer { ip, connection });
        if let Some(refusal) = refusal {
            extensions.insert(refusal);
        }
        request
    }
}
