//! railgate: the gateway in front of GitLab Rails' internal API.
//!
//! # Life of a request
//!
//! 1. [`server`] accepts a connection, validates the raw framing of its requests, and passes nothing to hyper
//!    that two readers could understand differently.
//! 2. [`layer::observe`] gives the request an id and a timer, and logs and counts it at its end.
//! 3. [`layer::rescue`] turns failures of the layers below into responses.
//! 4. [`layer::sanitize`] refuses ambiguous hosts, paths and headers.
//! 5. [`layer::find_route`] finds the row of the [`route`] table.
//! 6. [`layer::authenticate`] checks the credential that the row names, with [`auth`].
//! 7. [`layer::serve_cached`] answers from the [`cache`], with a stale response if it has to, or fetches once
//!    for all callers of one key.
//! 8. [`layer::forward`] sends the remaining requests to Rails, through [`upstream`], where they wait while
//!    Rails is unreachable, and for the limits of their class.
//!
//! [`gateway`] binds the sockets, and starts and stops the threads. [`config`] reads the settings, [`metrics`]
//! exposes the counters, and [`otlp`] exports what [`trace`] records of sampled requests. [`admin`] answers operators, and [`hooks`] receives changes from GitLab; both can only
//! remove entries of the cache, which [`fleet`] has the other gateways do as well. Operators can also drain servers of Rails. [`service_manager`] tells systemd how the
//! gateway is, and lets it keep the sockets.
//!
//! # Invariants
//!
//! - A request that was not authenticated never reaches a cached response: the cache layer takes only
//!   [`exchange::Authenticated`], and only [`auth`] can make the caller in it.
//! - Only [`cache::Key::new`] builds the cache key of a request.
//! - Only [`stack`] knows the order of the layers, only [`failure`] and
//!   [`refusal`] the status codes of the gateway's own responses to clients (but for the 503 of [`server`] when
//!   the stack is not ready), only
//!   [`config`] the names of keys, and only [`clock`] the time.
//! - A secret has no `Display`, and is in no log, label or error text.
//!
//! Modules have ranks, and import only from lower ones; `tests/house.rs` checks that. `tests/README.md` has the layout.
//!
//! # Where to look
//!
//! | for | in |
//! |---|---|
//! | an endpoint: who may call it, whether it is kept, its class | a row of `TABLE` in `src/route.rs` |
//! | whether a request may be sent again | `ErrorKind::resend` in `src/upstream/error.rs`; how often, when and where to: `RetryLoop` in `src/upstream/request/send.rs` |
//! | how a response of Rails is read over HTTP/1.1 | `src/upstream/connection/http1.rs`; where a body ends, of a request as well: `src/framing.rs` |
//! | the 503 of a full queue | `ClassAdmission::wait` in `src/upstream/queue/admission.rs`; while Rails is away, `HoldQueues::enter` in `hold.rs` beside it; the status of each failure: `Failure::status` in `src/failure.rs` |
//! | the default of a key | the row of the key in `config/README.md`, or `railgate check --explain KEY`; in the source, the `Default` or the `DEFAULT_…` constants of the settings that the key belongs to |
//! | whether a stale answer may be given | the head of `src/layer/serve_cached.rs` |
//! | a credential of a caller | `Authenticator` in `src/auth.rs`; of an operator: `src/admin/dispatch.rs`; of a hook: `src/hooks/credential.rs` |
//! | a metric | `src/metrics/worker.rs` if it is of a request, else `src/metrics/sources.rs` |
//! | the log line of a request | `src/layer/observe/access_log.rs` |
//! | which requests are traced | `Tracer::begin` in `src/trace.rs`; their spans: `src/layer/observe/spans.rs`, and `src/upstream/request/spans.rs` for those of requests to Rails |
//! | what bounds a client that shows no credential | [`route::Class::Other`] |
//! | the files to touch to add any of these | `tests/README.md` |

pub mod admin;
pub mod auth;
pub mod authority;
pub mod body;
pub mod cache;
pub mod certificates;
pub mod clock;
pub mod config;
pub mod counters;
pub mod exchange;
pub mod failure;
pub mod file;
pub mod fleet;
pub(crate) mod framing;
pub mod gateway;
pub mod header;
pub mod heartbeat;
pub mod histogram;
pub mod hooks;
pub mod json_response;
pub mod layer;
pub mod log;
pub mod metrics;
pub mod otlp;
pub mod params;
pub mod progress;
pub mod refusal;
pub mod reload;
pub mod request_span;
pub mod route;
pub mod secret;
pub mod server;
pub mod service_manager;
pub mod stack;
pub mod strict_base64;
pub mod trace;
pub mod trace_context;
pub mod upstream;
pub mod write_batch;

pub use self::gateway::Gateway;
