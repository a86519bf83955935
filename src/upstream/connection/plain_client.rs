//! Requests of the gateway itself to a server that is not Rails.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Request, Response};

use super::connector::Connector;
use super::http1::Http1Pool;
use super::stats::ConnectionStats;
use crate::body::Body;
use crate::upstream::settings::UpstreamServerSettings;

/// Sends requests over one connection, which is kept for a while.
#[derive(Debug)]
pub struct PlainClient {
    pool: Http1Pool,
    host: HeaderValue,
}

/// How long the connection may be idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

impl PlainClient {
    /// Connects when the first request comes.
    pub fn new(server: &UpstreamServerSettings, connect_timeout: Duration) -> Self {
        let connector = Connector::new(server, connect_timeout, Arc::<ConnectionStats>::default());
        Self { pool: Http1Pool::new(connector, 1, IDLE_TIMEOUT), host: server.target.host_header() }
    }

    /// Sends a request whose body is in memory, and waits for the head of the response, without a limit.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, String> {
        request.headers_mut().insert(header::HOST, self.host.clone());
        self.pool.send(&mut request, true).await.map_err(|error| error.to_string())
    }
}
