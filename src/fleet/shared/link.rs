//! The connection over which answers are shared. A request never waits for one to be made: without one, Rails
//! is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Mutex, Notify, mpsc};

use crate::fleet::connection::{Connection, ConnectionError};
use crate::fleet::stream::Identity;

/// How many writes can wait. Those that have no room are left out: Rails is asked once more.
const MAX_WRITES: usize = 4_096;

/// See the module.
#[derive(Debug)]
pub(in crate::fleet) struct Link {
    current: ArcSwapOption<Linked>,
    /// A reply was late: the connection is not used until it has shown that it works.
    is_suspect: AtomicBool,
    pub(in crate::fleet) suspected: Notify,
    writes: mpsc::Sender<Write>,
    /// For the one task that does them.
    pub(in crate::fleet) queue: Mutex<mpsc::Receiver<Write>>,
}

/// A connection, and the server that it leads to.
#[derive(Debug)]
pub(in crate::fleet) struct Linked {
    pub(in crate::fleet) connection: Connection,
    pub(in crate::fleet) identity: Identity,
}

/// What no request waits for.
#[derive(Debug)]
pub(in crate::fleet) enum Write {
    /// Shares an answer, and ends the lock of its key.
    Share { name: String, sealed: Vec<u8>, ttl: Duration, lock: Option<String> },
    /// Removes these keys.
    Remove(Vec<String>),
}

impl Write {
    pub(in crate::fleet) async fn run(self, connection: &Connection) -> Result<(), ConnectionError> {
        match self {
            Self::Share { name, sealed, ttl, lock } => {
                let lock: Vec<String> = lock.into_iter().collect();
                // In this order, since they are sent as they are first polled.
                let (set, removed) =
                    futures_util::future::join(connection.set_px(&name, &sealed, ttl), connection.del(&lock))
                        .await;
                set.and(removed.map(drop))
            }
            Self::Remove(names) => connection.del(&names).await.map(drop),
        }
    }
}

impl Link {
    pub(super) fn new() -> Self {
        let (writes, queue) = mpsc::channel(MAX_WRITES);
        Self {
            current: ArcSwapOption::empty(),
            is_suspect: AtomicBool::new(false),
            suspected: Notify::new(),
            writes,
            queue: Mutex::new(queue),
        }
    }

    /// The connection, if there is one that works.
    pub(super) fn current(&self) -> Option<Arc<Linked>> {
        if self.is_suspect.load(Ordering::Acquire) { None } else { self.current.load_full() }
    }

    pub(in crate::fleet) fn set(&self, linked: Option<Arc<Linked>>) {
        self.current.store(linked);
        self.is_suspect.store(false, Ordering::Release);
    }

    /// A reply was late.
    pub(super) fn suspect(&self) {
        self.is_suspect.store(true, Ordering::Release);
        self.suspected.notify_one();
    }

    /// It works nevertheless.
    pub(in crate::fleet) fn acquit(&self) {
        self.is_suspect.store(false, Ordering::Release);
    }

    /// Has something written, if there is room. Returns whether there is.
    pub(super) fn write(&self, write: Write) -> bool {
        self.writes.try_send(write).is_ok()
    }
}
