//! The routing table: every endpoint of the internal API, one row each.
//!
//! Facts from the internal API document and the contract, §1.1 to §1.4. Paths are relative to
//! `/api/v4/internal`.

use std::collections::HashSet;
use std::sync::LazyLock;

use http::Method;

/// One endpoint, a row of [`TABLE`].
#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// Stable: a label in metrics and logs.
    pub id: &'static str,
    /// The method, or `None` for any; HEAD finds the row of GET, as Grape routes it.
    pub method: Option<Method>,
    /// The path below the prefix. A segment that begins with `:` stands for any one segment, and
    /// a `*` at the end for all that follows.
    pub path: &'static str,
    /// The credential that is required.
    pub access: Access,
    /// Whether, and as what, a response may be cached.
    pub caching: Caching,
    /// The endpoints with which it shares a limit on concurrent requests to Rails.
    pub class: Class,
    /// Whether a request may be sent again.
    pub effect: Effect,
}

/// Whether a request only reads: then it may be sent again after Rails may have processed it. The method does not
/// say so: GitLab has a list of GETs that write (`PreventWritesOnGet`). They count failures, record when a token was
/// last used, or write audit events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It changes nothing in GitLab.
    Read,
    /// It changes something, or may.
    Write,
}

/// Endpoints with the same time-outs and a common limit on concurrent requests to Rails. Classes do not share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Look-ups of a key or user, and the rest of what an SSH login waits for.
    Lookup,
    /// Permission checks, and all else that requires the credential of GitLab Shell.
    Access,
    /// Calls of Gitaly, which may come while `/allowed` waits for Gitaly.
    Callback,
    /// Calls of kas.
    Kas,
    /// Only Rails authenticates these, so any client that can connect may send them. Rails gets few of them at one
    /// time, and fewer in a flood (`upstream/queue/admission.rs`, `burst.rs`). They wait in a queue behind all others
    /// (`hold.rs`), over connections of their own (`upstream/connection.rs`), and say nothing about the health of Rails
    /// (`upstream/request/`). What any client may take of listeners and memory is bounded in `server/limiter.rs` and
    /// `body/unverified.rs`.
    Other,
}

impl Class {
    /// In the order of [`Self::of`].
    pub const ALL: [Self; 5] = [Self::Lookup, Self::Access, Self::Callback, Self::Kas, Self::Other];

    /// The item of this class in an array with one for each, in the order of [`Self::ALL`].
    pub const fn of<T>(self, each: &[T; Self::ALL.len()]) -> &T {
        let [lookup, access, callback, kas, other] = each;
        match self {
            Self::Lookup => lookup,
            Self::Access => access,
            Self::Callback => callback,
            Self::Kas => kas,
            Self::Other => other,
        }
    }

    /// As [`Self::of`], mutable.
    pub const fn of_mut<T>(self, each: &mut [T; Self::ALL.len()]) -> &mut T {
        let [lookup, access, callback, kas, other] = each;
        match self {
            Self::Lookup => lookup,
            Self::Access => access,
            Self::Callback => callback,
            Self::Kas => kas,
            Self::Other => other,
        }
    }

    /// The name in the configuration and the label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Access => "access",
            Self::Callback => "callback",
            Self::Kas => "kas",
            Self::Other => "other",
        }
    }
}

/// The callers of an endpoint, and so the credential that the gateway requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// GitLab Shell, Gitaly and Geo: the shared secret or the shell JWT.
    Shell,
    /// The Kubernetes agent server: the kas JWT.
    Kas,
    /// Others, with a credential that only Rails can verify.
    Rails,
}

/// Whether, and as what, an endpoint's responses may be cached. Gateways tell each other the variants by their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
pub enum Caching {
    /// Not at all: the response is secret, or the request has an effect.
    Never,
    /// An SSH key, or that there is none.
    AuthorizedKeys,
    /// A user, or `null`.
    Discover,
    /// The version and health of the instance.
    Check,
}

impl Caching {
    /// All but [`Self::Never`].
    pub const CACHEABLE: [Self; 3] = [Self::AuthorizedKeys, Self::Discover, Self::Check];

    /// The id of the endpoint; a label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::AuthorizedKeys => "authorized_keys",
            Self::Discover => "discover",
            Self::Check => "check",
        }
    }
}

/// Where the internal API lives below the relative URL root.
pub const PREFIX: &str = "/api/v4/internal";

macro_rules! method {
    (ANY) => {
        None
    };
    ($method:ident) => {
        Some(Method::$method)
    };
}

macro_rules! routes {
    ($($method:ident $path:literal $id:literal $access:ident $caching:ident $class:ident $effect:ident;)+) => {
        &[$(Route {
            id: $id,
            method: method!($method),
            path: $path,
            access: Access::$access,
            caching: Caching::$caching,
            class: Class::$class,
            effect: Effect::$effect,
        },)+]
    };
}

/// Every known endpoint.
pub static TABLE: &[Route] = routes! {
    // Method, path, id, credential, caching, class, effect.
    GET  "/authorized_keys"                                 "authorized_keys"              Shell AuthorizedKeys Lookup   Read;
    GET  "/discover"                                        "discover"                     Shell Discover       Lookup   Read;
    GET  "/check"                                           "check"                        Shell Check          Lookup   Read;
    POST "/allowed"                                         "allowed"                      Shell Never          Access   Write;
    POST "/pre_receive"                                     "pre_receive"                  Shell Never          Callback Write;
    POST "/post_receive"                                    "post_receive"                 Shell Never          Callback Write;
    POST "/lfs_authenticate"                                "lfs_authenticate"             Shell Never          Access   Write;
    POST "/two_factor_recovery_codes"                       "two_factor_recovery_codes"    Shell Never          Access   Write;
    POST "/personal_access_token"                           "personal_access_token"        Shell Never          Access   Write;
    POST "/two_factor_config"                               "two_factor_config"            Shell Never          Lookup   Write;
    POST "/two_factor_push_otp_check"                       "two_factor_push_otp_check"    Shell Never          Access   Write;
    POST "/two_factor_manual_otp_check"                     "two_factor_manual_otp_check"  Shell Never          Access   Write;
    GET  "/authorized_certs"                                "authorized_certs"             Shell Never          Lookup   Write;
    GET  "/lfs"                                             "lfs"                          Shell Never          Access   Read;
    GET  "/gitaly/object_pool_members"                      "object_pool_members"          Shell Never          Callback Read;
    GET  "/kubernetes/agent_info"                           "agent_info"                   Kas   Never          Kas      Write;
    GET  "/kubernetes/project_info"                         "project_info"                 Kas   Never          Kas      Write;
    POST "/kubernetes/usage_metrics"                        "usage_metrics"                Kas   Never          Kas      Write;
    GET  "/agents/agentk/agent_info"                        "agentk_agent_info"            Kas   Never          Kas      Write;
    GET  "/agents/agentw/agent_info"                        "agentw_agent_info"            Kas   Never          Kas      Write;
    GET  "/agents/agentw/server_config"                     "agentw_server_config"         Kas   Never          Kas      Write;
    GET  "/agents/agentw/authorize_user_access"             "agentw_authorize_user_access" Kas   Never          Kas      Write;
    GET  "/kubernetes/verify_project_access"                "verify_project_access"        Kas   Never          Kas      Write;
    POST "/kubernetes/agent_configuration"                  "agent_configuration"          Kas   Never          Kas      Write;
    POST "/kubernetes/authorize_proxy_user"                 "authorize_proxy_user"         Kas   Never          Kas      Write;
    POST "/kubernetes/agent_events"                         "agent_events"                 Kas   Never          Kas      Write;
    GET  "/kubernetes/receptive_agents"                     "receptive_agents"             Kas   Never          Kas      Read;
    PUT  "/kubernetes/modules/starboard_vulnerability"      "starboard_vulnerability"      Kas   Never          Kas      Write;
    POST "/kubernetes/modules/starboard_vulnerability/scan_result" "starboard_scan_result"        Kas   Never          Kas      Write;
    GET  "/kubernetes/modules/starboard_vulnerability/policies_configuration" "policies_configuration"       Kas   Never          Kas      Write;
    POST "/kubernetes/modules/remote_development/reconcile" "remote_development_reconcile" Kas   Never          Kas      Write;
    GET  "/kubernetes/modules/remote_development/prerequisites" "remote_development_prerequisites" Kas   Never          Kas      Write;
    ANY  "/kubernetes/modules/*"                            "kubernetes_modules"           Kas   Never          Kas      Write;
    GET  "/autoflow/repository_info"                        "autoflow_repository_info"     Kas   Never          Kas      Read;
    GET  "/ci/agents/runner/info"                           "runner_info"                  Kas   Never          Kas      Write;
    GET  "/ci/agents/runnerc/info"                          "runnerc_info"                 Kas   Never          Kas      Write;
    POST "/ci/job_router/jobs/request"                      "job_router_request"           Kas   Never          Kas      Write;
    PUT  "/ci/job_router/jobs/:id"                          "job_router_job"               Kas   Never          Kas      Write;
    GET  "/ci/job_router/runner_controllers/job_admission"  "job_router_admission"         Kas   Never          Kas      Write;
    GET  "/pages"                                           "pages"                        Rails Never          Other    Read;
    GET  "/pages/status"                                    "pages_status"                 Rails Never          Other    Read;
    POST "/workhorse/authorize_upload"                      "authorize_upload"             Rails Never          Other    Write;
    POST "/mail_room/:mailbox_type"                         "mail_room"                    Rails Never          Other    Write;
    POST "/error_tracking/allowed"                          "error_tracking_allowed"       Rails Never          Other    Write;
    POST "/shellhorse/git_audit_event"                      "git_audit_event"              Rails Never          Other    Write;
    ANY  "/search/zoekt/:uuid/heartbeat"                    "zoekt_heartbeat"              Shell Never          Access   Write;
    ANY  "/search/zoekt/:uuid/tasks"                        "zoekt_tasks"                  Shell Never          Access   Write;
    ANY  "/search/zoekt/:uuid/callback"                     "zoekt_callback"               Shell Never          Access   Write;
    ANY  "/org_mover/*"                                     "org_mover"                    Shell Never          Access   Write;
    ANY  "/orbit/*"                                         "orbit"                        Rails Never          Other    Write;
    POST "/secrets_manager/audit_logs"                      "secrets_manager_audit_logs"   Rails Never          Other    Write;
    ANY  "/observability/*"                                 "observability"                Rails Never          Other    Write;
    POST "/suggested_reviewers/tokens"                      "suggested_reviewers_tokens"   Rails Never          Other    Write;
    ANY  "/jobs/:id/x_ray/*"                                "x_ray"                        Rails Never          Other    Write;
    ANY  "/upcoming_reconciliations"                        "upcoming_reconciliations"     Rails Never          Other    Write;
    ANY  "/gitlab_subscriptions/*"                          "gitlab_subscriptions"         Rails Never          Other    Write;
    ANY  "/dast/*"                                          "dast"                         Rails Never          Other    Write;
    ANY  "/coverage"                                        "coverage"                     Rails Never          Other    Write;
};

/// A path below the prefix that is in no row of the table. Newer endpoints have credentials of their own, so the
/// gateway requires none and leaves authentication to Rails.
pub static OTHER_INTERNAL: Route = Route {
    id: "other_internal",
    method: None,
    path: "/*",
    access: Access::Rails,
    caching: Caching::Never,
    class: Class::Other,
    effect: Effect::Write,
};

/// A path outside the internal API, below a prefix of `upstream.forward_prefixes`.
pub static FORWARDED_PREFIX: Route = Route {
    id: "forwarded_prefix",
    method: None,
    path: "/*",
    access: Access::Rails,
    caching: Caching::Never,
    class: Class::Other,
    effect: Effect::Write,
};

/// The row for a request.
#[derive(Clone, Copy, Debug)]
pub struct RouteMatch {
    /// A row of [`TABLE`], [`OTHER_INTERNAL`] or [`FORWARDED_PREFIX`].
    pub route: &'static Route,
    /// False for a spelling that Grape routes to the same endpoint, such as a `.json` suffix or
    /// a trailing slash: the same credential is required, but nothing is cached.
    pub is_exact: bool,
}

/// Finds the row for a path below the prefix (`/check`, not `/api/v4/internal/check`).
pub fn find(method: &Method, path: &str, has_body: bool) -> RouteMatch {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    if let Some(route) = find_row(method, path) {
        return RouteMatch { route, is_exact: true };
    }
    let path = without_format(path);
    let route =
        find_row(method, path).or_else(|| find_overridden(method, path, has_body)).unwrap_or(&OTHER_INTERNAL);
    RouteMatch { route, is_exact: false }
}

/// The row of another method with the same path. A POST with a body can be any other method to Rails (`_method` in
/// a form, Rack's `MethodOverride`), and OPTIONS runs the endpoint's authentication: both require the credential of
/// that row. Any other method that has no row is a 404 in Rails, without a look at credentials.
fn find_overridden(method: &Method, path: &str, has_body: bool) -> Option<&'static Route> {
    let may_override = (*method == Method::POST && has_body) || *method == Method::OPTIONS;
    TABLE.iter().find(|route| may_override && path_matches(route.path, path))
}

fn find_row(method: &Method, path: &str) -> Option<&'static Route> {
    TABLE
        .iter()
        .find(|route| route.method.as_ref().is_none_or(|own| own == method) && path_matches(route.path, path))
}

fn path_matches(pattern: &str, path: &str) -> bool {
    if !pattern.contains(':') {
        return match pattern.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => pattern == path,
        };
    }
    let (pattern, is_prefix) = pattern.strip_suffix("/*").map_or((pattern, false), |prefix| (prefix, true));
    let mut segments = path.split('/');
    let matches =
        |part: &str, segment: &str| part == segment || (part.starts_with(':') && !segment.is_empty());
    pattern.split('/').all(|part| segments.next().is_some_and(|segment| matches(part, segment)))
        && segments.next().is_some() == is_prefix
}

/// Whether a segment of a path occurs in the table. Others are the client's, and may be secret.
pub fn is_known_segment(segment: &str) -> bool {
    static WORDS: LazyLock<HashSet<&str, foldhash::fast::RandomState>> = LazyLock::new(|| {
        let paths = TABLE.iter().map(|route| route.path).chain([PREFIX]);
        paths.flat_map(|path| path.split('/')).filter(|word| !word.starts_with([':', '*'])).collect()
    });
    WORDS.contains(segment)
}

/// The paths of an endpoint as one template, such as `/api/v4/internal/ci/job_router/jobs/:id`.
pub fn template(id: &str) -> Option<String> {
    TABLE
        .iter()
        .chain([&OTHER_INTERNAL])
        .find(|route| route.id == id)
        .map(|route| format!("{PREFIX}{}", route.path))
}

/// The path without a trailing slash and without a format suffix (`.json`) on its last segment.
fn without_format(path: &str) -> &str {
    let path = path.strip_suffix('/').unwrap_or(path);
    let last = path.rfind('/').map_or(0, |slash| slash + 1);
    match path.get(last..).and_then(|segment| segment.find('.')) {
        Some(dot) => path.get(..last + dot).unwrap_or(path),
        None => path,
    }
}

#[cfg(test)]
mod tests;
