//! Finds the server that takes writes, and connects to it.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::connection::{Connection, ConnectionError};
use super::sentinel::{self, Sentinels};
use super::settings::{FleetSettings, ValkeyServers};
use super::stream::{Identity, StreamId};
use crate::upstream::UpstreamAddress;

/// How often a node of a cluster may send us to another one.
const MAX_REDIRECTS: usize = 3;

/// The way to the server.
#[derive(Debug)]
pub struct Servers {
    settings: Arc<FleetSettings>,
    sentinels: Option<Sentinels>,
    /// The node of a cluster that has the keys, as the one at the configured address has said.
    redirected: Mutex<Option<UpstreamAddress>>,
    /// What the Sentinels last agreed on.
    agreed: watch::Sender<Option<UpstreamAddress>>,
}

/// A connection to the server that takes writes, at the time at which it was made.
#[derive(Debug)]
pub struct Opened {
    /// The connection.
    pub connection: Connection,
    /// Where it leads.
    pub address: UpstreamAddress,
    /// Which server that is. `None` if it does not tell: then it may be another one at each connection.
    pub identity: Option<Identity>,
    /// The last entry of the stream, if it has one.
    pub last_id: Option<StreamId>,
}

impl Servers {
    /// The way that is configured.
    pub fn new(settings: Arc<FleetSettings>) -> Self {
        let sentinels = match &settings.servers {
            ValkeyServers::One(_) => None,
            ValkeyServers::Sentinels { sentinels, master, credential } => {
                Some(Sentinels::new(sentinels, master, credential, settings.tls.as_ref()))
            }
        };
        Self { settings, sentinels, redirected: Mutex::default(), agreed: watch::Sender::new(None) }
    }

    /// Connects to the server that has `stream` and takes writes. `name` is for `CLIENT LIST`.
    pub async fn open(&self, name: &str, stream: &str) -> Result<Opened, ConnectionError> {
        let mut address = self.address().await?;
        let mut redirects = 0;
        loop {
            let is_redirected = self.redirected.lock().as_ref() == Some(&address);
            match self.open_at(&address, name, stream).await {
                Err(ConnectionError::Moved(to)) if redirects < MAX_REDIRECTS => {
                    redirects += 1;
                    *self.redirected.lock() = Some(to.clone());
                    address = to;
                }
                // The node may be gone; the configured one knows who has the keys now.
                Err(_) if is_redirected && redirects == 0 => {
                    *self.redirected.lock() = None;
                    redirects += 1;
                    address = self.address().await?;
                }
                outcome => {
                    if outcome.is_err() {
                        *self.redirected.lock() = None;
                    }
                    return outcome;
                }
            }
        }
    }

    async fn open_at(
        &self,
        address: &UpstreamAddress,
        name: &str,
        stream: &str,
    ) -> Result<Opened, ConnectionError> {
        let FleetSettings { credential, tls, .. } = self.settings.as_ref();
        let connection = Connection::open(address, credential, tls.as_ref(), name).await?;
        let identity = connection.identity().await?;
        let last_id = connection.last_id(stream).await?;
        Ok(Opened { connection, address: address.clone(), identity, last_id })
    }

    async fn address(&self) -> Result<UpstreamAddress, ConnectionError> {
        match (&self.settings.servers, &self.sentinels) {
            (ValkeyServers::One(address), _) => {
                Ok(self.redirected.lock().clone().unwrap_or_else(|| address.clone()))
            }
            (_, Some(sentinels)) => {
                let master = sentinels.master().await?;
                // Else the connection to a new master would be given up as one to a master that was replaced.
                sentinel::agree(&self.agreed, &master);
                Ok(master)
            }
            (_, None) => Err(ConnectionError::NoMaster("none is configured".to_owned())),
        }
    }

    /// Asks the Sentinels once a second, for [`Self::replaced`]. Ends at once if there is none.
    ///
    /// A task of its own: a server that was frozen and has woken takes itself for a master for ten seconds, and answers
    /// polls as if nothing had happened, however busy or idle they are.
    pub async fn watch(&self) {
        if let Some(sentinels) = &self.sentinels {
            sentinels.watch(&self.agreed).await;
        }
    }

    /// Returns once the Sentinels agree on another master than the one at this address.
    pub async fn replaced(&self, address: &UpstreamAddress) {
        let mut agreed = self.agreed.subscribe();
        // Fails only if the sender is gone, which is here.
        let is_other = |agreed: &Option<UpstreamAddress>| agreed.as_ref().is_some_and(|is| is != address);
        if agreed.wait_for(is_other).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::fleet::settings::ValkeyCredential;
    use crate::fleet::tests::scripted::{ScriptedServer, array, bulk, reply_as_master};

    async fn master() -> ScriptedServer {
        ScriptedServer::start(|command| reply_as_master(command).unwrap_or_else(|| b"*0\r\n".to_vec())).await
    }

    /// Else a reader would leave a new master again until the task that asks the Sentinels once a second has found it, too.
    #[tokio::test]
    async fn a_new_master_that_was_just_found_is_no_replaced_one_and_the_one_before_is() {
        let [old, new] = [master().await, master().await];
        let has_failed_over = Arc::new(AtomicBool::new(false));
        let names = [&old, &new].map(|server| {
            let UpstreamAddress::Tcp(host, port) = &server.address else { panic!("{:?}", server.address) };
            array(&[&bulk(host.as_bytes()), &bulk(port.to_string().as_bytes())])
        });
        let asked = Arc::clone(&has_failed_over);
        let sentinel =
            ScriptedServer::start(move |_| names[usize::from(asked.load(Ordering::SeqCst))].clone()).await;
        let mut settings = FleetSettings::new(old.address.clone());
        settings.servers = ValkeyServers::Sentinels {
            sentinels: vec![sentinel.address.clone()],
            master: "valkey".to_owned(),
            credential: ValkeyCredential::default(),
        };
        let servers = Servers::new(Arc::new(settings));
        let is_replaced = |address| servers.replaced(address).now_or_never().is_some();

        let opened = servers.open("test", "stream").await.unwrap();
        assert_eq!(opened.address, old.address);
        assert!(!is_replaced(&old.address));
        has_failed_over.store(true, Ordering::SeqCst);
        assert!(!is_replaced(&old.address), "the Sentinels were not asked since");
        let opened = servers.open("test", "stream").await.unwrap();
        assert_eq!(opened.address, new.address);
        assert!(!is_replaced(&new.address) && is_replaced(&old.address));

        // The task comes to the same by itself.
        has_failed_over.store(false, Ordering::SeqCst);
        let replaced = async { servers.replaced(&new.address).await };
        tokio::select! {
            () = servers.watch() => {}
            replaced = tokio::time::timeout(Duration::from_secs(60), replaced) => replaced.unwrap(),
        }
        assert!(!is_replaced(&old.address));
    }
}
