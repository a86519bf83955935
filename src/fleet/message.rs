//! What gateways tell each other, and how it travels.
//!
//! Purges are numbered by each process, from 1, and kept until it is sure that they were heard. Any other message has the
//! number of the purge before it, and is not kept: a gateway that has heard fewer purges has missed some.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::{FleetKeys, Opener, Sealer, random};
use super::report::{Question, Report};
use super::stream::Envelope;
use crate::cache::purge::{PurgeMode, Selector};

/// What a process tells the others. The variants travel by their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The process is there. Once a minute, when it has just begun, and where a stream has no entry that could be an anchor.
    Hello {
        /// When it says so, in milliseconds since the Unix epoch by its own clock: a hello that is written down again is as
        /// old as it was.
        said_at_ms: u64,
        /// Where the process runs.
        origin: Origin,
        /// Asks which purges the others know.
        question: Option<Question>,
    },
    /// Something is to be dropped.
    Purge(Purge),
    /// The process ends.
    Bye,
    /// Which purges the process knows, for those who have asked.
    Report(Report),
}

/// Where a process runs, and since when. One that begins later on the same machine, or in the same pod, is taken for the one
/// that was started in its place, if that is silent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The name of the machine. In Kubernetes, it is that of the pod, unless its `hostNetwork` or `hostname` says otherwise.
    pub host: String,
    /// When the process began, in milliseconds since the Unix epoch by its own clock.
    pub began_at_ms: u64,
}

impl Origin {
    /// Of this process, which begins now.
    pub fn of_this_process(now_ms: u64) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { host, began_at_ms: now_ms }
    }
}

/// What is to be dropped, for all who hear it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// Which answers.
    pub selectors: Vec<Selector>,
    /// Whether they are dropped, or only stale.
    pub mode: PurgeMode,
    /// How long, in milliseconds, Rails may still give the old answer: after that it is dropped once more. 0 for never.
    pub settle_ms: u32,
    /// When it was accepted, in milliseconds since the Unix epoch by the clock of the gateway that has.
    pub accepted_at_ms: u64,
}

/// How many selectors, and how many bytes of names in them, share a message. What has more means everything.
pub const MAX_SELECTORS: usize = 256;
const MAX_NAME_BYTES: usize = 16 * 1024;

impl Purge {
    /// Of answers that may be wrong since `accepted_at` (since the Unix epoch). A purge that is too large for a message
    /// becomes one of everything.
    pub fn new(selectors: &[Selector], mode: PurgeMode, settle: Duration, accepted_at: Duration) -> Self {
        let purge = Self {
            selectors: selectors.to_vec(),
            mode,
            settle_ms: u32::try_from(settle.as_millis()).unwrap_or(u32::MAX),
            accepted_at_ms: u64::try_from(accepted_at.as_millis()).unwrap_or(u64::MAX),
        };
        if purge.fits() { purge } else { Self { selectors: vec![Selector::All], ..purge } }
    }

    /// How long Rails may still give the old answer.
    pub fn settle(&self) -> Duration {
        Duration::from_millis(self.settle_ms.into())
    }

    fn fits(&self) -> bool {
        let names = self.selectors.iter().map(|selector| match selector {
            Selector::Username(name) => name.len(),
            _ => 0,
        });
        self.selectors.len() <= MAX_SELECTORS && names.sum::<usize>() <= MAX_NAME_BYTES
    }

    /// Takes over what `later` drops, if one message has room for both. Returns whether it did.
    pub fn absorb(&mut self, later: &Self) -> bool {
        if self.mode != later.mode {
            return false;
        }
        let selectors = self.selectors.iter().chain(&later.selectors).cloned().collect();
        let both = Self { selectors, settle_ms: self.settle_ms.max(later.settle_ms), ..self.clone() };
        let fits = both.fits();
        if fits {
            *self = both;
        }
        fits
    }

    /// Becomes a purge of everything that drops no less than itself and `later`.
    pub fn collapse(&mut self, later: &Self) {
        self.selectors = vec![Selector::All];
        self.settle_ms = self.settle_ms.max(later.settle_ms);
        if later.mode == PurgeMode::Hard {
            self.mode = PurgeMode::Hard;
        }
    }
}

/// How often the process says that it is there, and how much it has told: a gateway that has heard less has missed something.
pub const HELLO_INTERVAL: Duration = Duration::from_secs(60);

/// The name of a process on the bus.
pub type Publisher = [u8; 8];

/// The name as people see it: 16 hexadecimal digits.
pub fn process_name(publisher: Publisher) -> String {
    format!("{:016x}", u64::from_be_bytes(publisher))
}

/// Seals the messages of this process, and opens those of all.
pub struct MessageSeal {
    fleet: String,
    publisher: Publisher,
    sealer: Sealer,
    opener: Opener,
}

impl MessageSeal {
    /// With a new random name for this process. `None` if the system has no random numbers.
    pub fn new(keys: &FleetKeys) -> Option<Self> {
        Some(Self {
            fleet: keys.fleet().to_owned(),
            publisher: random()?,
            sealer: Sealer::new(keys.bus_seal())?,
            opener: Opener::new(keys.bus_seal()),
        })
    }

    /// The name of this process.
    pub fn publisher(&self) -> Publisher {
        self.publisher
    }

    /// A message as it travels. `None` if the cryptography fails.
    pub fn seal(&self, number: u64, message: &Message) -> Option<Envelope> {
        let publisher = self.publisher;
        let plain = postcard::to_allocvec(message).ok()?;
        let sealed = self.sealer.seal(&self.bound_to(publisher, number), plain)?;
        Some(Envelope { publisher, number, sealed })
    }

    /// What an envelope holds; `None` if no gateway of the fleet has sealed just this.
    pub fn open(&self, envelope: &Envelope) -> Option<Message> {
        let bound_to = self.bound_to(envelope.publisher, envelope.number);
        postcard::from_bytes(&self.opener.open(&bound_to, &envelope.sealed)?).ok()
    }

    fn bound_to(&self, publisher: Publisher, number: u64) -> Vec<u8> {
        [b"railgate bus 1 ", self.fleet.as_bytes(), &publisher, &number.to_be_bytes()].concat()
    }
}

impl fmt::Debug for MessageSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageSeal").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::ShellSecret;

    fn seal() -> MessageSeal {
        let secret = ShellSecret::from_text(b"s3cret").unwrap();
        MessageSeal::new(&FleetKeys::new(&secret, "rails", "").unwrap()).unwrap()
    }

    fn purge(selectors: &[Selector], mode: PurgeMode, settle_s: u64) -> Purge {
        Purge::new(selectors, mode, Duration::from_secs(settle_s), Duration::from_millis(7))
    }

    fn user(name: &str) -> Selector {
        Selector::Username(name.to_owned())
    }

    #[test]
    fn a_message_is_read_by_any_gateway_of_the_fleet_and_only_as_it_was_sent() {
        let (one, other) = (seal(), seal());
        let sent = Message::Purge(purge(&[Selector::KeyId(7), user("root")], PurgeMode::Soft, 5));
        let origin = Origin { host: "pod-1".to_owned(), began_at_ms: 5 };
        let hello = Message::Hello { said_at_ms: 7, origin, question: Some([7; 16]) };
        for message in [sent.clone(), hello, Message::Bye] {
            let envelope = one.seal(3, &message).unwrap();
            assert_eq!(other.open(&envelope), Some(message));
            assert_eq!(other.open(&Envelope { number: 4, ..envelope.clone() }), None);
            assert_eq!(other.open(&Envelope { publisher: other.publisher(), ..envelope }), None);
        }
        let size = one.seal(1, &sent).unwrap().sealed.len();
        assert!(size < 100, "{size} bytes");
    }

    #[test]
    fn purges_share_a_message_if_they_do_the_same_and_fit() {
        let mut one = purge(&[Selector::KeyId(1)], PurgeMode::Hard, 1);
        assert!(!one.absorb(&purge(&[Selector::KeyId(2)], PurgeMode::Soft, 9)));
        assert!(one.absorb(&Purge { accepted_at_ms: 99, ..purge(&[user("a")], PurgeMode::Hard, 5) }));
        let both = purge(&[Selector::KeyId(1), user("a")], PurgeMode::Hard, 5);
        assert_eq!(one, both, "the delay counts from the first");
        let many: Vec<Selector> = (0..255).map(Selector::UserId).collect();
        assert!(!one.absorb(&purge(&many, PurgeMode::Hard, 5)));
        assert_eq!(one, both);
    }

    #[test]
    fn what_is_too_large_for_a_message_means_everything() {
        let many: Vec<Selector> = (0..257).map(Selector::UserId).collect();
        for selectors in [&many[..], &[user(&"x".repeat(16 * 1024 + 1))]] {
            let purge = purge(selectors, PurgeMode::Soft, 0);
            assert_eq!((purge.selectors, purge.mode), (vec![Selector::All], PurgeMode::Soft));
        }
        assert_eq!(purge(&many[1..], PurgeMode::Soft, 0).selectors.len(), 256);
    }

    #[test]
    fn everything_is_dropped_if_anything_of_it_was() {
        for (one, other, both) in [
            (PurgeMode::Soft, PurgeMode::Soft, PurgeMode::Soft),
            (PurgeMode::Soft, PurgeMode::Hard, PurgeMode::Hard),
            (PurgeMode::Hard, PurgeMode::Soft, PurgeMode::Hard),
        ] {
            let mut collapsed = purge(&[Selector::KeyId(1)], one, 1);
            collapsed.collapse(&purge(&[Selector::KeyId(2)], other, 3));
            assert_eq!(collapsed, purge(&[Selector::All], both, 3));
        }
    }
}
