//! How old an answer may be, and what it may be used for at which age.
//!
//! An answer is *fresh* for its time to live. After that it is *stale*: for some time it may be used
//! while Rails is asked again (RFC 5861 §3), and for some time in place of an answer that
//! Rails fails to give (§4). After that it is unusable. Pure: ages in, freshness out.

use std::time::Duration;

use super::kind::EntryKind;
use crate::route::Caching;

/// How long answers of one endpoint may be used. Zero means: not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// How long a key row or a user is fresh.
    pub ttl: Duration,
    /// The same for the 404 of an unknown key and the `null` of an unknown user. They are never used
    /// stale: "there is no such key" locks a user out.
    pub negative_ttl: Duration,
    /// How long after its `ttl` an answer may be used while Rails is asked again.
    pub stale_while_revalidate: Duration,
    /// How long after its `ttl` an answer may be used while Rails fails.
    pub stale_if_error: Duration,
}

/// The lifetimes of all endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of SSH keys.
    pub authorized_keys: Lifetime,
    /// Of users.
    pub discover: Lifetime,
    /// How long the instance's state is fresh. It is never used stale: whether Rails is healthy is just
    /// what the endpoint is for (contract §3.3).
    pub check: Duration,
    /// By up to how many percent a `ttl` is cut at random, so that entries which were stored together do
    /// not expire together.
    pub jitter_percent: u8,
}

impl Default for Lifetimes {
    fn default() -> Self {
        let keys_and_users = Lifetime {
            ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(5),
            stale_while_revalidate: Duration::from_secs(30),
            stale_if_error: Duration::from_secs(3_600),
        };
        Self {
            authorized_keys: keys_and_users,
            discover: keys_and_users,
            check: Duration::from_secs(1),
            jitter_percent: 10,
        }
    }
}

impl Lifetimes {
    /// Nothing is kept.
    pub fn none() -> Self {
        let (authorized_keys, discover) = (Lifetime::default(), Lifetime::default());
        Self { authorized_keys, discover, check: Duration::ZERO, jitter_percent: 0 }
    }

    /// The greatest age at which an entry of this kind is usable, which is how long it stays in memory if
    /// nothing asks for it.
    pub fn max_age(&self, kind: EntryKind) -> Duration {
        let endpoints = [Caching::AuthorizedKeys, Caching::Discover, Caching::Check];
        let max_ages = endpoints.into_iter().map(|caching| self.age_limits(caching, kind).max_age());
        max_ages.max().unwrap_or_default()
    }

    /// Whether answers of this endpoint are cached at all.
    pub fn is_enabled(&self, caching: Caching) -> bool {
        let kinds = [EntryKind::Positive, EntryKind::Negative];
        kinds.iter().any(|kind| !self.age_limits(caching, *kind).is_disabled())
    }

    /// Up to which ages an answer may be used.
    pub fn age_limits(&self, caching: Caching, kind: EntryKind) -> AgeLimits {
        let lifetime = match caching {
            Caching::AuthorizedKeys => self.authorized_keys,
            Caching::Discover => self.discover,
            Caching::Check => Lifetime { ttl: self.check, ..Lifetime::default() },
            Caching::Never => Lifetime::default(),
        };
        match kind {
            EntryKind::Positive => {
                let until = |window: Duration| if window.is_zero() { window } else { lifetime.ttl + window };
                let while_revalidate = until(lifetime.stale_while_revalidate);
                AgeLimits::new(lifetime.ttl, while_revalidate, until(lifetime.stale_if_error))
            }
            EntryKind::Negative => AgeLimits::new(lifetime.negative_ttl, Duration::ZERO, Duration::ZERO),
        }
    }
}

/// The ages, in milliseconds, at which an answer stops being fresh, usable while Rails is asked again, and usable
/// while Rails fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct AgeLimits {
    fresh: u32,
    stale_while_revalidate: u32,
    stale_if_error: u32,
}

/// What an answer may be used for (RFC 9111 §4.2, RFC 5861).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// May be served without asking Rails.
    Fresh,
    /// May be served while Rails is asked again.
    StaleWhileRevalidate,
    /// May be served if Rails fails.
    StaleIfError,
    /// The same, but not while Rails is just coming back: a purge of it may have been missed.
    Doubted,
}

impl AgeLimits {
    /// Each counts from when Rails was asked, not from the end of the one before.
    pub fn new(fresh: Duration, stale_while_revalidate: Duration, stale_if_error: Duration) -> Self {
        let ms = |age: Duration| u32::try_from(age.as_millis()).unwrap_or(u32::MAX);
        Self {
            fresh: ms(fresh),
            stale_while_revalidate: ms(stale_while_revalidate),
            stale_if_error: ms(stale_if_error),
        }
    }

    /// For an answer that says itself when it expires.
    #[must_use]
    pub fn capped_at(self, age: Duration) -> Self {
        self.min(Self::new(age, age, age))
    }

    /// The lower of each.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            fresh: self.fresh.min(other.fresh),
            stale_while_revalidate: self.stale_while_revalidate.min(other.stale_while_revalidate),
            stale_if_error: self.stale_if_error.min(other.stale_if_error),
        }
    }

    /// Fresh for less: `percent` hundredths cut off for the largest `random`, nothing for the smallest.
    #[must_use]
    pub fn with_jitter(self, percent: u8, random: u16) -> Self {
        let cut =
            u64::from(self.fresh) * u64::from(percent) * u64::from(random) / (100 * u64::from(u16::MAX));
        let cut = u32::try_from(cut).unwrap_or(u32::MAX);
        Self { fresh: self.fresh.saturating_sub(cut).max(self.fresh.min(1)), ..self }
    }

    /// For an answer that counts as stale, however young it is.
    #[must_use]
    pub fn without_fresh(self) -> Self {
        Self { fresh: 0, ..self }
    }

    /// Fresh for no longer than this.
    #[must_use]
    pub fn with_fresh_at_most(self, age: Duration) -> Self {
        Self { fresh: Self::new(age, age, age).fresh.min(self.fresh), ..self }
    }

    /// For an answer that may not be used while Rails is asked again.
    #[must_use]
    pub fn without_stale_while_revalidate(self) -> Self {
        Self { stale_while_revalidate: 0, ..self }
    }

    /// For an answer that may not be used if Rails fails.
    #[must_use]
    pub fn without_stale_if_error(self) -> Self {
        Self { stale_if_error: 0, ..self }
    }

    /// What an answer of this age may be used for; `None` if for nothing.
    pub fn freshness(self, age: Duration) -> Option<Freshness> {
        let age = age.as_millis();
        if age < self.fresh.into() {
            Some(Freshness::Fresh)
        } else if age < self.stale_while_revalidate.into() {
            Some(Freshness::StaleWhileRevalidate)
        } else if age < self.stale_if_error.into() {
            Some(Freshness::StaleIfError)
        } else {
            None
        }
    }

    /// For how long an answer of this age stays fresh.
    pub fn fresh_for(self, age: Duration) -> Duration {
        Duration::from_millis(self.fresh.into()).saturating_sub(age)
    }

    /// Whole seconds for which an answer of this age stays fresh; below 0 once it is stale.
    pub fn remaining_ttl_s(self, age: Duration) -> i64 {
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        (i64::from(self.fresh) - age) / 1_000
    }

    /// Whether nothing is to be stored.
    pub fn is_disabled(self) -> bool {
        self.fresh == 0
    }

    /// Whether there is an age at which an answer may be used.
    pub fn is_ever_usable(self) -> bool {
        !self.max_age().is_zero()
    }

    /// The greatest age at which an answer may be used.
    pub fn max_age(self) -> Duration {
        Duration::from_millis(self.fresh.max(self.stale_while_revalidate).max(self.stale_if_error).into())
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
    fn freshness_declines_with_age() {
        let limits = Lifetimes::default().age_limits(Caching::AuthorizedKeys, EntryKind::Positive);
        for (age, freshness) in [
            (0, Some(Freshness::Fresh)),
            (59_999, Some(Freshness::Fresh)),
            (60_000, Some(Freshness::StaleWhileRevalidate)),
            (89_999, Some(Freshness::StaleWhileRevalidate)),
            (90_000, Some(Freshness::StaleIfError)),
            (3_659_999, Some(Freshness::StaleIfError)),
            (3_660_000, None),
        ] {
            assert_eq!(limits.freshness(Duration::from_millis(age)), freshness, "{age}");
        }
        assert_eq!((limits.remaining_ttl_s(seconds(18)), limits.remaining_ttl_s(seconds(70))), (42, -10));
    }

    #[test]
    fn negative_entries_and_the_instance_are_never_stale() {
        let lifetimes = Lifetimes::default();
        for (caching, kind, ttl) in [
            (Caching::AuthorizedKeys, EntryKind::Negative, 5),
            (Caching::Discover, EntryKind::Negative, 5),
            (Caching::Check, EntryKind::Positive, 1),
        ] {
            assert_eq!(
                lifetimes.age_limits(caching, kind).freshness(seconds(ttl)),
                None,
                "{caching:?} {kind:?}"
            );
        }
        assert!(lifetimes.age_limits(Caching::Check, EntryKind::Negative).is_disabled());
        assert!(lifetimes.age_limits(Caching::Never, EntryKind::Positive).is_disabled());
    }

    proptest! {
        #[test]
        fn no_answer_is_usable_beyond_its_windows_or_its_expiry_date(
            ttl in 1u64..100_000, revalidate in 0u64..100_000, on_error in 0u64..100_000,
            end in 1u64..200_000, percent in 0u8..=50, draw: u16, age in 0u64..300_000,
        ) {
            let ms = Duration::from_millis;
            let (whole, age) = (AgeLimits::new(ms(ttl), ms(ttl + revalidate), ms(ttl + on_error)), ms(age));
            let limits = whole.capped_at(ms(end)).with_jitter(percent, draw);
            let freshness = limits.freshness(age);
            match freshness {
                Some(Freshness::Fresh) => prop_assert!(age < ms(ttl)),
                Some(Freshness::StaleWhileRevalidate) => prop_assert!(age < ms(ttl + revalidate)),
                Some(Freshness::StaleIfError) => prop_assert!(age < ms(ttl + on_error)),
                Some(Freshness::Doubted) => prop_assert!(false, "an age alone raises no doubt"),
                None => prop_assert!(whole.capped_at(ms(end)).freshness(age).is_none()),
            }
            prop_assert!(freshness.is_none() || age < ms(end));
            prop_assert!(limits.freshness(Duration::ZERO) == Some(Freshness::Fresh));
            let least = ttl.min(end) * (100 - u64::from(percent)) / 100;
            prop_assert!(age >= ms(least) || freshness == Some(Freshness::Fresh), "cut by more than {percent} %");
        }
    }
}
