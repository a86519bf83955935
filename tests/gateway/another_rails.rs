//! The configuration is read again, and names other servers of Rails: perhaps of another GitLab.

use std::path::PathBuf;

use super::client::{Request, eventually};
use super::fake_rails::{FakeRails, Latch, ROOT_KEY, Reply, gitlab};
use super::harness::{RunningGateway, Setup};
use super::log;

struct Harness {
    setup: Setup,
    file: PathBuf,
    gateway: RunningGateway,
}

impl Harness {
    fn start(setup: Setup, rails: &FakeRails) -> Self {
        let file = setup.dir.file("railgate.toml");
        std::fs::write(&file, setup.config(&rails.address)).unwrap();
        Self { gateway: RunningGateway::start_with_file(&file), setup, file }
    }

    async fn reload(&self, text: &str) {
        std::fs::write(&self.file, text).unwrap();
        let answer = self.gateway.admin.send(&Request::new("POST", "/reload").json("")).await;
        assert_eq!(answer.status, 200, "{answer}");
    }

    async fn move_to(&self, rails: &FakeRails) {
        self.reload(&self.setup.config(&rails.address)).await;
    }
}

fn key() -> Request {
    Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

fn user(id: u64) -> Request {
    Request::get(&format!("discover?user_id={id}")).with_secret()
}

/// A GitLab in which there are no keys and no users.
async fn empty_gitlab() -> FakeRails {
    let rails = FakeRails::listen_tcp().await;
    rails.respond_with(|request| {
        if request.is_for("authorized_keys") {
            return Reply::json(404, r#"{"message":"404 Key Not Found"}"#);
        }
        if request.is_for("discover") { Reply::json(200, "null") } else { gitlab(request) }
    });
    rails
}

#[tokio::test]
async fn an_answer_of_one_gitlab_is_not_given_for_another() {
    let (one, other) = (FakeRails::listen_tcp().await, empty_gitlab().await);
    let harness = Harness::start(Setup::new(), &one);
    let tcp = &harness.gateway.tcp;
    assert_eq!((tcp.send(&key()).await.status, tcp.send(&key()).await.is_hit()), (200, true));
    // The first GitLab is still asked for this one.
    let latch = Latch::closed();
    let (held, opened) = (latch.clone(), latch);
    one.respond_with(move |request| gitlab(request).after(&held));
    let mut early = harness.gateway.tcp.connect().await;
    early.write(&user(1).to_bytes("close")).await;
    one.wait_for_requests(2).await;
    let place = log::position();
    harness.move_to(&other).await;
    assert_eq!(tcp.send(&key()).await.status, 404, "the key is of the first GitLab");
    assert!(log::since(place).contains("the cache was emptied"));
    // Nor does a request wait for what the first GitLab is asked.
    assert_eq!(tcp.send(&user(1)).await.text(), "null");
    opened.open();
    let answer = early.read_response().await;
    assert!(answer.text().contains("root"), "what runs ends where it began: {answer}");
    let (again, asked) = (tcp.send(&user(1)).await, other.request_count());
    assert_eq!((again.text(), again.is_hit(), asked), ("null", true, 2), "{again}");
}

#[tokio::test]
async fn the_cache_is_kept_while_one_server_stays() {
    let (stays, comes) = (FakeRails::listen_tcp().await, empty_gitlab().await);
    let harness = Harness::start(Setup::new().text("upstream.health.interval", "0s"), &stays);
    let tcp = &harness.gateway.tcp;
    assert_eq!(tcp.send(&key()).await.status, 200);
    let text = harness.setup.config(&stays.address);
    let url = text.lines().find(|line| line.starts_with("upstream.url")).unwrap();
    let servers =
        [&comes, &stays].map(|rails| format!("[[upstream.server]]\nurl = \"{}\"", rails.address.url()));
    harness.reload(&format!("{}\n{}", text.replace(url, ""), servers.join("\n"))).await;
    assert!(tcp.send(&key()).await.is_hit());
    assert_eq!(stays.request_count() + comes.request_count(), 1);
}

/// Two reloads at one time: the file as it is at the end is in effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_reloads_the_later_one_is_in_effect() {
    let (one, other) = (FakeRails::listen_tcp().await, FakeRails::listen_tcp().await);
    let harness = Harness::start(Setup::new(), &one);
    // Long enough to be read for a while: if the two were read side by side, the second would be done first.
    let long = format!("{}\n{}", "# long\n".repeat(100_000), harness.setup.config(&one.address));
    std::fs::write(&harness.file, long).unwrap();
    let admin = harness.gateway.admin.clone();
    let first = tokio::spawn(async move { admin.send(&Request::new("POST", "/reload").json("")).await });
    // Time to go wrong: nothing depends on it if all is right.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    harness.move_to(&other).await;
    assert_eq!(first.await.unwrap().status, 200);
    eventually("the first reload to end", async || {
        let passed = harness.gateway.tcp.send(&Request::post("allowed").with_secret()).await;
        (passed.status == 200).then_some(())
    })
    .await;
    assert_eq!((one.request_count(), other.request_count()), (0, 1));
}
