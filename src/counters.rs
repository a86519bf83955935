//! Counters by the values of a metric label: one for each variant of an enum.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// An enum whose variants are the values of a label; implemented by `label!`.
pub trait Label: Copy + 'static {
    /// One counter for each variant.
    type Cells: AsRef<[AtomicU64]> + Default + fmt::Debug;

    /// All variants, in the order in which they are declared and exposed.
    const VALUES: &'static [Self];

    /// The place in [`Self::VALUES`].
    fn index(self) -> usize;

    /// The value in metrics.
    fn as_str(self) -> &'static str;
}

/// Implements [`Label`](crate::counters::Label) for an enum without fields that has an array `ALL` of its variants
/// and a method `as_str`. That `ALL` has each at its place is checked at compile time.
macro_rules! label {
    ($label:ty) => {
        impl $crate::counters::Label for $label {
            type Cells = [::std::sync::atomic::AtomicU64; <$label>::ALL.len()];

            const VALUES: &'static [Self] = &<$label>::ALL;

            fn index(self) -> usize {
                self as usize
            }

            fn as_str(self) -> &'static str {
                <$label>::as_str(self)
            }
        }

        const _: () = {
            let mut rest: &[$label] = &<$label>::ALL;
            let mut index = 0;
            while let [label, behind @ ..] = rest {
                assert!(*label as usize == index, "ALL has to be in the order of declaration");
                (rest, index) = (behind, index + 1);
            }
        };
    };
}

pub(crate) use label;

/// One counter for each value of a label.
#[derive(Debug)]
pub struct Counters<L: Label>(L::Cells);

impl<L: Label> Default for Counters<L> {
    fn default() -> Self {
        Self(L::Cells::default())
    }
}

impl<L: Label> Counters<L> {
    /// Adds `count` to one of them.
    #[inline]
    pub fn add(&self, label: L, count: u64) {
        if let Some(cell) = self.0.as_ref().get(label.index()) {
            cell.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Adds 1 to one of them.
    #[inline]
    pub fn increment(&self, label: L) {
        self.add(label, 1);
    }

    /// Subtracts `count` from one of them, for those that are gauges.
    #[inline]
    pub fn subtract(&self, label: L, count: u64) {
        if let Some(cell) = self.0.as_ref().get(label.index()) {
            cell.fetch_sub(count, Ordering::Relaxed);
        }
    }

    /// The value of one of them.
    pub fn get(&self, label: L) -> u64 {
        self.0.as_ref().get(label.index()).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// All of them, in the order of [`Label::VALUES`].
    pub fn iter(&self) -> impl Iterator<Item = (L, u64)> {
        L::VALUES.iter().zip(self.0.as_ref()).map(|(label, cell)| (*label, cell.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Colour {
        Red,
        Green,
    }

    impl Colour {
        const ALL: [Self; 2] = [Self::Red, Self::Green];

        const fn as_str(self) -> &'static str {
            match self {
                Self::Red => "red",
                Self::Green => "green",
            }
        }
    }

    label!(Colour);

    #[test]
    fn each_label_has_a_counter_of_its_own() {
        let counters = Counters::default();
        counters.add(Colour::Green, 3);
        counters.increment(Colour::Red);
        counters.subtract(Colour::Green, 1);
        assert_eq!((counters.get(Colour::Red), counters.get(Colour::Green)), (1, 2));
        let all: Vec<_> = counters.iter().map(|(label, count)| (Label::as_str(label), count)).collect();
        assert_eq!(all, [("red", 1), ("green", 2)]);
    }
}
