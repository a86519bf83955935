//! The map of the product: every endpoint of the internal API, one row each.
//!
//! Facts from the internal API document and the contract, §1.1 to §1.4. Paths are relative to
//! `/api/v4/internal`.

use std::collections::HashSet;
use std::sync::LazyLock;

use http::Method;

/// One endpoint.
#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// A stable name, also the metric label.
    pub id: &'static str,
    /// The method, or `None` for any; HEAD finds the row of GET, as Grape routes it.
    pub method: Option<Method>,
    /// The path below the prefix. A segment that begins with `:` stands for any one segment, and
    /// a `*` at the end for all that follows.
    pub path: &'static str,
    /// Who may call.
    pub access: Access,
    /// Whether, and as what, an answer may be kept.
    pub caching: Caching,
    /// With which others it shares what is asked of Rails at one time.
    pub class: Class,
    /// Whether it may be asked twice.
    pub repeat: Repeat,
}

/// Whether a request may be sent a second time that Rails may have seen already. Not a matter of the
/// method: GitLab keeps a list of GETs that write (`PreventWritesOnGet`), which count failures, note when a
/// token was used last, or write audit events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Asking changes nothing.
    Safe,
    /// Asking changes something, or may.
    Once,
}

/// Endpoints that are alike to Rails: in how long they may take, and in how many it may have at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Who is this? Somebody waits for it to log in.
    Lookup,
    /// May they? And whatever else needs the credential of GitLab Shell.
    Access,
    /// What Gitaly tells and asks, perhaps while `/allowed` waits for Gitaly.
    Callback,
    /// What kas asks.
    Kas,
    /// What Rails alone judges, so that anybody may ask.
    Other,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Lookup, Self::Access, Self::Callback, Self::Kas, Self::Other];

    /// What belongs to it, of what there is for each in the order of [`Self::ALL`].
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

    /// The same, to be changed.
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

    /// The name in the configuration and in metrics.
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

/// Who may call an endpoint, and so which credential the gateway demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// GitLab Shell, Gitaly and Geo: the shared secret or the shell JWT.
    Shell,
    /// The Kubernetes agent server: the kas JWT.
    Kas,
    /// Another family with a credential of its own, which Rails alone can judge.
    Rails,
}

/// What may be kept of an endpoint's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Nothing: the answer is secret, or asking has an effect.
    Never,
    /// A key row, or the fact that there is none.
    AuthorizedKeys,
    /// A user, or `null`.
    Discover,
    /// The instance's version and health.
    Check,
}

impl Caching {
    /// All of which something may be kept.
    pub const KEPT: [Self; 3] = [Self::AuthorizedKeys, Self::Discover, Self::Check];

    /// The id of the endpoint.
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
    ($($method:ident $path:literal $id:literal $access:ident $caching:ident $class:ident $repeat:ident;)+) => {
        &[$(Route {
            id: $id,
            method: method!($method),
            path: $path,
            access: Access::$access,
            caching: Caching::$caching,
            class: Class::$class,
            repeat: Repeat::$repeat,
        },)+]
    };
}

/// Every endpoint that is known by name.
pub static TABLE: &[Route] = routes! {
    GET  "/authorized_keys"                                 "authorized_keys"              Shell AuthorizedKeys Lookup   Safe;
    GET  "/discover"                                        "discover"                     Shell Discover       Lookup   Safe;
    GET  "/check"                                           "check"                        Shell Check          Lookup   Safe;
    POST "/allowed"                                         "allowed"                      Shell Never          Access   Once;
    POST "/pre_receive"                                     "pre_receive"                  Shell Never          Callback Once;
    POST "/post_receive"                                    "post_receive"                 Shell Never          Callback Once;
    POST "/lfs_authenticate"                                "lfs_authenticate"             Shell Never          Access   Once;
    POST "/two_factor_recovery_codes"                       "two_factor_recovery_codes"    Shell Never          Access   Once;
    POST "/personal_access_token"                           "personal_access_token"        Shell Never          Access   Once;
    POST "/two_factor_config"                               "two_factor_config"            Shell Never          Lookup   Once;
    POST "/two_factor_push_otp_check"                       "two_factor_push_otp_check"    Shell Never          Access   Once;
    POST "/two_factor_manual_otp_check"                     "two_factor_manual_otp_check"  Shell Never          Access   Once;
    GET  "/authorized_certs"                                "authorized_certs"             Shell Never          Lookup   Once;
    GET  "/lfs"                                             "lfs"                          Shell Never          Access   Safe;
    GET  "/gitaly/object_pool_members"                      "object_pool_members"          Shell Never          Callback Safe;
    GET  "/kubernetes/agent_info"                           "agent_info"                   Kas   Never          Kas      Once;
    GET  "/kubernetes/project_info"                         "project_info"                 Kas   Never          Kas      Once;
    POST "/kubernetes/usage_metrics"                        "usage_metrics"                Kas   Never          Kas      Once;
    GET  "/agents/agentk/agent_info"                        "agentk_agent_info"            Kas   Never          Kas      Once;
    GET  "/agents/agentw/agent_info"                        "agentw_agent_info"            Kas   Never          Kas      Once;
    GET  "/agents/agentw/server_config"                     "agentw_server_config"         Kas   Never          Kas      Once;
    GET  "/agents/agentw/authorize_user_access"             "agentw_authorize_user_access" Kas   Never          Kas      Once;
    GET  "/kubernetes/verify_project_access"                "verify_project_access"        Kas   Never          Kas      Once;
    POST "/kubernetes/agent_configuration"                  "agent_configuration"          Kas   Never          Kas      Once;
    POST "/kubernetes/authorize_proxy_user"                 "authorize_proxy_user"         Kas   Never          Kas      Once;
    POST "/kubernetes/agent_events"                         "agent_events"                 Kas   Never          Kas      Once;
    GET  "/kubernetes/receptive_agents"                     "receptive_agents"             Kas   Never          Kas      Safe;
    PUT  "/kubernetes/modules/starboard_vulnerability"      "starboard_vulnerability"      Kas   Never          Kas      Once;
    POST "/kubernetes/modules/starboard_vulnerability/scan_result" "starboard_scan_result"        Kas   Never          Kas      Once;
    GET  "/kubernetes/modules/starboard_vulnerability/policies_configuration" "policies_configuration"       Kas   Never          Kas      Once;
    POST "/kubernetes/modules/remote_development/reconcile" "remote_development_reconcile" Kas   Never          Kas      Once;
    GET  "/kubernetes/modules/remote_development/prerequisites" "remote_development_prerequisites" Kas   Never          Kas      Once;
    ANY  "/kubernetes/modules/*"                            "kubernetes_modules"           Kas   Never          Kas      Once;
    GET  "/autoflow/repository_info"                        "autoflow_repository_info"     Kas   Never          Kas      Safe;
    GET  "/ci/agents/runner/info"                           "runner_info"                  Kas   Never          Kas      Once;
    GET  "/ci/agents/runnerc/info"                          "runnerc_info"                 Kas   Never          Kas      Once;
    POST "/ci/job_router/jobs/request"                      "job_router_request"           Kas   Never          Kas      Once;
    PUT  "/ci/job_router/jobs/:id"                          "job_router_job"               Kas   Never          Kas      Once;
    GET  "/ci/job_router/runner_controllers/job_admission"  "job_router_admission"         Kas   Never          Kas      Once;
    GET  "/pages"                                           "pages"                        Rails Never          Other    Safe;
    GET  "/pages/status"                                    "pages_status"                 Rails Never          Other    Safe;
    POST "/workhorse/authorize_upload"                      "authorize_upload"             Rails Never          Other    Once;
    POST "/mail_room/:mailbox_type"                         "mail_room"                    Rails Never          Other    Once;
    POST "/error_tracking/allowed"                          "error_tracking_allowed"       Rails Never          Other    Once;
    POST "/shellhorse/git_audit_event"                      "git_audit_event"              Rails Never          Other    Once;
    ANY  "/search/zoekt/:uuid/heartbeat"                    "zoekt_heartbeat"              Shell Never          Access   Once;
    ANY  "/search/zoekt/:uuid/tasks"                        "zoekt_tasks"                  Shell Never          Access   Once;
    ANY  "/search/zoekt/:uuid/callback"                     "zoekt_callback"               Shell Never          Access   Once;
    ANY  "/org_mover/*"                                     "org_mover"                    Shell Never          Access   Once;
    ANY  "/orbit/*"                                         "orbit"                        Rails Never          Other    Once;
    POST "/secrets_manager/audit_logs"                      "secrets_manager_audit_logs"   Rails Never          Other    Once;
    ANY  "/observability/*"                                 "observability"                Rails Never          Other    Once;
    POST "/suggested_reviewers/tokens"                      "suggested_reviewers_tokens"   Rails Never          Other    Once;
    POST "/jobs/:id/x_ray/scan"                             "x_ray_scan"                   Rails Never          Other    Once;
    POST "/jobs/:id/x_ray/dependencies"                     "x_ray_dependencies"           Rails Never          Other    Once;
    ANY  "/upcoming_reconciliations"                        "upcoming_reconciliations"     Rails Never          Other    Once;
    ANY  "/gitlab_subscriptions/*"                          "gitlab_subscriptions"         Rails Never          Other    Once;
    ANY  "/dast/*"                                          "dast"                         Rails Never          Other    Once;
    ANY  "/coverage"                                        "coverage"                     Rails Never          Other    Once;
};

/// The last row: a path below the prefix that no other row names. Newer families bring their own
/// credentials, so the gateway demands none and leaves the verdict to Rails.
pub static OTHER_INTERNAL: Route = Route {
    id: "other_internal",
    method: None,
    path: "/*",
    access: Access::Rails,
    caching: Caching::Never,
    class: Class::Other,
    repeat: Repeat::Once,
};

/// A path outside the internal API that the configuration lists (`upstream.forward_prefixes`).
pub static FORWARDED_PREFIX: Route = Route {
    id: "forwarded_prefix",
    method: None,
    path: "/*",
    access: Access::Rails,
    caching: Caching::Never,
    class: Class::Other,
    repeat: Repeat::Once,
};

/// A row, and whether the path is the row's own, byte for byte.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The row.
    pub route: &'static Route,
    /// False for a spelling that Grape routes to the same endpoint, such as a `.json` suffix or
    /// a trailing slash: the same credential is demanded, but nothing is cached.
    pub exact: bool,
}

/// Finds the row for a path below the prefix (`/check`, not `/api/v4/internal/check`).
/// `has_body` says whether the request has one.
pub fn find(method: &Method, path: &str, has_body: bool) -> Found {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    if let Some(route) = row(method, path) {
        return Found { route, exact: true };
    }
    let path = without_suffix(path);
    let route = row(method, path).or_else(|| in_disguise(method, path, has_body)).unwrap_or(&OTHER_INTERNAL);
    Found { route, exact: false }
}

/// A POST with a body can be any other method to Rails (`_method` in a form, Rack's
/// `MethodOverride`), and OPTIONS runs the endpoint's authentication: both demand what the path's
/// row demands. To any other method that the row does not have Rails answers 404 without looking
/// at credentials.
fn in_disguise(method: &Method, path: &str, has_body: bool) -> Option<&'static Route> {
    let may_be = (*method == Method::POST && has_body) || *method == Method::OPTIONS;
    TABLE.iter().find(|route| may_be && fits(route.path, path))
}

fn row(method: &Method, path: &str) -> Option<&'static Route> {
    TABLE.iter().find(|route| route.method.as_ref().is_none_or(|own| own == method) && fits(route.path, path))
}

fn fits(pattern: &str, path: &str) -> bool {
    if let Some(begin) = pattern.strip_suffix('*') {
        return path.starts_with(begin);
    }
    if !pattern.contains(':') {
        return pattern == path;
    }
    let mut given = path.split('/');
    let fit = |part: &str, is: &str| part == is || (part.starts_with(':') && !is.is_empty());
    pattern.split('/').all(|part| given.next().is_some_and(|is| fit(part, is))) && given.next().is_none()
}

/// Whether a segment of a path is a word of the table, and not something that a caller made up.
pub fn is_known_segment(segment: &str) -> bool {
    static WORDS: LazyLock<HashSet<&str, foldhash::fast::RandomState>> = LazyLock::new(|| {
        let paths = TABLE.iter().map(|route| route.path).chain([PREFIX]);
        paths.flat_map(|path| path.split('/')).filter(|word| !word.starts_with([':', '*'])).collect()
    });
    WORDS.contains(segment)
}

/// The path without a trailing slash and without a format suffix on its last segment.
fn without_suffix(path: &str) -> &str {
    let path = path.strip_suffix('/').unwrap_or(path);
    let last = path.rfind('/').map_or(0, |slash| slash + 1);
    match path.get(last..).and_then(|segment| segment.find('.')) {
        Some(dot) => path.get(..last + dot).unwrap_or(path),
        None => path,
    }
}

#[cfg(test)]
mod tests;
