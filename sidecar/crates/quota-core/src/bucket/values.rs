//! Values of a unique meter that this process knows about: a bounded memory, of which nothing's safety depends.
//!
//! A value that was forgotten is asked for again; its mark beside the pool says then that it has its unit.

use std::collections::BTreeMap;

use crate::{
    id::ValueHash,
    mutant::{self, Mutant},
    proof::Proof,
    request::Units,
};

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

/// Which request marked a value: the pool's generation, and the number of the request there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark {
    /// The pool's.
    pub(crate) generation: u64,
    /// Request.
    pub(crate) seq: u64,
}

/// Marks that a request asks the pool to take back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SentBack {
    /// The pool's.
    pub(crate) generation: u64,
    /// Cumulative return before it, as the request says.
    pub(crate) returned_cum: Units,
    /// Each value, and the request that marked it.
    pub(crate) marks: Vec<(ValueHash, u64)>,
}

/// Values of one window.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values {
    young: BTreeMap<ValueHash, Told>,
    old: BTreeMap<ValueHash, Told>,
    /// Values in the request that is under way, in its order.
    pub(crate) asked: Vec<ValueHash>,
    /// Values that were marked for calls of this process of which none was admitted yet.
    fresh: BTreeMap<ValueHash, Mark>,
    /// Values whose mark no call needs: to be taken back.
    pub(crate) unwanted: Vec<(ValueHash, Mark)>,
    /// Values on whose marks a call was admitted since, which the pool does not know yet.
    settled: Vec<ValueHash>,
    /// Of these, how many the request under way tells.
    telling: usize,
    /// The request that takes marks back, until its outcome is known.
    pub(crate) sent_back: Option<SentBack>,
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

    /// Remembers a value that was marked for a call of this process, and by which request.
    pub(crate) fn set_marked(&mut self, value: ValueHash, mark: Mark) {
        self.set(value, Told::Counted);
        self.fresh.insert(value, mark);
    }

    /// Whether a call may be the first to count on a mark.
    pub(crate) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Notes that an admitted call counts on a value's mark: it stays.
    pub(crate) fn settle(&mut self, value: ValueHash) {
        if mutant::is(Mutant::CountedMarkTakenBack) {
            return;
        }
        if self.fresh.remove(&value).is_some() && self.settled.len() < VALUES_MAX {
            self.settled.push(value);
        }
    }

    /// Values to tell the pool of, `most` at most: their marks stay, whatever it loses.
    pub(crate) fn tell_settled(&mut self, most: usize) -> &[ValueHash] {
        self.telling = self.settled.len().min(most);
        self.settled.get(..self.telling).unwrap_or_default()
    }

    /// Forgets those that the pool was told of.
    pub(crate) fn settled_told(&mut self) {
        let told = std::mem::take(&mut self.telling).min(self.settled.len());
        self.settled.drain(..told);
    }

    /// Forgets a value that was marked for a call which takes nothing, so that its mark can be taken back. Answers whether
    /// there is such a mark; no effect where an admitted call counts on it.
    pub(crate) fn withdraw(&mut self, value: ValueHash) -> bool {
        let Some(mark) = self.fresh.remove(&value) else {
            return false;
        };
        self.young.remove(&value);
        self.old.remove(&value);
        self.leave(value, mark);
        true
    }

    /// Puts a mark that nobody here was told of among those to be taken back.
    pub(crate) fn leave(&mut self, value: ValueHash, mark: Mark) {
        if self.unwanted.len() < VALUES_MAX {
            self.unwanted.push((value, mark));
        }
    }

    /// Forgets what was to be taken back of a pool that is lost: those marks stay.
    pub(crate) fn lose_marks(&mut self) {
        self.fresh.clear();
        self.unwanted.clear();
        self.settled.clear();
        self.sent_back = None;
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
