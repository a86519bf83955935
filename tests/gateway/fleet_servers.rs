//! Which server the fleet connects to: the configured one, the one that the Sentinels agree on, or the node of a cluster that
//! has the keys.

use std::sync::Arc;
use std::time::Duration;

use railgate::fleet::connection::ConnectionError;
use railgate::fleet::server::Servers;
use railgate::fleet::settings::{FleetSettings, ValkeyCredential, ValkeyServers};
use railgate::fleet::stream::Envelope;
use railgate::upstream::UpstreamAddress;
use redis::Value;

use super::client::{eventually, within_deadline};
use super::valkey::{MASTER, Sentinels, Valkey, ValkeySetup};

const BUS: &str = "railgate:{0011223344556677}:bus";

fn servers_of(servers: ValkeyServers) -> Arc<Servers> {
    let address = UpstreamAddress::Tcp("127.0.0.1".to_owned(), 1);
    Arc::new(Servers::new(Arc::new(FleetSettings { servers, ..FleetSettings::new(address) })))
}

fn by_sentinels(sentinels: &Sentinels) -> Arc<Servers> {
    let addresses = sentinels.all().iter().map(Valkey::address).collect();
    servers_of(ValkeyServers::Sentinels {
        sentinels: addresses,
        master: MASTER.to_owned(),
        credential: ValkeyCredential::default(),
    })
}

fn message() -> Envelope {
    Envelope { publisher: [0; 8], number: 1, sealed: Vec::new() }
}

#[tokio::test]
async fn the_configured_server_is_connected_to_unless_it_is_a_replica() {
    let (server, other) = (Valkey::start().await, Valkey::start().await);
    let servers = servers_of(ValkeyServers::One(server.address()));
    let opened = servers.open("test", BUS).await.unwrap();
    assert_eq!((opened.address, opened.last_id), (server.address(), None));
    let id = opened.connection.add(BUS, &message(), 100).await.unwrap();
    let again = servers.open("test", BUS).await.unwrap();
    assert_eq!((again.last_id, &again.identity), (Some(id), &opened.identity));
    server.command(&["REPLICAOF", "127.0.0.1", &other.port.to_string()]).await;
    assert!(matches!(servers.open("test", BUS).await, Err(ConnectionError::NotMaster)));
    // Without Sentinels, there is nothing to be watched.
    within_deadline("nothing to watch", servers.watch()).await;
}

#[tokio::test]
async fn the_master_that_most_sentinels_name_is_followed() {
    let master = Valkey::start().await;
    let replica = ValkeySetup::default().replica_of(&master).start().await;
    replica.wait_for_info("master_link_status", "up").await;
    let sentinels = Sentinels::start(3, &master).await;
    sentinels.wait_for_replicas(1).await;
    let servers = by_sentinels(&sentinels);
    let watch = tokio::spawn({
        let servers = Arc::clone(&servers);
        async move { servers.watch().await }
    });
    let opened = servers.open("test", BUS).await.unwrap();
    assert_eq!(opened.address, master.address());

    // One that was cut off for long names another server: it is not believed, wherever it is in the list.
    let wrong = Valkey::start().await;
    sentinels.mislead(0, &wrong).await;
    assert_eq!(sentinels.master_port(0).await, wrong.port);
    for _ in 0..5 {
        assert_eq!(servers.open("test", BUS).await.unwrap().address, master.address());
    }
    let old = master.address();
    let replaced = tokio::time::timeout(Duration::from_millis(1_500), servers.replaced(&old));
    assert!(replaced.await.is_err(), "one Sentinel alone is not believed");
    // A silent one does not keep the others from agreeing.
    sentinels.all()[0].freeze();
    assert_eq!(servers.open("test", BUS).await.unwrap().address, master.address());
    sentinels.all()[0].thaw();

    // The old master hangs; the others make the replica the new one, and tell although the old one says nothing.
    master.freeze();
    within_deadline("the new master", servers.replaced(&master.address())).await;
    let new = eventually("the new master", async || servers.open("test", BUS).await.ok()).await;
    assert_eq!(new.address, replica.address());
    assert_ne!(new.identity, opened.identity);
    // It wakes, takes itself for a master, and is not connected to.
    master.thaw();
    assert_eq!(servers.open("test", BUS).await.unwrap().address, replica.address());
    watch.abort();
}

#[tokio::test]
async fn sentinels_that_do_not_agree_name_no_master() {
    let (one, other) = (Valkey::start().await, Valkey::start().await);
    let sentinels = Sentinels::start(2, &one).await;
    sentinels.mislead(0, &other).await;
    let error = by_sentinels(&sentinels).open("test", BUS).await.unwrap_err().to_string();
    let names = |index: usize, server: &Valkey| {
        format!("{} names {}", sentinels.all()[index].address(), server.address())
    };
    assert!(error.contains(&names(0, &other)) && error.contains(&names(1, &one)), "{error}");
    for sentinel in sentinels.all() {
        sentinel.command(&["SENTINEL", "REMOVE", MASTER]).await;
    }
    let error = by_sentinels(&sentinels).open("test", BUS).await.unwrap_err().to_string();
    assert_eq!(error.matches("knows no such master").count(), 2, "{error}");
}

#[tokio::test]
async fn the_node_of_a_cluster_that_has_the_keys_is_connected_to() {
    let node = async || {
        let bus_port = fastrand::u16(42_000..60_000).to_string();
        ValkeySetup::default()
            .option("cluster-enabled", "yes")
            .option("cluster-port", &bus_port)
            .start()
            .await
    };
    let nodes = [node().await, node().await];
    let half = |node: &Valkey, first: &str, last: &str| {
        let arguments = ["CLUSTER", "ADDSLOTSRANGE", first, last].map(str::to_owned);
        let client = node.url();
        async move {
            let mut connection =
                redis::Client::open(client).unwrap().get_multiplexed_async_connection().await.unwrap();
            let mut command = redis::Cmd::new();
            for argument in &arguments {
                command.arg(argument);
            }
            command.query_async::<Value>(&mut connection).await.unwrap();
        }
    };
    half(&nodes[0], "0", "8191").await;
    half(&nodes[1], "8192", "16383").await;
    let bus_port = nodes[1].info("cluster_enabled").await;
    assert_eq!(bus_port, "1");
    let Value::BulkString(port) = config_of(&nodes[1], "cluster-port").await else { panic!("no port") };
    let port = String::from_utf8(port).unwrap();
    nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &nodes[1].port.to_string(), &port]).await;
    for node in &nodes {
        eventually("the cluster to be complete", async || {
            let Value::BulkString(info) = node.command(&["CLUSTER", "INFO"]).await else { panic!("no info") };
            String::from_utf8(info).unwrap().contains("cluster_state:ok").then_some(())
        })
        .await;
    }
    let Value::Int(slot) = nodes[0].command(&["CLUSTER", "KEYSLOT", BUS]).await else { panic!("no slot") };
    let (owner, other) = if slot < 8_192 { (&nodes[0], &nodes[1]) } else { (&nodes[1], &nodes[0]) };

    for configured in [owner, other] {
        let servers = servers_of(ValkeyServers::One(configured.address()));
        let opened = servers.open("test", BUS).await.unwrap();
        assert_eq!(opened.address, owner.address());
        opened.connection.add(BUS, &message(), 100).await.unwrap();
    }

    // The slot moves while something waits for it: that ends, and the next connection leads to the new node.
    let servers = servers_of(ValkeyServers::One(other.address()));
    let opened = servers.open("test", BUS).await.unwrap();
    let anchor = opened.last_id.unwrap();
    let id = |node: &Valkey| {
        let url = node.url();
        async move {
            let mut connection =
                redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
            redis::cmd("CLUSTER").arg("MYID").query_async::<String>(&mut connection).await.unwrap()
        }
    };
    owner.command(&["DEL", BUS]).await;
    let (slot, to) = (slot.to_string(), id(other).await);
    for node in [owner, other] {
        node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]).await;
    }
    let moved = opened.connection.poll(BUS, anchor, (Duration::from_millis(100), 10)).await.unwrap_err();
    assert!(matches!(&moved, ConnectionError::Moved(address) if *address == other.address()), "{moved}");
    assert_eq!(servers.open("test", BUS).await.unwrap().address, other.address());
}

/// A setting of a server.
async fn config_of(server: &Valkey, name: &str) -> Value {
    match server.command(&["CONFIG", "GET", name]).await {
        Value::Array(pair) => pair[1].clone(),
        other => panic!("{other:?}"),
    }
}
