//! Values of a unique meter that this process knows about: a bounded memory, of which nothing's safety depends.
//!
//! A value that was forgotten is asked for again; its mark beside the pool says then that it has its unit.

use std::collections::BTreeMap;

use crate::{id::ValueHash, proof::Proof};

/// So many values of a window are remembered at least, and twice as many at most.
const VALUES_MAX: usize = 1_024;

/// What was said of a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    /// It has its unit in this window.
    Counted,
    /// It is beyond the limit, and counted as such.
    Over,
    /// There was no unit for it: proof by this generation, after so many notices.
    Denied {
        /// How long it counts.
        proof: Proof,
        /// Notices that the bucket had had.
        notices: u32,
        /// The pool's.
        generation: u64,
    },
}

/// Values of one window.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values {
    young: BTreeMap<ValueHash, Told>,
    old: BTreeMap<ValueHash, Told>,
    /// Values in the request that is under way, in its order.
    pub(crate) asked: Vec<ValueHash>,
}

impl Values {
    /// What was said of a value.
    pub(crate) fn get(&self, value: ValueHash) -> Option<Told> {
        let found = self.young.get(&value).or_else(|| self.old.get(&value));
        found.copied()
    }

    /// Remembers what was said of a value; may forget another.
    pub(crate) fn set(&mut self, value: ValueHash, told: Told) {
        if self.young.len() >= VALUES_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(value, told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many values come, twice the bound are kept at most, and the newest of them always.
    #[test]
    fn memory_is_bounded_and_keeps_the_newest() {
        let mut values = Values::default();
        for number in 0..10_000_u128 {
            values.set(ValueHash(number.to_be_bytes()), Told::Counted);
            assert!(values.young.len().saturating_add(values.old.len()) <= 2 * VALUES_MAX);
        }
        for number in 10_000 - VALUES_MAX as u128..10_000 {
            assert_eq!(
                Some(Told::Counted),
                values.get(ValueHash(number.to_be_bytes()))
            );
        }
        assert_eq!(None, values.get(ValueHash(0_u128.to_be_bytes())));
    }
}
