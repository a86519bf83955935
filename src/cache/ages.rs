//! How old an answer may be, and what it is good for at which age.
//!
//! An answer is *fresh* for its time to live. After that it is *stale*: for some time it may be used
//! once more while Rails is asked anew (RFC 5861 §3), and for some time instead of an answer that
//! Rails fails to give (§4). Then it is gone. Pure: ages in, phases out.

use std::time::Duration;

use super::entry::Sign;
use crate::route::Caching;

/// How long answers of one endpoint are good for what. Zero means: not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// How long a key row or a user is fresh.
    pub ttl: Duration,
    /// The same for the 404 of an unknown key and the `null` of an unknown user. They are never used
    /// stale: "there is no such key" locks somebody out.
    pub negative_ttl: Duration,
    /// How long after its `ttl` an answer may be used while Rails is asked anew.
    pub stale_while_revalidate: Duration,
    /// How long after its `ttl` an answer may be used while Rails fails.
    pub stale_if_error: Duration,
}

/// How long answers are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of keys.
    pub authorized_keys: Lifetime,
    /// Of users.
    pub discover: Lifetime,
    /// How long the instance's state is fresh. It is never used stale: whether Rails is well is just
    /// what it is asked for (contract §3.3).
    pub check: Duration,
    /// By up to how many percent a `ttl` is cut at random, so that what was stored together does not
    /// expire together.
    pub jitter_percent: u8,
}

impl Default for Lifetimes {
    fn default() -> Self {
        let known = Lifetime {
            ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(5),
            stale_while_revalidate: Duration::from_secs(30),
            stale_if_error: Duration::from_secs(3_600),
        };
        Self { authorized_keys: known, discover: known, check: Duration::from_secs(1), jitter_percent: 10 }
    }
}

impl Lifetimes {
    /// The greatest age at which an answer of one sign is good for anything, which bounds how long
    /// memory has to keep it.
    pub fn longest(&self, sign: Sign) -> Duration {
        let kinds = [Caching::AuthorizedKeys, Caching::Discover, Caching::Check];
        kinds.into_iter().map(|caching| self.of(caching, sign).end()).max().unwrap_or_default()
    }

    /// Whether anything of this kind is kept at all.
    pub fn keeps(&self, caching: Caching) -> bool {
        [Sign::Positive, Sign::Negative].iter().any(|sign| !self.of(caching, *sign).is_none())
    }

    /// What an answer is good for at which age.
    pub fn of(&self, caching: Caching, sign: Sign) -> Ages {
        let lifetime = match caching {
            Caching::AuthorizedKeys => self.authorized_keys,
            Caching::Discover => self.discover,
            Caching::Check => Lifetime { ttl: self.check, ..Lifetime::default() },
            Caching::Never => Lifetime::default(),
        };
        match sign {
            Sign::Positive => {
                let until = |window: Duration| if window.is_zero() { window } else { lifetime.ttl + window };
                let revalidate = until(lifetime.stale_while_revalidate);
                Ages::new(lifetime.ttl, revalidate, until(lifetime.stale_if_error))
            }
            Sign::Negative => Ages::new(lifetime.negative_ttl, Duration::ZERO, Duration::ZERO),
        }
    }
}

/// Up to which age, in milliseconds, an answer is what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Ages {
    fresh: u32,
    revalidate: u32,
    on_error: u32,
}

/// What an answer is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// To be used.
    Fresh,
    /// To be used while Rails is asked anew.
    Revalidate,
    /// To be used if Rails fails.
    OnError,
}

impl Ages {
    /// Fresh, usable while Rails is asked, usable if it fails: each up to that age.
    pub fn new(fresh: Duration, revalidate: Duration, on_error: Duration) -> Self {
        let ms = |age: Duration| u32::try_from(age.as_millis()).unwrap_or(u32::MAX);
        Self { fresh: ms(fresh), revalidate: ms(revalidate), on_error: ms(on_error) }
    }

    /// The same for an answer that says itself when it ends.
    #[must_use]
    pub fn until(self, end: Duration) -> Self {
        self.within(Self::new(end, end, end))
    }

    /// The same where less may hold.
    #[must_use]
    pub fn within(self, most: Self) -> Self {
        Self {
            fresh: self.fresh.min(most.fresh),
            revalidate: self.revalidate.min(most.revalidate),
            on_error: self.on_error.min(most.on_error),
        }
    }

    /// Fresh for less: `percent` hundredths cut off for the largest `draw`, nothing for the smallest.
    #[must_use]
    pub fn cut(self, percent: u8, draw: u16) -> Self {
        let cut = u64::from(self.fresh) * u64::from(percent) * u64::from(draw) / (100 * u64::from(u16::MAX));
        let cut = u32::try_from(cut).unwrap_or(u32::MAX);
        Self { fresh: self.fresh.saturating_sub(cut).max(self.fresh.min(1)), ..self }
    }

    /// The same for an answer that is not fresh any more, however young it is.
    #[must_use]
    pub fn softened(self) -> Self {
        Self { fresh: 0, ..self }
    }

    /// What an answer of this age is good for, if it is good for anything.
    pub fn phase(self, age: Duration) -> Option<Phase> {
        let age = age.as_millis();
        if age < self.fresh.into() {
            Some(Phase::Fresh)
        } else if age < self.revalidate.into() {
            Some(Phase::Revalidate)
        } else if age < self.on_error.into() {
            Some(Phase::OnError)
        } else {
            None
        }
    }

    /// Whole seconds for which an answer of this age stays fresh; less than 0 since it is not.
    pub fn fresh_for(self, age: Duration) -> i64 {
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        (i64::from(self.fresh) - age) / 1_000
    }

    /// Nothing that has to be kept.
    pub fn is_none(self) -> bool {
        self.fresh == 0
    }

    /// Whether there is an age at which an answer is good for anything.
    pub fn is_good_for_anything(self) -> bool {
        !self.end().is_zero()
    }

    fn end(self) -> Duration {
        Duration::from_millis(self.fresh.max(self.revalidate).max(self.on_error).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn an_answer_goes_through_its_phases_in_order() {
        let ages = Lifetimes::default().of(Caching::AuthorizedKeys, Sign::Positive);
        for (age, phase) in [
            (0, Some(Phase::Fresh)),
            (59_999, Some(Phase::Fresh)),
            (60_000, Some(Phase::Revalidate)),
            (89_999, Some(Phase::Revalidate)),
            (90_000, Some(Phase::OnError)),
            (3_659_999, Some(Phase::OnError)),
            (3_660_000, None),
        ] {
            assert_eq!(ages.phase(Duration::from_millis(age)), phase, "{age}");
        }
        assert_eq!((ages.fresh_for(seconds(18)), ages.fresh_for(seconds(70))), (42, -10));
    }

    #[test]
    fn what_must_not_be_stale_never_is() {
        let lifetimes = Lifetimes::default();
        for (caching, sign, ttl) in [
            (Caching::AuthorizedKeys, Sign::Negative, 5),
            (Caching::Discover, Sign::Negative, 5),
            (Caching::Check, Sign::Positive, 1),
        ] {
            assert_eq!(lifetimes.of(caching, sign).phase(seconds(ttl)), None, "{caching:?} {sign:?}");
        }
        assert!(lifetimes.of(Caching::Check, Sign::Negative).is_none());
        assert!(lifetimes.of(Caching::Never, Sign::Positive).is_none());
    }

    proptest! {
        #[test]
        fn no_answer_outlives_its_windows_or_its_own_end(
            ttl in 1u64..100_000, revalidate in 0u64..100_000, on_error in 0u64..100_000,
            end in 1u64..200_000, percent in 0u8..=50, draw: u16, age in 0u64..300_000,
        ) {
            let ms = Duration::from_millis;
            let (whole, age) = (Ages::new(ms(ttl), ms(ttl + revalidate), ms(ttl + on_error)), ms(age));
            let ages = whole.until(ms(end)).cut(percent, draw);
            let phase = ages.phase(age);
            match phase {
                Some(Phase::Fresh) => prop_assert!(age < ms(ttl)),
                Some(Phase::Revalidate) => prop_assert!(age < ms(ttl + revalidate)),
                Some(Phase::OnError) => prop_assert!(age < ms(ttl + on_error)),
                None => prop_assert!(whole.until(ms(end)).phase(age).is_none()),
            }
            prop_assert!(phase.is_none() || age < ms(end));
            prop_assert!(ages.phase(Duration::ZERO) == Some(Phase::Fresh));
            let least = ttl.min(end) * (100 - u64::from(percent)) / 100;
            prop_assert!(age >= ms(least) || phase == Some(Phase::Fresh), "cut by more than {percent} %");
        }
    }
}
