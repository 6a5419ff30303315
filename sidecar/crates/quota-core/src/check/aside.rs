//! What a waiting call found is set aside for it, while it waits for what another limit lacks.
//!
//! Nothing moves: units set aside lie where they lay, and calls that came later leave them alone until the call is decided,
//! or they can wait no longer themselves. So nothing is counted twice, and the call that came first never waits for another.

use std::collections::BTreeMap;

use crate::{
    check::judge::Verdict,
    engine::Engine,
    mutant::{self, Mutant},
    request::{Mode, Units},
    slab::Key,
};

/// When a call came, among those that wait: it leaves alone what is set aside for earlier ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Turn(u64);

impl Turn {
    /// Of a call that can't wait any longer: it leaves nothing alone.
    pub(crate) const LAST: Self = Self(0);
    /// Of a call for which there is no room to wait: nobody came before it.
    pub(crate) const FIRST: Self = Self(1);
    /// Of a call that comes now.
    pub(crate) const NEWCOMER: Self = Self(u64::MAX);

    /// The one after it.
    pub(crate) const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Units of one bucket that are set aside, by the call that they are for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aside {
    units: BTreeMap<Turn, Units>,
    /// The sums of so many turns each, so that thousands who wait are no matter.
    blocks: BTreeMap<u64, Units>,
    sum: Units,
}

/// Turns in a block.
const BLOCK: u64 = 64;

impl Aside {
    /// Units for calls that came before this one.
    pub(crate) fn before(&self, turn: Turn) -> Units {
        if turn == Turn::NEWCOMER {
            return self.sum;
        }
        let block = turn.0 / BLOCK;
        let begin = Turn(block.saturating_mul(BLOCK));
        let blocks = self.blocks.range(..block).map(|(_, units)| *units);
        let others = self.units.range(begin..turn).map(|(_, units)| *units);
        blocks.chain(others).fold(0, Units::saturating_add)
    }

    fn put(&mut self, turn: Turn, units: Units) {
        let held = self.units.entry(turn).or_default();
        *held = held.saturating_add(units);
        let block = self.blocks.entry(turn.0 / BLOCK).or_default();
        *block = block.saturating_add(units);
        self.sum = self.sum.saturating_add(units);
    }

    fn drop(&mut self, turn: Turn) {
        let units = self.units.remove(&turn).unwrap_or(0);
        self.sum = self.sum.saturating_sub(units);
        if let Some(block) = self.blocks.get_mut(&(turn.0 / BLOCK)) {
            *block = block.saturating_sub(units);
            if *block == 0 {
                self.blocks.remove(&(turn.0 / BLOCK));
            }
        }
    }
}

impl Engine {
    /// Sets aside for a waiting call what it found at its limits just now, and lets go of what it had found before and has
    /// no more. A call that only looks, or that is denied and waits to hear until when, takes nothing.
    pub(crate) fn set_aside(&mut self, key: Key, is_short: bool) {
        let Some(waiter) = self.waiting.get_mut(key) else {
            return;
        };
        let (turn, before) = (waiter.turn, std::mem::take(&mut waiter.aside));
        let takes = is_short && waiter.request.mode != Mode::Peek;
        for bucket in &before {
            self.drop_aside(*bucket, turn);
        }
        let mut found = Vec::new();
        let is_denied = |verdict| matches!(verdict, Verdict::Denied(..));
        if takes && !self.charges.iter().any(|charge| is_denied(charge.verdict)) {
            for charge in &self.charges {
                if let (Verdict::Fits, Some(place), 1..) =
                    (charge.verdict, charge.bucket, charge.units)
                    && let Some(bucket) = self.buckets.get_mut(place)
                {
                    let aside = bucket.aside.get_or_insert_default();
                    aside.put(turn, charge.units);
                    found.push(place);
                }
            }
        }
        for bucket in before {
            if !found.contains(&bucket) {
                self.stir_line(bucket);
            }
        }
        if let Some(waiter) = self.waiting.get_mut(key) {
            waiter.aside = found;
        }
    }

    /// Lets go of what was set aside for a call that waits no longer; whoever left it alone looks again.
    pub(crate) fn let_go(&mut self, turn: Turn, buckets: &[Key]) {
        if mutant::is(Mutant::AsideKept) {
            return;
        }
        for bucket in buckets {
            self.drop_aside(*bucket, turn);
            self.stir_line(*bucket);
        }
    }

    fn drop_aside(&mut self, key: Key, turn: Turn) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        if let Some(aside) = bucket.aside.as_deref_mut() {
            aside.drop(turn);
            if aside.units.is_empty() {
                bucket.aside = None;
            }
        }
    }

    fn stir_line(&mut self, key: Key) {
        let bucket = self.buckets.get(key);
        if bucket.is_some_and(|bucket| !bucket.waiters.is_empty()) {
            self.stir(key);
        }
    }
}
