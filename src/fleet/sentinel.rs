//! Asks the Sentinels where the master is.
//!
//! All are asked, and more than half of all have to say the same: one that was cut off from the others for a while names
//! the old master.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Mutex, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::connection::{Connection, ConnectionError};
use super::settings::{FleetTls, ValkeyCredential};
use crate::upstream::UpstreamAddress;

/// How long after one round of questions has begun the next one does, unless that takes as long.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// All Sentinels of a master.
#[derive(Debug)]
pub(super) struct Sentinels {
    all: Vec<Sentinel>,
    master: String,
    credential: ValkeyCredential,
    tls: Option<FleetTls>,
}

#[derive(Debug)]
struct Sentinel {
    address: UpstreamAddress,
    /// Kept from one question to the next.
    connection: Mutex<Option<Connection>>,
}

impl Sentinels {
    pub(super) fn new(
        addresses: &[UpstreamAddress],
        master: &str,
        credential: &ValkeyCredential,
        tls: Option<&FleetTls>,
    ) -> Self {
        let sentinel =
            |address: &UpstreamAddress| Sentinel { address: address.clone(), connection: Mutex::default() };
        Self {
            all: addresses.iter().map(sentinel).collect(),
            master: master.to_owned(),
            credential: credential.clone(),
            tls: tls.cloned(),
        }
    }

    /// The address that more than half of them name. Those that are silent are not waited for.
    pub(super) async fn master(&self) -> Result<UpstreamAddress, ConnectionError> {
        let mut votes = Votes::new(self.all.len());
        let mut answers = self.ask_all();
        while let Some((sentinel, answer)) = answers.next().await {
            if let Some(address) = votes.add(sentinel, answer) {
                return Ok(address);
            }
        }
        Err(ConnectionError::NoMaster(votes.reasons.join("; ")))
    }

    /// Asks once a second, and tells what more than half of them name. If they do not agree, nothing is told. All are waited
    /// for, so that the connection to one that has become silent is given up.
    pub(super) async fn watch(&self, agreed: &watch::Sender<Option<UpstreamAddress>>) {
        let mut rounds = interval(ASK_INTERVAL);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            let mut votes = Votes::new(self.all.len());
            let mut answers = self.ask_all();
            let mut is_told = false;
            while let Some((sentinel, answer)) = answers.next().await {
                // What a slower one names may have been replaced meanwhile.
                let Some(address) = votes.add(sentinel, answer).filter(|_| !is_told) else { continue };
                is_told = true;
                agree(agreed, &address);
            }
        }
    }

    fn ask_all(&self) -> FuturesUnordered<impl Future<Output = (&UpstreamAddress, Answer)>> {
        self.all.iter().map(async |sentinel| (&sentinel.address, self.ask(sentinel).await)).collect()
    }

    async fn ask(&self, sentinel: &Sentinel) -> Answer {
        let mut kept = sentinel.connection.lock().await;
        let connection = if let Some(connection) = kept.take().filter(|kept| !kept.has_ended()) {
            connection
        } else {
            let (credential, tls) = (&self.credential, self.tls.as_ref());
            Connection::open(&sentinel.address, credential, tls, "railgate").await?
        };
        // It stays there if this question is given up: the answer will be skipped.
        let answer = kept.insert(connection).master_address(&self.master).await;
        if answer.is_err() {
            *kept = None;
        }
        answer
    }
}

/// More than half of the Sentinels name this address.
pub(super) fn agree(agreed: &watch::Sender<Option<UpstreamAddress>>, address: &UpstreamAddress) {
    agreed.send_if_modified(|agreed| {
        let is_other = agreed.as_ref() != Some(address);
        *agreed = Some(address.clone());
        is_other
    });
}

/// An address, or that the Sentinel knows no master of that name.
type Answer = Result<Option<UpstreamAddress>, ConnectionError>;

/// What the Sentinels have said so far.
struct Votes {
    sentinels: usize,
    by_address: HashMap<UpstreamAddress, usize>,
    /// Each answer, in case there is no majority.
    reasons: Vec<String>,
}

impl Votes {
    fn new(sentinels: usize) -> Self {
        Self { sentinels, by_address: HashMap::new(), reasons: Vec::new() }
    }

    /// The address that has a majority with this answer.
    fn add(&mut self, sentinel: &UpstreamAddress, answer: Answer) -> Option<UpstreamAddress> {
        let address = match answer {
            Ok(Some(address)) => address,
            Ok(None) => {
                self.reasons.push(format!("{sentinel} knows no such master"));
                return None;
            }
            Err(error) => {
                self.reasons.push(format!("{sentinel}: {error}"));
                return None;
            }
        };
        self.reasons.push(format!("{sentinel} names {address}"));
        let votes = self.by_address.entry(address.clone()).or_default();
        *votes += 1;
        (*votes > self.sentinels / 2).then_some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_is_named_by_more_than_half_of_all_sentinels() {
        let address = |port| UpstreamAddress::Tcp("10.0.0.1".to_owned(), port);
        // A port for each answer; 0: it knows none. `None`: it does not answer.
        for (sentinels, answers, expected) in [
            (1, &[Some(1)][..], Some(1)),
            (1, &[None], None),
            (2, &[Some(1)], None),
            (2, &[Some(1), Some(1)], Some(1)),
            (2, &[Some(1), Some(2)], None),
            (3, &[Some(2), Some(1), Some(1)], Some(1)),
            (3, &[None, Some(1), Some(1)], Some(1)),
            (3, &[None, Some(1), None], None),
            (3, &[Some(0), Some(0), Some(1)], None),
            (3, &[Some(1), Some(2), Some(3)], None),
            (4, &[Some(1), Some(1), Some(2), Some(2)], None),
            (5, &[Some(1), Some(2), Some(1), Some(2), Some(1)], Some(1)),
        ] {
            let mut votes = Votes::new(sentinels);
            let found = answers.iter().find_map(|answer| {
                let answer = match answer {
                    Some(0) => Ok(None),
                    Some(port) => Ok(Some(address(*port))),
                    None => Err(ConnectionError::NotMaster),
                };
                votes.add(&address(26_379), answer)
            });
            assert_eq!(found, expected.map(address), "{sentinels}: {answers:?}");
            assert!(votes.reasons.len() <= answers.len());
        }
    }
}
