//! The tokens that were verified last, so that the same one is not verified again with each request.
//!
//! GitLab Shell, Gitaly and kas sign a token for each request, but with times in whole seconds and nothing that is their
//! own: the tokens that are signed within one second are the same, whichever process and whichever request they are
//! for. (`jwtToken` of GitLab Shell, `jwtSignature` of kas.)
//!
//! Only tokens that were accepted get here, so a client without the secret can neither fill the places nor drive another
//! token out. What depends on the time is judged with each request. A new secret begins with no tokens.

use arc_swap::ArcSwapOption;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use zeroize::Zeroizing;

/// How many tokens are kept: those of that many seconds and secrets, if no two fall on the same place.
const PLACES: usize = 32;

/// A longer token is verified each time. Those of GitLab have 150 to 250 bytes.
const MAX_BYTES: usize = 1_024;

/// When a token is valid, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) issued: Option<i64>,
    pub(super) expires: i64,
    pub(super) not_before: Option<i64>,
}

/// See the module.
#[derive(Default)]
pub(super) struct VerifiedTokens {
    places: [ArcSwapOption<VerifiedToken>; PLACES],
}

struct VerifiedToken {
    token: Zeroizing<Box<[u8]>>,
    times: Times,
}

impl VerifiedTokens {
    /// The times of this token, if it was verified before.
    pub(super) fn get(&self, token: &[u8]) -> Option<Times> {
        let verified = self.place(token)?.load();
        let verified = verified.as_ref()?;
        // In constant time, as the comparison of signatures that this one replaces.
        verify_slices_are_equal(&verified.token, token).is_ok().then_some(verified.times)
    }

    /// Remembers a token that was verified, in place of an earlier one.
    pub(super) fn insert(&self, token: &[u8], times: Times) {
        let Some(place) = self.place(token).filter(|_| token.len() <= MAX_BYTES) else { return };
        place.store(Some(VerifiedToken { token: Zeroizing::new(token.into()), times }.into()));
    }

    /// By the end of the signature, which is as good as any hash of the token. The very last character holds only four
    /// bits of it.
    fn place(&self, token: &[u8]) -> Option<&ArcSwapOption<VerifiedToken>> {
        let [.., one, other, _] = token else { return None };
        self.places.get((usize::from(*one) * 7 + usize::from(*other)) % PLACES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { issued: Some(1), expires: 2, not_before: None };

    #[test]
    fn a_token_is_known_as_it_was_and_no_other_one() {
        let tokens = VerifiedTokens::default();
        assert_eq!(tokens.get(b"header.payload.signature"), None);
        tokens.insert(b"header.payload.signature", TIMES);
        assert_eq!(tokens.get(b"header.payload.signature"), Some(TIMES));
        let others: [&[u8]; 6] =
            [b"", b"re", b"header.payload.signaturf", b"Header.payload.signature", b"signature", b"are"];
        for other in others {
            assert_eq!(tokens.get(other), None, "{}", other.escape_ascii());
        }
    }

    #[test]
    fn few_and_short_tokens_are_kept() {
        let tokens = VerifiedTokens::default();
        let long = vec![b'a'; MAX_BYTES + 1];
        tokens.insert(&long, TIMES);
        assert_eq!(tokens.get(&long), None);
        tokens.insert(&long[1..], TIMES);
        assert_eq!(tokens.get(&long[1..]), Some(TIMES));
        let all: Vec<Vec<u8>> = (0..10 * PLACES).map(|number| format!("token{number:04}.").into()).collect();
        for token in &all {
            tokens.insert(token, TIMES);
        }
        let kept = all.iter().filter(|token| tokens.get(token).is_some()).count();
        assert!((1..=PLACES).contains(&kept), "{kept} tokens");
    }

    #[test]
    fn tokens_spread_over_the_places() {
        use base64::Engine as _;
        let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let tokens = VerifiedTokens::default();
        let mut random = fastrand::Rng::with_seed(7);
        let mut signature = || engine.encode([(); 32].map(|()| random.u8(..)));
        for _ in 0..1_000 {
            tokens.insert(signature().as_bytes(), TIMES);
        }
        assert!(tokens.places.iter().all(|place| place.load().is_some()));
    }
}
