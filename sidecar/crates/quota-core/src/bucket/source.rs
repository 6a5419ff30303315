//! Where leased units came from, and what became of them there.

use crate::{effect::KeptPart, id::Holder, request::Units};

/// Generation of the units of marks that don't say where they came from: spent here, returned nowhere.
pub(crate) const UNNAMED: u64 = u64::MAX;

/// Where leased units came from: the ledger (generation 0) or one generation of a pool, to this process or to a dead one of
/// this volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    /// The dead process that they were leased to; `None` = this one.
    pub(crate) from: Option<Holder>,
    /// 0 = the ledger.
    pub(crate) generation: u64,
    /// Cumulative grants as the source counts them.
    pub(crate) seen: Units,
    /// Of these, the units that were credited here.
    pub(crate) granted: Units,
    /// Units of it that are known to be consumed; grows, never shrinks.
    pub(crate) consumed: Units,
    /// Of these, units that their callers gave back; grows, never shrinks.
    pub(crate) given_back: Units,
    /// Units of it that a mark says a restart may take over: neither consumed nor returned.
    pub(crate) kept: Units,
    /// Cumulative returns through the pool.
    pub(crate) returned_pool: Units,
    /// The part of them that the pool has confirmed.
    pub(crate) told_pool: Units,
    /// Cumulative returns through the ledger.
    pub(crate) returned_ledger: Units,
    /// The part of them that the ledger has confirmed.
    pub(crate) told_ledger: Units,
}

impl Source {
    /// One of which nothing was heard yet.
    pub(crate) const fn new(from: Option<Holder>, generation: u64) -> Self {
        Self {
            from,
            generation,
            seen: 0,
            granted: 0,
            consumed: 0,
            given_back: 0,
            kept: 0,
            returned_pool: 0,
            told_pool: 0,
            returned_ledger: 0,
            told_ledger: 0,
        }
    }

    /// What a dead process kept of a source. It counts on from what that had returned to the ledger; a return that it did
    /// not see confirmed goes along with the next.
    pub(crate) const fn inherited(part: &KeptPart) -> Self {
        let granted = part.returned_cum.saturating_add(part.units);
        Self {
            seen: granted,
            granted,
            returned_ledger: part.returned_cum,
            told_ledger: part.returned_cum,
            ..Self::new(Some(part.holder), part.generation)
        }
    }

    /// Units of it that are still here and not consumed.
    pub(crate) const fn rest(&self) -> Units {
        self.granted
            .saturating_sub(self.returned_pool)
            .saturating_sub(self.returned_ledger)
            .saturating_sub(self.spent())
    }

    /// Units of it that are still here, not consumed and not kept.
    pub(crate) const fn spare(&self) -> Units {
        self.rest().saturating_sub(self.kept)
    }

    /// Units of it that are consumed and were not given back.
    pub(crate) const fn spent(&self) -> Units {
        self.consumed.saturating_sub(self.given_back)
    }

    /// Whether somebody takes its units back.
    pub(crate) const fn is_returnable(&self) -> bool {
        self.generation != UNNAMED
    }

    /// Whether it is this pool generation, and this process leased from it: a pool knows a dead process' counters, and only
    /// the ledger takes back in its name.
    pub(crate) fn is_pools(&self, pool: Option<u64>) -> bool {
        self.from.is_none() && self.generation != 0 && Some(self.generation) == pool
    }
}
