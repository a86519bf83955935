//! Gateways of one fleet, in front of one scripted Rails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use railgate::fleet::FleetPhase;
use railgate::fleet::counters::{DoubtReason, FleetCounters};
use railgate::fleet::keys::FleetKeys;
use railgate::fleet::message::MessageSeal;
use railgate::fleet::settings::FleetSettings;
use railgate::secret::ShellSecret;
use railgate::upstream::UpstreamAddress;
use serde_json::{Value, json};

use super::client::{Address, Request, Response, eventually};
use super::credentials::SHELL_SECRET;
use super::fake_rails::{FakeRails, ROOT_KEY, gitlab, of_one_request};
use super::harness::{RunningGateway, Scratch, Setup};

/// Polls often, so that tests take less time. Valkey looks for waits that are over ten times a second.
pub fn settings(address: UpstreamAddress) -> FleetSettings {
    FleetSettings {
        poll: Duration::from_millis(200),
        alone_after: Duration::from_secs(1),
        ..FleetSettings::new(address)
    }
}

/// In milliseconds since the Unix epoch.
pub fn unix_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Names the GitLab, where a test has to know the keys of the fleet.
pub const IDENTITY: &str = "gitlab.example.com";

/// With the secret of the fleet: what another gateway of it would say, and the key of the stream.
pub fn another_gateway() -> (MessageSeal, String) {
    let secret = ShellSecret::from_text(SHELL_SECRET.as_bytes()).unwrap();
    let keys = FleetKeys::new(&secret, IDENTITY, "").unwrap();
    (MessageSeal::new(&keys).unwrap(), keys.bus())
}

/// A gateway of a fleet.
pub struct Pod {
    pub gateway: RunningGateway,
    pub hooks: Address,
    dir: Scratch,
}

/// An SSH key.
pub fn key() -> Request {
    Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

/// A user to whom it does not belong.
pub fn user() -> Request {
    Request::get("discover?user_id=7").with_secret()
}

/// Rails has deleted the key.
pub fn delete_key(rails: &FakeRails) {
    rails.respond_with(|request| {
        if request.is_for("authorized_keys") {
            of_one_request(request, 404, r#"{"message":"404 Key Not Found"}"#)
        } else {
            gitlab(request)
        }
    });
}

/// GitLab's event about that.
pub fn deletion() -> Value {
    json!({"event_name": "key_destroy", "key": format!("ssh-ed25519 {ROOT_KEY} me@home"), "id": 1})
}

impl Pod {
    /// One that may not have heard anything yet. `change` adds what the test needs.
    pub fn begin(rails: &FakeRails, fleet: FleetSettings, change: impl FnOnce(Setup) -> Setup) -> Self {
        let setup = Setup::new().set("workers", 1);
        let token = setup.dir.file("hook_token");
        std::fs::write(&token, "h00k\n").unwrap();
        let setup = setup
            .text("hooks.address", "127.0.0.1:0")
            .text("hooks.token_file", &token.display().to_string())
            .text("hooks.settle", "1h");
        let setup = change(setup);
        let mut config = setup.settings(&rails.address);
        config.fleet = Some(Arc::new(fleet));
        let gateway = RunningGateway::start(config);
        let hooks = gateway.hooks.clone().unwrap();
        Self { gateway, hooks, dir: setup.dir }
    }

    /// One that follows the fleet.
    pub async fn start(rails: &FakeRails, fleet: FleetSettings) -> Self {
        let pod = Self::begin(rails, fleet, |setup| setup);
        pod.wait_for(FleetPhase::Following).await;
        pod
    }

    pub async fn send(&self, request: &Request) -> Response {
        self.gateway.tcp.send(request).await
    }

    /// Keeps both answers.
    pub async fn warm(&self) {
        for request in [key(), user()] {
            self.send(&request).await;
            assert!(self.send(&request).await.is_hit());
        }
    }

    /// Waits until the key is not answered from memory.
    #[track_caller]
    pub fn wait_until_dropped(&self) -> impl Future<Output = ()> {
        eventually("the key to be dropped", async || (!self.send(&key()).await.is_hit()).then_some(()))
    }

    pub async fn purge(&self, what: Value) -> Value {
        let request = Request::new("POST", "/purge").json(&what.to_string());
        self.gateway.admin.send(&request).await.json()
    }

    /// Purges the key, and returns what became of that.
    pub async fn purge_key(&self) -> String {
        let answer = self.purge(json!({"ssh_key": ROOT_KEY})).await;
        answer["fleet"].as_str().unwrap().to_owned()
    }

    /// Purges until Valkey takes one.
    #[track_caller]
    pub fn purge_until_told(&self) -> impl Future<Output = ()> {
        eventually("a purge to be told", async || (self.purge_key().await == "told").then_some(()))
    }

    pub async fn event(&self, body: &Value) -> String {
        let request = Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Token", "h00k");
        let response = self.hooks.send(&request.json(&body.to_string())).await;
        assert_eq!(response.status, 200, "{response}");
        response.json()["message"].as_str().unwrap().to_owned()
    }

    pub fn counters(&self) -> &FleetCounters {
        self.gateway.fleet.counters().unwrap()
    }

    pub fn doubts(&self, reason: DoubtReason) -> u64 {
        self.counters().doubts.get(reason)
    }

    /// Of all reasons but the start.
    pub fn all_doubts(&self) -> u64 {
        let others = self.counters().doubts.iter().filter(|(reason, _)| *reason != DoubtReason::Start);
        others.map(|(_, count)| count).sum()
    }

    #[track_caller]
    pub fn wait_for_doubt(&self, reason: DoubtReason) -> impl Future<Output = ()> {
        eventually(reason.as_str(), move || async move { (self.doubts(reason) > 0).then_some(()) })
    }

    pub fn heard(&self) -> u64 {
        self.counters().heard.load(Ordering::SeqCst)
    }

    #[track_caller]
    pub fn wait_until_heard(&self, count: u64) -> impl Future<Output = ()> {
        eventually("purges to be heard", move || async move { (self.heard() >= count).then_some(()) })
    }

    #[track_caller]
    pub fn wait_for(&self, phase: FleetPhase) -> impl Future<Output = ()> {
        eventually(phase.as_str(), move || async move {
            (self.gateway.fleet.state().unwrap().phase == phase).then_some(())
        })
    }

    /// Waits until a poll has proven that nothing is missing. Behind a doubt, that is the one that has found an anchor, and
    /// has doubted once more if there was none before.
    #[track_caller]
    pub fn wait_until_all_is_heard(&self) -> impl Future<Output = ()> {
        let begin = Instant::now();
        eventually("all to be heard", move || async move {
            let silent_for = self.gateway.fleet.state().unwrap().silent_for;
            silent_for.is_some_and(|silent_for| silent_for < begin.elapsed()).then_some(())
        })
    }

    /// Ends, with all that belongs to it.
    pub async fn stop(mut self) -> Scratch {
        self.gateway.drain();
        self.gateway.wait_for_end().await;
        self.dir
    }
}

/// A Rails with so many gateways that follow one fleet, and keep both answers.
pub async fn pods<const N: usize>(fleet: impl Fn(usize) -> FleetSettings) -> (FakeRails, [Pod; N]) {
    let rails = FakeRails::listen_tcp().await;
    let mut pods = Vec::new();
    for index in 0..N {
        pods.push(Pod::start(&rails, fleet(index)).await);
    }
    for pod in &pods {
        pod.warm().await;
    }
    let Ok(pods) = pods.try_into() else { unreachable!() };
    (rails, pods)
}
