//! Sends the request to Rails: the end of the stack.

mod detached;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Method, Request, Response};
use tokio_util::task::TaskTracker;
use tower::Service;

use self::detached::run_detached;
use super::BoxedResponse;
use super::observe::{filtered, known_method};
use crate::auth::CallerKind;
use crate::auth::upstream_credential::UpstreamCredential;
use crate::body::Body;
use crate::clock::Clock;
use crate::exchange::{Authenticated, KnownBody, SharedRequestInfo};
use crate::failure::Failure;
use crate::header::via::Pseudonym;
use crate::header::{self, REQUEST_ID};
use crate::params;
use crate::request_span::RequestSpan;
use crate::route::{Access, Caching, Class, Effect};
use crate::trace::{RequestTrace, SendTrace};
use crate::trace_context::{TRACEPARENT, TRACESTATE};
use crate::upstream::{SendOptions, SendReport, SendStage, Signer, Upstream, WaitPolicy};

/// A shorter wait is not reported.
const MIN_REPORTED_WAIT: Duration = Duration::from_millis(1);

/// Forwards authenticated requests, bodies included, and passes the response on as it comes.
#[derive(Clone, Debug)]
pub struct Forward {
    // Cloned for each request.
    shared: Arc<ForwardShared>,
}

#[derive(Debug)]
struct ForwardShared {
    upstream: Arc<Upstream>,
    clock: Clock,
    signer: Option<Signer>,
    pseudonym: Pseudonym,
    /// Owns the requests that go on without their clients.
    tasks: TaskTracker,
}

impl Forward {
    /// Forwards to `upstream`, with `upstream_credential` in place of the one that GitLab Shell has shown, and
    /// leaves the pseudonym of this gateway in the `Via` of each request. Requests that go on without their clients
    /// run as tasks of `tasks`.
    pub fn new(
        upstream: Arc<Upstream>,
        clock: Clock,
        upstream_credential: Option<UpstreamCredential>,
        pseudonym: Pseudonym,
        tasks: TaskTracker,
    ) -> Self {
        let at = clock.clone();
        let signer = upstream_credential.map(|credential| {
            Signer(Arc::new(move |headers: &mut HeaderMap| credential.apply(headers, at.unix_seconds())))
        });
        Self { shared: Arc::new(ForwardShared { upstream, clock, signer, pseudonym, tasks }) }
    }
}

impl Service<Authenticated> for Forward {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = BoxedResponse;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Authenticated) -> BoxedResponse {
        let shared = Arc::clone(&self.shared);
        let is_of_shell = matches!(call.caller.kind(), CallerKind::SharedSecret | CallerKind::ShellJwt);
        let signer = shared.signer.clone().filter(|_| is_of_shell);
        let mut request = call.exchange.request;
        if signer.is_some() && call.route_match.route.access == Access::Shell {
            remove_secret_token(&mut request, &call.known_body);
        }
        header::prepare_for_upstream(request.headers_mut(), call.exchange.peer, call.exchange.scheme);
        shared.pseudonym.add_to(request.headers_mut());
        request.headers_mut().insert(REQUEST_ID.clone(), call.exchange.request_id.to_value());
        let info = call.exchange.info;
        let route = call.route_match.route;
        let span = RequestSpan { request_id: call.exchange.request_id, route: route.id };
        let stage = (route.class == Class::Other).then(Arc::<SendStage>::default);
        let options = SendOptions {
            class: route.class,
            stage: stage.clone(),
            is_read: call.route_match.is_exact
                && route.effect == Effect::Read
                && matches!(*request.method(), Method::GET | Method::HEAD),
            buffer_up_to: call.buffer_up_to,
            // The caller of `check` wants to know whether Rails is reachable.
            wait_policy: if route.caching == Caching::Check { WaitPolicy::Never } else { call.wait_policy },
            progress: call.progress,
            received_at: call.received_at,
            is_check_endpoint: route.caching == Caching::Check,
            // A credential made here is made when the request is sent.
            credential_expires_in: call.caller.expires().filter(|_| signer.is_none()).map(|at| {
                Duration::from_secs(
                    u64::try_from(at.saturating_sub(shared.clock.unix_seconds())).unwrap_or_default(),
                )
            }),
            signer,
            trace: continue_trace(&info, &mut request),
        };
        let tasks = stage.is_some().then(|| shared.tasks.clone());
        match stage.zip(tasks) {
            None => Box::pin(span.around(async move {
                let (mut report, begun) = (SendReport::default(), shared.clock.now());
                let outcome = shared.upstream.send(request, &options, &mut report).await;
                record(&info, shared.clock.now().saturating_duration_since(begun), report);
                Ok(outcome?)
            })),
            Some((stage, tasks)) => Box::pin(async move {
                let exchange = run_detached(
                    &tasks,
                    stage,
                    span.around(async move {
                        let (mut report, begun) = (SendReport::default(), shared.clock.now());
                        let outcome = shared.upstream.send(request, &options, &mut report).await;
                        (outcome, shared.clock.now().saturating_duration_since(begun), report)
                    }),
                );
                let (outcome, took, report) = exchange.await.ok_or(Failure::Panicked)?;
                record(&info, took, report);
                Ok(outcome?)
            }),
        }
    }
}

/// Tells Rails which trace the request belongs to. If it is sampled, each time that it is sent has a span, whose id
/// Rails gets then.
fn continue_trace(info: &SharedRequestInfo, request: &mut Request<Body>) -> Option<Arc<SendTrace>> {
    let mut info = info.lock();
    if !info.caller.has_credential() {
        info.trace.distrust_caller();
    }
    match &info.trace {
        RequestTrace::Off | RequestTrace::NotSampled(None) => None,
        RequestTrace::NotSampled(Some(context)) => {
            request.headers_mut().insert(TRACEPARENT.clone(), context.to_value());
            None
        }
        RequestTrace::Sampled(record) => {
            match &record.tracestate {
                Some(state) => request.headers_mut().insert(TRACESTATE.clone(), state.clone()),
                None => request.headers_mut().remove(&TRACESTATE),
            };
            let (method, target) = (known_method(request.method()), filtered(request.uri()));
            Some(Arc::new(SendTrace::new(record.parent_of_requests(), method, target)))
        }
    }
}

fn record(info: &SharedRequestInfo, took: Duration, report: SendReport) {
    info.update(|info| {
        info.upstream_time = Some(took.saturating_sub(report.waited));
        info.queue_time = Some(report.waited).filter(|waited| *waited >= MIN_REPORTED_WAIT);
        info.is_resent = report.is_resent;
        info.server = report.server;
    });
}

/// Rails looks at this parameter first: one of another secret than Rails' own would be refused, whatever
/// the headers say (contract §2.2).
fn remove_secret_token(request: &mut Request<Body>, seen: &KnownBody) {
    let query = request.uri().query().and_then(|query| params::without_secret_token(query.as_bytes()));
    if let Some(query) = query.and_then(|query| String::from_utf8(query).ok()) {
        let path = request.uri().path();
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        // What was a URI with more in it is one with less.
        if let Ok(target) = target.parse() {
            *request.uri_mut() = target;
        }
    }
    if let KnownBody::Form(form) = seen
        && let Some(form) = params::without_secret_token(form)
    {
        *request.body_mut() = Body::from(Bytes::from(form));
    }
}
