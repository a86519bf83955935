//! The names and the seals of a fleet, all derived from the secret that GitLab Shell and Rails share.
//!
//! Gateways with another secret, or in front of another Rails, derive other ones: they form a fleet of their own, and
//! neither hear nor read anything of this one. One who can only read or write Valkey learns which fleet an entry belongs
//! to, how long it is and when it came, and nothing else.
//!
//! Random nonces under one key for the whole fleet would wear it out (2³² messages). So each process seals with a key
//! of its own, derived with a random salt that travels in front of what is sealed, and counts its nonces.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;

use crate::cache::Key;
use crate::secret::ShellSecret;

/// What tells one fleet from another, and what its seals are made of.
#[derive(Clone)]
pub struct FleetKeys {
    /// 8 bytes in hexadecimal.
    fleet: String,
    names: hmac::Key,
    bus: SealKey,
    answers: SealKey,
}

/// From which each process derives the key that it seals with.
#[derive(Clone)]
pub struct SealKey(Prk);

const SALT_LEN: usize = 16;
const COUNT_LEN: usize = 8;

/// How many processes' keys are remembered. Each start of a gateway adds one.
const MAX_OPENERS: usize = 10_000;

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl FleetKeys {
    /// Of the fleet `name` of the gateways that have this secret. `identity` is any text that tells one Rails from another.
    /// `None` if the cryptography fails, which it does not do with these lengths.
    pub fn new(secret: &ShellSecret, identity: &str, name: &str) -> Option<Self> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret.as_hmac_key());
        let master = hmac::sign(&secret, format!("railgate fleet 1\0{identity}\0{name}").as_bytes());
        let master = Prk::new_less_safe(HKDF_SHA256, master.as_ref());
        let fleet: [u8; 8] = derive(&master, b"fleet")?;
        let names: [u8; 32] = derive(&master, b"names")?;
        let seal_key = |purpose| derive::<32>(&master, purpose).map(|key| SealKey(prk(&key)));
        Some(Self {
            fleet: format!("{:016x}", u64::from_be_bytes(fleet)),
            names: hmac::Key::new(hmac::HMAC_SHA256, &names),
            bus: seal_key(b"bus")?,
            answers: seal_key(b"answers")?,
        })
    }

    /// The name of the fleet as keys in Valkey have it: 16 hexadecimal digits.
    pub fn fleet(&self) -> &str {
        &self.fleet
    }

    /// The key of the stream. All keys have the same hash tag, and so are on one node of a cluster.
    pub fn bus(&self) -> String {
        format!("railgate:{{{}}}:bus", self.fleet)
    }

    /// The keys of the answer for `key`, and of the lock of the gateway that asks Rails for it.
    pub fn answer_and_lock(&self, key: &Key) -> Option<[String; 2]> {
        let tag = hmac::sign(&self.names, &postcard::to_allocvec(key).ok()?);
        let name = URL_SAFE_NO_PAD.encode(tag.as_ref().get(..16)?);
        Some(["a", "l"].map(|kind| format!("railgate:{{{}}}:{kind}:{name}", self.fleet)))
    }

    /// For messages on the stream.
    pub fn bus_seal(&self) -> &SealKey {
        &self.bus
    }

    /// For shared answers.
    pub fn answer_seal(&self) -> &SealKey {
        &self.answers
    }
}

fn prk(key: &[u8; 32]) -> Prk {
    Prk::new_less_safe(HKDF_SHA256, key)
}

fn derive<const N: usize>(from: &Prk, purpose: &[u8]) -> Option<[u8; N]> {
    let mut key = [0; N];
    from.expand(&[b"railgate fleet 1 ", purpose], Length(N)).ok()?.fill(&mut key).ok()?;
    Some(key)
}

impl SealKey {
    fn of_process(&self, salt: &[u8; SALT_LEN]) -> Option<LessSafeKey> {
        let purpose: [&[u8]; 2] = [b"railgate seal 1 ", salt];
        let derived = self.0.expand(&purpose, &AES_256_GCM).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(derived)))
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey([redacted])")
    }
}

impl fmt::Debug for FleetKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetKeys").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

/// Random bytes, such as the name of a process on the bus. `None` if the system has none.
pub fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).ok()?;
    Some(bytes)
}

/// Seals with the key of this process.
pub struct Sealer {
    salt: [u8; SALT_LEN],
    key: LessSafeKey,
    sealed: AtomicU64,
}

impl Sealer {
    /// With a new random salt. `None` if the system has no random numbers.
    pub fn new(key: &SealKey) -> Option<Self> {
        let salt = random()?;
        Some(Self { salt, key: key.of_process(&salt)?, sealed: AtomicU64::new(0) })
    }

    /// `plain`, so that only gateways of the fleet can read it, and only together with `bound_to`.
    pub fn seal(&self, bound_to: &[u8], mut plain: Vec<u8>) -> Option<Vec<u8>> {
        let count = self.sealed.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        self.key.seal_in_place_append_tag(nonce(count), Aad::from(bound_to), &mut plain).ok()?;
        Some([self.salt.as_slice(), &count, &plain].concat())
    }
}

/// Opens what any process of the fleet has sealed.
pub struct Opener {
    key: SealKey,
    /// By salt; only of processes that have sealed something, so that others cannot fill it.
    known: Mutex<HashMap<[u8; SALT_LEN], Arc<LessSafeKey>>>,
}

impl Opener {
    /// For what was sealed with the same key.
    pub fn new(key: &SealKey) -> Self {
        Self { key: key.clone(), known: Mutex::default() }
    }

    /// What was sealed; `None` if no gateway of the fleet has sealed it, or not with this `bound_to`.
    pub fn open(&self, bound_to: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (salt, rest) = sealed.split_first_chunk::<SALT_LEN>()?;
        let (count, rest) = rest.split_first_chunk::<COUNT_LEN>()?;
        let known = self.known.lock().get(salt).cloned();
        let is_known = known.is_some();
        let key = known.map_or_else(|| self.key.of_process(salt).map(Arc::new), Some)?;
        let mut plain = rest.to_vec();
        let length = key.open_in_place(nonce(*count), Aad::from(bound_to), &mut plain).ok()?.len();
        plain.truncate(length);
        if !is_known {
            self.remember(*salt, key);
        }
        Some(plain)
    }

    fn remember(&self, salt: [u8; SALT_LEN], key: Arc<LessSafeKey>) {
        let mut known = self.known.lock();
        if known.len() >= MAX_OPENERS {
            known.clear();
        }
        known.insert(salt, key);
    }
}

fn nonce(count: [u8; COUNT_LEN]) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    let (_, end) = nonce.split_at_mut(NONCE_LEN - COUNT_LEN);
    end.copy_from_slice(&count);
    Nonce::assume_unique_for_key(nonce)
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("sealed", &self.sealed).finish_non_exhaustive()
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("known", &self.known.lock().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn keys(secret: &str, identity: &str, name: &str) -> FleetKeys {
        FleetKeys::new(&ShellSecret::from_text(secret.as_bytes()).unwrap(), identity, name).unwrap()
    }

    #[test]
    fn another_secret_rails_or_name_makes_another_fleet() {
        let own = keys("s3cret", "http://rails", "");
        assert_eq!(own.fleet(), keys("s3cret", "http://rails", "").fleet(), "the same for every gateway");
        let sealed = Sealer::new(own.bus_seal()).unwrap().seal(b"", b"purge".to_vec()).unwrap();
        for (secret, identity, name) in
            [("s3creT", "http://rails", ""), ("s3cret", "http://rail", "s"), ("s3cret", "http://rails", "x")]
        {
            let other = keys(secret, identity, name);
            assert_ne!(own.fleet(), other.fleet(), "{secret} {identity} {name}");
            assert_eq!(Opener::new(other.bus_seal()).open(b"", &sealed), None);
        }
        assert_eq!(Opener::new(own.answer_seal()).open(b"", &sealed), None, "one purpose, one key");
        assert_eq!(Opener::new(own.bus_seal()).open(b"", &sealed).as_deref(), Some(&b"purge"[..]));
    }

    #[test]
    fn keys_in_valkey_tell_the_fleet_and_nothing_of_what_they_are_about() {
        let own = keys("s3cret", "rails", "");
        let fleet = own.fleet();
        assert!(fleet.len() == 16 && fleet.bytes().all(|byte| byte.is_ascii_hexdigit()), "{fleet}");
        assert_eq!(own.bus(), format!("railgate:{{{fleet}}}:bus"));
        let users = ["root", "rubi"].map(|name| Key::UserByName(name.into()));
        let [[answer, lock], [other, _]] = users.map(|key| own.answer_and_lock(&key).unwrap());
        assert!(answer.starts_with(&format!("railgate:{{{fleet}}}:a:")) && answer != other, "{answer}");
        assert_eq!(lock, answer.replacen(":a:", ":l:", 1));
        assert!(!answer.contains("root"));
        assert!(!format!("{own:?} {:?}", own.bus_seal()).contains("Prk"), "{own:?}");
    }

    #[test]
    fn what_is_changed_moved_or_cut_does_not_open() {
        let own = keys("s3cret", "rails", "");
        let opener = Opener::new(own.bus_seal());
        let sealed = Sealer::new(own.bus_seal()).unwrap().seal(b"place", b"plain".to_vec()).unwrap();
        assert_eq!(opener.open(b"place", &sealed).as_deref(), Some(&b"plain"[..]));
        assert_eq!(opener.open(b"elsewhere", &sealed), None);
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opener.open(b"place", &flipped), None, "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert_eq!(opener.open(b"place", &sealed[..length]), None, "{length} bytes");
        }
        assert_eq!(opener.known.lock().len(), 1, "only who seals is remembered");
    }

    #[test]
    fn no_key_seals_two_with_one_nonce() {
        let own = keys("s3cret", "rails", "");
        let sealers = [(); 3].map(|()| Sealer::new(own.bus_seal()).unwrap());
        let heads: HashSet<Vec<u8>> = (0..300)
            .map(|number| sealers[number % 3].seal(b"", Vec::new()).unwrap()[..SALT_LEN + COUNT_LEN].to_vec())
            .collect();
        assert_eq!(heads.len(), 300);
    }
}
