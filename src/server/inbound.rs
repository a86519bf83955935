//! A request as the server passes it to its service.

use std::net::IpAddr;

use http::Request;
use hyper::body::Incoming;

use super::registry::ConnectionHandle;
use crate::header::ClientScheme;
use crate::refusal::Refusal;

/// A request with its client connection.
#[derive(Debug)]
pub struct Inbound {
    /// As hyper has read it, behind the gate.
    pub request: Request<Incoming>,
    /// Why the gate has refused the request, whose head is not in `request` then. The service answers with it.
    pub refusal: Option<Refusal>,
    /// The peer's address, or the one that a PROXY header has in its place; `None` on a unix socket.
    pub peer: Option<IpAddr>,
    /// The client's address: the peer's, or the one that a trusted proxy says.
    pub remote_ip: Option<IpAddr>,
    /// Of the URL that the client has asked for, as far as the gateway or a trusted proxy knows.
    pub scheme: ClientScheme,
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
