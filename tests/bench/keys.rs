//! SSH public keys for the requests: as many as needed, the same in every run.

/// A small pseudo-random number generator (`SplitMix64`). The load and Rails get the same keys from the same
/// seed.
pub(crate) struct RandomNumbers(pub(crate) u64);

impl RandomNumbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1].
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Key number `number` in Base64, as sshd's `%k` gives it: even ones are Ed25519, odd ones RSA with
/// 2048 bits. Both lengths are multiples of four characters, so each is whole bytes with no bits over.
pub(crate) fn key(number: u64) -> String {
    let (prefix, length) = match number % 2 {
        0 => ("AAAAC3NzaC1lZDI1NTE5AAAAI", 68),
        _ => ("AAAAB3NzaC1yc2EAAAADAQABAAABAQ", 372),
    };
    let mut key = String::with_capacity(length);
    key.push_str(prefix);
    let mut numbers = RandomNumbers(number.wrapping_mul(0xD134_2543_DE82_EF95) ^ 0x5EED);
    while key.len() < length {
        let mut bits = numbers.next();
        for _ in 0..10.min(length - key.len()) {
            key.push(char::from(ALPHABET.get((bits & 63) as usize).copied().unwrap_or(b'A')));
            bits >>= 6;
        }
    }
    key
}

/// The key as GitLab Shell escapes it in a query.
pub(crate) fn escaped(key: &str) -> String {
    key.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

/// The reverse of `escaped`.
pub(crate) fn unescaped(text: &str) -> String {
    text.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=")
}
