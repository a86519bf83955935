use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tower::service_fn;

use super::*;
use crate::cache::{Cache, CacheSettings};
use crate::clock::Clock;
use crate::fleet::Fleet;
use crate::hooks::{HooksSettings, PreviousHookSecrets};
use crate::secret::BearerToken;
use crate::server::ListenAddress;
use crate::stack::testing::{EventLog, connect, exchange};

const HOOK: &str = "POST /hooks/gitlab HTTP/1.1\r\nX-Gitlab-Token: h00k\r\nwebhook-signature: s1gned";

fn hooks() -> Hooks {
    let settings = HooksSettings {
        address: ListenAddress::Tcp(([127, 0, 0, 1], 0).into()),
        connections: 1,
        token: Some(BearerToken::from_text(b"h00k").unwrap()),
        signing_token: None,
        previous: PreviousHookSecrets::default(),
        settle: Duration::ZERO,
    };
    Hooks::new(
        settings,
        (Cache::new(&CacheSettings::default()), Fleet::default()),
        Arc::default(),
        Clock::System,
    )
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_connection_goes_on() {
    let log = EventLog::start();
    let panics = service_fn(|_: Request<Limited<Incoming>>| async { panic!("broken") });
    let mut peer = connect(build_around(hooks(), panics), &log).await;
    for _ in 0..2 {
        let (status, head, body) = exchange(&mut peer, HOOK, "").await;
        assert_eq!((status, body.as_str()), (500, r#"{"message":"500 Internal Server Error"}"#));
        assert_eq!(head.matches("content-type: application/json\r\n").count(), 1, "{head}");
        assert_eq!(exchange(&mut peer, "GET / HTTP/1.1", "").await.0, 404);
    }
}

#[tokio::test]
async fn what_is_logged_names_the_request_and_no_credential() {
    let log = EventLog::start();
    let sensitive = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sensitive);
    let receiver = service_fn(move |request: Request<Limited<Incoming>>| {
        seen.lock().extend(request.headers().values().filter(|value| value.is_sensitive()).cloned());
        tracing::warn!(headers = ?request.headers(), "seen");
        ready(Ok(Response::new(Full::default())))
    });
    let mut peer = connect(build_around(hooks(), receiver), &log).await;
    exchange(&mut peer, "GET /h00k HTTP/1.1", "").await;
    assert_eq!(log.take(), "", "only what is worth a warning is logged");
    assert_eq!(exchange(&mut peer, HOOK, "").await.0, 200);
    assert_eq!(*sensitive.lock(), ["h00k", "s1gned"]);
    assert_eq!(exchange(&mut peer, &HOOK.replace("h00k", "wr0ng"), "").await.0, 401);
    let logged = log.take();
    assert!(!["h00k", "s1gned", "wr0ng"].iter().any(|secret| logged.contains(secret)), "{logged}");
    let named = r#"method="POST" path="/hooks/gitlab" remote_ip=127.0.0.1"#;
    assert_eq!(logged.lines().filter(|line| line.ends_with(named)).count(), 2, "{logged}");
}
