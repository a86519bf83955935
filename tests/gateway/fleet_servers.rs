//! Which server the fleet connects to: the configured one, the one that the Sentinels agree on, or the node of a cluster that
//! has the keys.

use std::sync::Arc;
use std::time::Duration;

use railgate::fleet::acl::acl_line;
use railgate::fleet::connection::ConnectionError;
use railgate::fleet::server::Servers;
use railgate::fleet::settings::{FleetSettings, ValkeyCredential, ValkeyServers};
use railgate::fleet::stream::Envelope;
use railgate::upstream::UpstreamAddress;

use super::client::{eventually, within_deadline};
use super::harness::Scratch;
use super::valkey::{MASTER, Sentinels, Valkey, ValkeySetup, cluster};

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
async fn sentinels_and_servers_have_users_of_their_own_with_few_permissions() {
    let master = Valkey::start().await;
    let sentinels = Sentinels::start(1, &master).await;
    let dir = Scratch::new();
    let user = |name: &str, password: &str| {
        std::fs::write(dir.file(password), format!("{password}\n")).unwrap();
        ValkeyCredential { user: Some(name.to_owned()), password_file: Some(dir.file(password)) }
    };
    let acl = acl_line("of_master", "0011223344556677").replace("PASSWORD", "m4ster");
    master.command(&acl.split(' ').collect::<Vec<_>>()).await;
    let few = "-@all +sentinel|get-master-addr-by-name +client|setname";
    let acl = format!("ACL SETUSER of_sentinel on >s3ntinel resetkeys resetchannels {few}");
    sentinels.all()[0].command(&acl.split(' ').collect::<Vec<_>>()).await;
    assert!(
        include_str!("../../config/README.md")
            .contains("`+sentinel|get-master-addr-by-name` and `+client|setname`")
    );
    let servers = |sentinel: ValkeyCredential| {
        let servers = ValkeyServers::Sentinels {
            sentinels: sentinels.all().iter().map(Valkey::address).collect(),
            master: MASTER.to_owned(),
            credential: sentinel,
        };
        let credential = user("of_master", "m4ster");
        Servers::new(Arc::new(FleetSettings { servers, credential, ..FleetSettings::new(master.address()) }))
    };
    let opened = servers(user("of_sentinel", "s3ntinel")).open("test", BUS).await.unwrap();
    assert_eq!(opened.address, master.address());
    opened.connection.add(BUS, &message(), 100).await.unwrap();
    let error = servers(user("of_sentinel", "m4ster")).open("test", BUS).await.unwrap_err().to_string();
    assert!(error.contains("WRONGPASS") && !error.contains("m4ster"), "{error}");
}

#[tokio::test]
async fn the_node_of_a_cluster_that_has_the_keys_is_connected_to() {
    let [owner, other] = cluster(BUS).await;
    for configured in [&owner, &other] {
        let servers = servers_of(ValkeyServers::One(configured.address()));
        let opened = servers.open("test", BUS).await.unwrap();
        assert_eq!(opened.address, owner.address());
        opened.connection.add(BUS, &message(), 100).await.unwrap();
    }

    // The slot moves while something waits for it: that ends, and the next connection leads to the new node.
    let servers = servers_of(ValkeyServers::One(other.address()));
    let opened = servers.open("test", BUS).await.unwrap();
    let anchor = opened.last_id.unwrap();
    owner.move_slot_of(BUS, &other).await;
    let moved = opened.connection.poll(BUS, anchor, (Duration::from_millis(100), 10)).await.unwrap_err();
    assert!(matches!(&moved, ConnectionError::Moved(address) if *address == other.address()), "{moved}");
    let again = servers.open("test", BUS).await.unwrap();
    assert_eq!((again.address, again.last_id), (other.address(), Some(anchor)));
    assert_ne!(again.identity, opened.identity);
}
