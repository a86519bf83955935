//! Gateways of one fleet that share the answers of Rails. A writer of Valkey, or whatever happens to it, causes
//! requests to Rails and never a wrong answer.

use std::cell::Cell;
use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use railgate::counters::Counters;
use railgate::fleet::FleetPhase;
use railgate::fleet::counters::DoubtReason;
use railgate::fleet::message::{Message, MessageSeal, Origin};
use railgate::fleet::settings::{FleetSettings, SharedSettings};
use railgate::fleet::shared::counters::{LockResult, ReportEvent, SharedCounters, SharedResult};
use railgate::fleet::stream::Envelope;
use redis::Value;
use serde_json::json;

use super::client::{Request, Response, eventually};
use super::fake_rails::{FakeRails, Latch, ReceivedRequest, Reply, gitlab, of_one_request};
use super::pods::{self, IDENTITY, Pod, another_gateway, delete_key, deletion, key, unix_ms};
use super::valkey::{Proxy, Valkey};

/// A machine that runs other tests meanwhile may take its time: what is asserted is that Rails is not asked. Nor is an answer
/// refused for its age alone.
fn patient(address: railgate::upstream::UpstreamAddress) -> FleetSettings {
    let [second, hour] = [1, 3_600].map(Duration::from_secs);
    let shared = SharedSettings { ttl: hour, timeout: second, wait: 10 * second, lock: 60 * second };
    let identity = Some(IDENTITY.to_owned());
    FleetSettings { shared: Some(shared), identity, ..pods::settings(address) }
}

/// A user whom this Rails knows, as it knows each.
fn user(id: usize) -> Request {
    Request::get(&format!("discover?user_id={id}")).with_secret()
}

fn every_user(request: &ReceivedRequest) -> Reply {
    match request.param("user_id") {
        Some(id) if request.is_for("discover") => {
            of_one_request(request, 200, &format!(r#"{{"id":{id},"username":"user{id}"}}"#))
        }
        _ => gitlab(request),
    }
}

/// Rails, Valkey, and so many gateways that share answers from now on.
async fn sharing<const N: usize>() -> (Valkey, FakeRails, [Pod; N]) {
    let valkey = Valkey::start().await;
    let rails = FakeRails::listen_tcp().await;
    rails.respond_with(every_user);
    let mut pods = Vec::new();
    for _ in 0..N {
        pods.push(Pod::start(&rails, patient(valkey.address())).await);
    }
    for (index, pod) in pods.iter().enumerate() {
        share(pod, &valkey, index).await;
    }
    let Ok(pods) = pods.try_into() else { unreachable!() };
    (valkey, rails, pods)
}

/// Waits until a gateway shares what it asks for: it has to have a connection, and to know what was told for longer than
/// clocks may differ.
async fn share(pod: &Pod, valkey: &Valkey, index: usize) {
    let before = answers(valkey).await.len();
    let ids = Cell::new(1_000_000 * (index + 1));
    eventually("answers to be shared", async || {
        ids.set(ids.get() + 1);
        pod.send(&user(ids.get())).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        (answers(valkey).await.len() > before).then_some(())
    })
    .await;
}

/// The keys of shared answers in Valkey.
async fn answers(valkey: &Valkey) -> Vec<String> {
    let Value::Array(keys) = valkey.command(&["KEYS", "railgate:*:a:*"]).await else { panic!("no keys") };
    let text = |key: Value| {
        let Value::BulkString(key) = key else { panic!("no key") };
        String::from_utf8(key).unwrap()
    };
    keys.into_iter().map(text).collect()
}

/// The key and the value of the answer that this adds.
async fn added(valkey: &Valkey, pod: &Pod, request: &Request) -> (String, Vec<u8>) {
    let before = answers(valkey).await;
    pod.send(request).await;
    eventually("the answer to be shared", async || {
        let name = answers(valkey).await.into_iter().find(|name| !before.contains(name))?;
        let Value::BulkString(sealed) = valkey.command(&["GET", &name]).await else { return None };
        Some((name, sealed))
    })
    .await
}

async fn put(valkey: &Valkey, name: &str, sealed: &[u8]) {
    let mut set = redis::cmd("SET");
    set.arg(name).arg(sealed).arg("PX").arg(600_000);
    let () = set.query_async(&mut valkey.client().await.unwrap()).await.unwrap();
}

impl Pod {
    fn shared(&self) -> &SharedCounters {
        self.gateway.fleet.shared().unwrap().counters()
    }

    fn results(&self) -> &Counters<SharedResult> {
        &self.shared().results
    }

    /// Waits until it has a connection by which it looks for what is shared.
    #[track_caller]
    fn wait_until_it_looks(&self) -> impl Future<Output = ()> {
        let ids = Cell::new(9_000_000);
        eventually("a look at what is shared", move || {
            ids.set(ids.get() + 1);
            let request = user(ids.get());
            async move {
                self.send(&request).await;
                (self.results().get(SharedResult::Miss) > 0).then_some(())
            }
        })
    }

    /// Waits until another gateway has told which purges it knows.
    #[track_caller]
    fn wait_for_report(&self) -> impl Future<Output = ()> {
        eventually("a report", async || (self.shared().reports.get(ReportEvent::Used) > 0).then_some(()))
    }
}

fn is_from_fleet(response: &Response) -> bool {
    response.cache_status() == "railgate; hit; detail=fleet"
}

#[tokio::test]
async fn what_one_gateway_has_asked_rails_another_one_need_not_ask() {
    let (valkey, rails, [one, two]) = sharing::<2>().await;
    added(&valkey, &one, &key()).await;
    let asked = rails.request_count();
    let wrong = Request::new("GET", &key().target).header("Gitlab-Shared-Secret", "d3Jvbmc=");
    let looks: u64 = two.results().iter().map(|(_, count)| count).sum();
    two.send(&wrong).await.assert_unauthorized();
    assert_eq!(two.results().iter().map(|(_, count)| count).sum::<u64>(), looks, "for known callers only");

    let response = two.send(&key()).await;
    assert!(is_from_fleet(&response), "{response}");
    let kept = one.send(&key()).await;
    assert_eq!((response.status, response.text()), (200, kept.text()));
    for header in ["etag", "content-type", "vary", "cache-control"] {
        assert_eq!(response.header(header), kept.header(header), "{header}");
    }
    assert_eq!(response.header("set-cookie"), None);
    assert!(two.send(&key()).await.cache_status().starts_with("railgate; hit; ttl="), "it is kept");
    assert_eq!(rails.request_count(), asked);
    assert_eq!(two.results().get(SharedResult::Hit), 1);
    let series = "railgate_fleet_shared_total{result=\"hit\"}";
    assert_eq!(two.gateway.metric(series).await, Some(1));
    assert!(two.gateway.metric("railgate_fleet_lock_total{result=\"won\"}").await.is_some_and(|won| won > 0));
}

#[tokio::test]
async fn only_what_exists_is_shared_and_never_the_state_of_the_instance() {
    let (valkey, rails, [one, two]) = sharing::<2>().await;
    rails.recover();
    let before = answers(&valkey).await.len();
    for request in ["check", "discover?username=nobody", "authorized_keys?key=AAAAC3Nz"] {
        let request = Request::get(request).with_secret();
        let asked = rails.request_count();
        for pod in [&one, &two] {
            pod.send(&request).await;
        }
        assert_eq!(rails.request_count(), asked + 2, "{}", request.target);
    }
    added(&valkey, &one, &key()).await;
    assert_eq!(answers(&valkey).await.len(), before + 1);
}

#[tokio::test]
async fn a_cold_gateway_in_a_warm_fleet_answers_from_what_the_others_know() {
    const USERS: usize = 1_000;
    let (valkey, rails, [one]) = sharing::<1>().await;
    for id in 1..=USERS {
        one.send(&user(id)).await;
    }
    eventually("all to be shared", async || (answers(&valkey).await.len() > USERS).then_some(())).await;
    let cold = Pod::start(&rails, patient(valkey.address())).await;
    // Its connection is made meanwhile, and it is told which purges there were; no request waits for either.
    cold.wait_for_report().await;
    cold.wait_until_it_looks().await;
    let asked = rails.request_count();
    for id in 1..=USERS {
        let response = cold.send(&user(id)).await;
        assert_eq!(response.json()["id"], id, "{response}");
    }
    assert!(rails.request_count() - asked <= USERS / 20, "{} of {USERS}", rails.request_count() - asked);
}

/// All that is in the stream, with its fields.
async fn entries(valkey: &Valkey, bus: &str) -> Vec<(String, Vec<Vec<u8>>)> {
    redis::from_redis_value_ref(&valkey.command(&["XRANGE", bus, "-", "+"]).await).unwrap()
}

async fn write_again(valkey: &Valkey, bus: &str, entries: &[(String, Vec<Vec<u8>>)]) {
    for (_, fields) in entries {
        let mut add = redis::cmd("XADD");
        let _: Value =
            add.arg(bus).arg("*").arg(fields).query_async(&mut valkey.client().await.unwrap()).await.unwrap();
    }
}

/// Only a gateway that was there knows of it.
#[tokio::test]
async fn an_answer_of_before_a_purge_that_was_removed_from_the_stream_is_refused_by_a_gateway_that_begins() {
    let (valkey, rails, [one, two]) = sharing::<2>().await;
    let (name, sealed) = added(&valkey, &one, &key()).await;
    added(&valkey, &one, &user(7)).await;
    delete_key(&rails);
    assert_eq!(one.purge_key().await, "told");
    two.wait_until_heard(1).await;
    wait_until_removed(&valkey, &name).await;
    let teller = one.gateway.fleet.state().unwrap().publisher;
    one.stop().await;
    assert_eq!(two.purge(json!({"key_id": 8})).await["fleet"], "told");
    two.wait_until_all_is_heard().await;

    // Nothing is left of the gateway that told it, and no gap either.
    let [bus] = &keys(&valkey, "bus").await[..] else { panic!("no stream") };
    let mut removed = 0;
    for (id, fields) in entries(&valkey, bus).await {
        if fields[1] == teller {
            valkey.command(&["XDEL", bus, &id]).await;
            removed += 1;
        }
    }
    assert!(removed >= 3, "a hello, the purge and a bye: {removed}");
    put(&valkey, &name, &sealed).await;

    let cold = Pod::start(&rails, patient(valkey.address())).await;
    cold.wait_for_report().await;
    cold.wait_until_it_looks().await;
    let response = cold.send(&user(7)).await;
    assert!(is_from_fleet(&response), "what was not purged is used: {response}");
    assert_eq!(cold.send(&key()).await.status, 404);
    assert_eq!(cold.results().get(SharedResult::Refused), 1);
    assert_eq!((two.all_doubts(), cold.all_doubts()), (0, 0), "nothing tells of it");
}

/// What it has missed, another gateway has heard. All else that was shared before is used as before.
#[tokio::test]
async fn a_gateway_that_has_missed_a_purge_is_told_which_it_was() {
    let valkey = Valkey::start().await;
    let proxy = Proxy::start(&valkey).await;
    let rails = FakeRails::listen_tcp().await;
    rails.respond_with(every_user);
    let one = Pod::start(&rails, patient(valkey.address())).await;
    share(&one, &valkey, 1).await;
    let two = Pod::start(&rails, patient(proxy.address())).await;
    two.wait_for_report().await;
    two.wait_until_it_looks().await;
    assert_eq!(one.purge(json!({"key_id": 8})).await["fleet"], "told");
    two.wait_until_heard(1).await;
    let (name, sealed) = added(&valkey, &one, &key()).await;
    added(&valkey, &one, &user(7)).await;

    let [bus] = &keys(&valkey, "bus").await[..] else { panic!("no stream") };
    proxy.stall();
    delete_key(&rails);
    assert_eq!(one.purge_key().await, "told");
    let (last, _) = entries(&valkey, bus).await.pop().unwrap();
    assert_eq!(one.purge(json!({"key_id": 9})).await["fleet"], "told");
    valkey.command(&["XDEL", bus, &last]).await;
    proxy.cut();
    proxy.resume();
    two.wait_for_doubt(DoubtReason::Counter).await;
    eventually("another report", async || (two.shared().reports.get(ReportEvent::Used) > 1).then_some(()))
        .await;
    two.wait_for(FleetPhase::Following).await;
    wait_until_removed(&valkey, &name).await;
    put(&valkey, &name, &sealed).await;
    let refused = two.results().get(SharedResult::Refused);
    eventually("a look at what is shared", async || {
        two.send(&key()).await;
        (two.results().get(SharedResult::Refused) > refused).then_some(())
    })
    .await;
    assert_eq!(two.send(&key()).await.status, 404);
    let response = two.send(&user(7)).await;
    assert!(is_from_fleet(&response), "{response}");
    assert_eq!(one.all_doubts(), 0);
}

/// All that was in the stream before the purge is written down again for one that begins, before its start and after, also
/// what was reported to a gateway of before.
#[tokio::test]
async fn a_gateway_that_begins_alone_uses_nothing_of_before_whatever_the_stream_says() {
    let (valkey, rails, [one, two]) = sharing::<2>().await;
    let (name, sealed) = added(&valkey, &one, &key()).await;
    let learner = Pod::start(&rails, patient(valkey.address())).await;
    learner.wait_for_report().await;
    let [bus] = &keys(&valkey, "bus").await[..] else { panic!("no stream") };
    let recorded = entries(&valkey, bus).await;
    delete_key(&rails);
    assert_eq!(one.purge_key().await, "told");
    for pod in [one, two, learner] {
        pod.stop().await;
    }
    valkey.command(&["DEL", bus]).await;
    write_again(&valkey, bus, &recorded).await;
    let cold = Pod::start(&rails, patient(valkey.address())).await;
    write_again(&valkey, bus, &recorded).await;
    cold.wait_until_all_is_heard().await;
    put(&valkey, &name, &sealed).await;
    cold.wait_until_it_looks().await;
    assert_eq!(cold.send(&key()).await.status, 404);
    assert_eq!(cold.results().get(SharedResult::Refused), 1);
    assert_eq!(cold.shared().reports.get(ReportEvent::Used), 0);
}

/// As if a whole fleet were rolled out anew.
#[tokio::test]
async fn many_gateways_that_begin_are_answered_together() {
    const ASKERS: usize = 300;
    let (valkey, _rails, pods) = sharing::<4>().await;
    let [bus] = &keys(&valkey, "bus").await[..] else { panic!("no stream") };
    let told = || pods.iter().map(|pod| pod.shared().reports.get(ReportEvent::Told)).sum::<u64>();
    let before = told();
    assert_eq!(another_gateway().1, *bus);
    let seals: Vec<MessageSeal> = (0..ASKERS).map(|_| another_gateway().0).collect();
    let mut asked = redis::pipe();
    for (number, seal) in (0_u128..).zip(&seals) {
        let hello = Message::Hello {
            said_at_ms: unix_ms(),
            origin: Origin::default(),
            question: Some(number.to_be_bytes()),
        };
        let envelope = seal.seal(0, &hello).unwrap();
        let add = asked.cmd("XADD").arg(bus).arg("*");
        add.arg("p").arg(&envelope.publisher).arg("n").arg(0).arg("x").arg(&envelope.sealed);
    }
    let _: Value = asked.query_async(&mut valkey.client().await.unwrap()).await.unwrap();
    let reader = &seals[0];
    eventually("all to be answered", async || {
        let entries = entries(&valkey, bus).await;
        let reports = entries.into_iter().filter_map(|(_, fields)| {
            let [_, publisher, _, number, _, sealed] = <[Vec<u8>; 6]>::try_from(fields).ok()?;
            let number = String::from_utf8(number).unwrap().parse().unwrap();
            match reader.open(&Envelope { publisher: publisher.try_into().unwrap(), number, sealed })? {
                Message::Report(report) => Some(report.questions),
                _ => None,
            }
        });
        let answered: HashSet<_> = reports.flatten().collect();
        (0..ASKERS as u128).all(|number| answered.contains(&number.to_be_bytes())).then_some(())
    })
    .await;
    let told = told() - before;
    // Each of the four could have told each of 300.
    assert!(told <= 24, "{told}");
}

#[tokio::test]
async fn a_question_at_eight_gateways_costs_rails_one_request() {
    const USERS: usize = 1_000;
    let (_valkey, rails, pods) = sharing::<8>().await;
    let asked = rails.request_count();
    let users: Vec<usize> = (1..=USERS).collect();
    for users in users.chunks(20) {
        let questions = users.iter().flat_map(|id| pods.iter().map(move |pod| (pod, *id)));
        let responses = questions.map(async |(pod, id)| (id, pod.send(&user(id)).await));
        for (id, response) in join_all(responses).await {
            assert_eq!(response.json()["id"], id, "{response}");
        }
    }
    let asked = rails.request_count() - asked;
    assert!((USERS..=USERS + USERS / 20).contains(&asked), "{asked} requests for {USERS} users");
}

/// All of them at once, as after a fail-over of Valkey.
#[tokio::test]
async fn gateways_in_doubt_ask_rails_once_for_each_key() {
    let (valkey, rails, pods) = sharing::<10>().await;
    for pod in &pods {
        pod.send(&key()).await;
    }
    let [bus] = &keys(&valkey, "bus").await[..] else { panic!("no stream") };
    valkey.command(&["DEL", bus]).await;
    for pod in &pods {
        pod.wait_for_doubt(DoubtReason::Anchor).await;
        pod.wait_until_all_is_heard().await;
    }
    // What is asked for from now on is of after the doubt, by every clock.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let asked = rails.request_count();
    let latch = Latch::closed();
    let opened = latch.clone();
    rails.respond_with(move |request| every_user(request).after(&latch));
    let responses = join_all(pods.iter().map(async |pod| pod.send(&key()).await));
    let (responses, ()) = tokio::join!(responses, async {
        eventually("one to ask, and the others to wait", async || {
            let waiting: u64 = pods.iter().map(|pod| pod.results().get(SharedResult::Refused)).sum();
            (waiting >= 10).then_some(())
        })
        .await;
        opened.open();
    });
    assert!(responses.iter().all(|response| response.status == 200));
    assert_eq!(rails.request_count() - asked, 1);
    let waited: u64 = pods.iter().map(|pod| pod.shared().locks.get(LockResult::Shared)).sum();
    assert_eq!(waited, 9);
}

async fn keys(valkey: &Valkey, kind: &str) -> Vec<String> {
    let Value::Array(keys) = valkey.command(&["KEYS", &format!("railgate:*:{kind}*")]).await else {
        panic!()
    };
    keys.into_iter().map(|key| redis::from_redis_value(key).unwrap()).collect()
}

/// With the place in the stream taken when the answer comes, it would be of after the purge.
#[tokio::test]
async fn an_answer_that_was_on_its_way_during_a_purge_is_not_shared() {
    let (valkey, rails, [one, two]) = sharing::<2>().await;
    let (latch, before) = (Latch::closed(), answers(&valkey).await.len());
    let opened = latch.clone();
    rails.respond_with(move |request| gitlab(request).after(&latch));
    let asked = rails.request_count();
    let question = key();
    let (old, ()) = tokio::join!(one.send(&question), async {
        rails.wait_for_requests(asked + 1).await;
        delete_key(&rails);
        assert_eq!(two.purge_key().await, "told");
        one.wait_until_heard(1).await;
        opened.open();
    });
    assert_eq!(old.status, 200, "it was asked before");
    assert_eq!(two.send(&key()).await.status, 404);
    assert_eq!(one.send(&key()).await.status, 404);
    assert_eq!(answers(&valkey).await.len(), before);
}

/// A read replica behind Rails tells the old story for a while, and what is shared would outlive that.
#[tokio::test]
async fn an_answer_of_a_lagging_replica_is_not_shared() {
    let (valkey, rails, [one, two]) = sharing::<2>().await;
    let before = answers(&valkey).await.len();
    assert_eq!(one.event(&deletion()).await, "ok, and told to the fleet");
    two.wait_until_heard(1).await;
    assert_eq!(one.send(&key()).await.status, 200, "the replica has not heard of it");
    delete_key(&rails);
    assert_eq!(two.send(&key()).await.status, 404);
    assert_eq!(answers(&valkey).await.len(), before);
}

/// One who may read and write everything in Valkey.
#[tokio::test]
async fn an_answer_that_is_brought_back_moved_or_changed_is_refused() {
    let (valkey, rails, [one, two, three]) = sharing::<3>().await;
    let (name, sealed) = added(&valkey, &one, &key()).await;
    let (other, of_user) = added(&valkey, &one, &user(7)).await;
    let refused = || two.results().get(SharedResult::Refused);

    assert!(is_from_fleet(&two.send(&key()).await), "as long as it is not purged");

    // At another place, and with one bit flipped in each part.
    rails.respond_with(|request| {
        if request.is_for("discover") {
            of_one_request(request, 200, r#"{"id":7,"username":"renamed"}"#)
        } else {
            gitlab(request)
        }
    });
    put(&valkey, &other, &sealed).await;
    assert_eq!(two.send(&user(7)).await.json()["username"], "renamed");
    assert_eq!(refused(), 1);
    for at in [0, 20, 30, of_user.len() - 1] {
        let mut flipped = of_user.clone();
        flipped[at] ^= 1;
        put(&valkey, &other, &flipped).await;
        let before = three.results().get(SharedResult::Refused);
        assert_eq!(three.send(&user(7)).await.json()["username"], "renamed", "byte {at}");
        assert_eq!(three.results().get(SharedResult::Refused), before + 1, "byte {at}");
        assert_eq!(three.purge(json!({"user_id": 7})).await["fleet"], "told");
        wait_until_removed(&valkey, &other).await;
    }

    // After a purge, also by a gateway that has started since.
    delete_key(&rails);
    assert_eq!(one.purge_key().await, "told");
    wait_until_removed(&valkey, &name).await;
    two.wait_until_heard(5).await;
    three.wait_until_heard(1).await;
    let cold = Pod::start(&rails, patient(valkey.address())).await;
    rails.respond_with(every_user);
    share(&cold, &valkey, 9).await;
    delete_key(&rails);
    put(&valkey, &name, &sealed).await;
    for pod in [&one, &two, &three, &cold] {
        let before = pod.results().get(SharedResult::Refused);
        assert_eq!(pod.send(&key()).await.status, 404);
        assert_eq!(pod.results().get(SharedResult::Refused), before + 1);
    }
}

/// Waits until a purge has removed what is shared. Nothing hangs on that.
async fn wait_until_removed(valkey: &Valkey, name: &str) {
    eventually("the answer to be removed", async || {
        (!answers(valkey).await.contains(&name.to_owned())).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_answer_of_another_life_of_the_server_is_refused() {
    let (mut valkey, rails, [one]) = sharing::<1>().await;
    let (name, sealed) = added(&valkey, &one, &key()).await;
    valkey.restart().await;
    one.wait_for_doubt(DoubtReason::Server).await;
    one.wait_until_all_is_heard().await;
    share(&one, &valkey, 5).await;
    delete_key(&rails);
    put(&valkey, &name, &sealed).await;
    let before = one.results().get(SharedResult::Refused);
    assert_eq!(one.send(&key()).await.status, 404);
    assert_eq!(one.results().get(SharedResult::Refused), before + 1);
}

#[tokio::test]
async fn a_valkey_that_hangs_is_waited_for_once() {
    let valkey = Valkey::start().await;
    let rails = FakeRails::listen_tcp().await;
    rails.respond_with(every_user);
    let shared = Some(SharedSettings::default());
    let settings =
        FleetSettings { shared, alone_after: Duration::from_secs(3_600), ..pods::settings(valkey.address()) };
    let pod = Pod::start(&rails, settings).await;
    share(&pod, &valkey, 1).await;
    let late = pod.results().get(SharedResult::Late);
    valkey.freeze();
    for id in 1..=50 {
        assert_eq!(pod.send(&user(id)).await.json()["id"], id);
    }
    // Once at most for each time that it was pinged, which takes a second. It is not waited for otherwise.
    let (late, errors) =
        (pod.results().get(SharedResult::Late) - late, pod.results().get(SharedResult::Error));
    assert!(late >= 1 && errors >= 1 && late + errors >= 50, "{late} {errors}");
    valkey.thaw();
    share(&pod, &valkey, 2).await;
}

/// Its operator has given the user the right to ask later.
#[tokio::test]
async fn answers_are_shared_as_soon_as_the_server_says_which_one_it_is() {
    let valkey = Valkey::start().await;
    valkey.command(&["ACL", "SETUSER", "default", "-info"]).await;
    let rails = FakeRails::listen_tcp().await;
    rails.respond_with(every_user);
    let pod = Pod::start(&rails, patient(valkey.address())).await;
    valkey.wait_for_clients("railgate-shared", 1).await;
    pod.send(&key()).await;
    assert_eq!(pod.results().get(SharedResult::Error), 1);
    assert_eq!(answers(&valkey).await, Vec::<String>::new());
    valkey.command(&["ACL", "SETUSER", "default", "+info"]).await;
    share(&pod, &valkey, 1).await;
}

#[tokio::test]
async fn a_gateway_that_is_alone_neither_uses_nor_shares_answers() {
    let valkey = Valkey::start().await;
    let proxy = Proxy::start(&valkey).await;
    let rails = FakeRails::listen_tcp().await;
    rails.respond_with(every_user);
    let one = Pod::start(&rails, patient(valkey.address())).await;
    let two = Pod::start(&rails, patient(proxy.address())).await;
    share(&one, &valkey, 1).await;
    share(&two, &valkey, 2).await;
    added(&valkey, &one, &key()).await;
    proxy.stall();
    two.wait_for(FleetPhase::Alone).await;
    let looks = || two.results().iter().map(|(_, count)| count).sum::<u64>();
    let (before, asked) = (looks(), rails.request_count());
    assert_eq!(two.send(&key()).await.cache_status(), "railgate; fwd=miss; stored");
    assert_eq!((looks(), rails.request_count()), (before, asked + 1));
    proxy.cut();
    proxy.resume();
    two.wait_for(FleetPhase::Following).await;
    share(&two, &valkey, 3).await;
}

#[tokio::test]
async fn without_the_section_nothing_is_shared() {
    let valkey = Valkey::start().await;
    let rails = FakeRails::listen_tcp().await;
    let pod = Pod::start(&rails, pods::settings(valkey.address())).await;
    pod.warm().await;
    assert!(pod.gateway.fleet.shared().is_none());
    assert_eq!(answers(&valkey).await, Vec::<String>::new());
    assert_eq!(pod.gateway.metric("railgate_fleet_shared_total{result=\"miss\"}").await, None);
}
