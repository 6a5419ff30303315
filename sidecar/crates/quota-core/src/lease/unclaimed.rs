//! What a dead process of this volume kept and nobody has asked for since: it waits a while for calls, then it goes back.

use std::{collections::BTreeMap, sync::Arc};

use foldhash::fast::FixedState;

use crate::{
    effect::Kept,
    engine::Engine,
    hash::Map,
    id::{Holder, KeyHash, WindowId},
    mutant::{self, Mutant},
    outbox::Return,
    request::Units,
    time::Now,
    upkeep::IDLE_US,
};

/// A return is said again after so long at least, real µs.
const AGAIN_US: u64 = 1_000_000;
/// What waits is looked at this often, real µs.
const LOOK_US: u64 = 500_000;

/// Tenant, limit and key.
type Name = (Arc<str>, Arc<str>, KeyHash);

/// Units that a restart took over for keys of which there is no bucket.
#[derive(Debug)]
pub(crate) struct Unclaimed {
    kept: Map<Name, Kept>,
    /// (in whose name, window, generation) → all that went back, and the end of the window. Nobody spends it any more.
    given_up: BTreeMap<(Holder, WindowId, u64), (Units, i64)>,
    /// Returns without an answer.
    flying: usize,
    /// Real time at which what is kept has waited long enough; `None` while the ledger isn't there.
    until_us: Option<u64>,
    /// Real time before which nothing is said again.
    again_us: u64,
    /// Real time at which it is looked at next.
    look_us: u64,
}

impl Unclaimed {
    /// Nothing.
    pub(crate) const fn new(state: FixedState) -> Self {
        Self {
            kept: Map::with_hasher(state),
            given_up: BTreeMap::new(),
            flying: 0,
            until_us: None,
            again_us: 0,
            look_us: 0,
        }
    }

    /// Real time at which it is to be looked at; `None` where there is nothing.
    pub(crate) fn next_due_us(&self) -> Option<u64> {
        let is_empty = self.kept.is_empty() && self.given_up.is_empty();
        (!is_empty).then_some(self.look_us)
    }

    /// Takes in what was kept. Its mark must be gone for good. Of two windows of one key the later one waits for calls.
    pub(crate) fn add(&mut self, kept: Kept) {
        let name = (
            Arc::clone(&kept.tenant),
            Arc::clone(&kept.limit),
            kept.key_hash,
        );
        let end_us = kept.end_us;
        let other = match self.kept.get(&name) {
            Some(known) if known.end_us > end_us => Some(kept),
            _ => self.kept.insert(name, kept),
        };
        if let Some(other) = other {
            self.give_up(&other);
        }
    }

    /// Gives what was kept of a key to whoever has asked for it.
    pub(crate) fn claim(
        &mut self,
        tenant: &Arc<str>,
        limit: &Arc<str>,
        key: KeyHash,
    ) -> Option<Kept> {
        if self.kept.is_empty() {
            return None;
        }
        self.kept
            .remove(&(Arc::clone(tenant), Arc::clone(limit), key))
    }

    /// Gives units up: from now on nobody spends them here.
    pub(crate) fn give_up(&mut self, kept: &Kept) {
        for part in &kept.parts {
            let returned_cum = part.returned_cum.saturating_add(part.units);
            let place = (part.holder, kept.window, part.generation);
            self.given_up.insert(place, (returned_cum, kept.end_us));
        }
    }

    /// Gives up what waits for calls of some keys.
    fn give_up_of(&mut self, is_meant: impl Fn(&Name) -> bool) {
        let lent = self.kept.iter().filter(|(_, kept)| kept.units > 0);
        let names = lent.map(|(name, _)| name).filter(|name| is_meant(name));
        for name in names.cloned().collect::<Vec<Name>>() {
            let Some(mut kept) = self.kept.remove(&name) else {
                continue;
            };
            self.give_up(&kept);
            if !mutant::is(Mutant::HeirReturnsAndSpends) {
                (kept.units, kept.parts) = (0, Box::default());
            }
            // What is owed waits for calls until the window ends.
            if kept.units > 0 || kept.debt > 0 {
                self.kept.insert(name, kept);
            }
        }
    }

    /// Gives up what waits for calls of some limits, by tenant and name.
    pub(crate) fn give_up_of_limits(&mut self, is_meant: impl Fn(&str, &str) -> bool) {
        self.give_up_of(|name| is_meant(&name.0, &name.1));
    }

    /// Forgets windows that are over; gives those of which something is owed: their marks are there yet.
    fn forget_ended(&mut self, now: Now) -> Vec<WindowId> {
        let mut owing = Vec::new();
        self.kept.retain(|_, kept| {
            let is_on = kept.end_us > now.ledger_us;
            if !is_on && kept.debt > 0 {
                owing.push(kept.window);
            }
            is_on
        });
        owing
    }

    /// Forgets everything; gives the windows of which something was kept.
    pub(crate) fn forget(&mut self) -> Vec<WindowId> {
        self.given_up.clear();
        let kept = std::mem::take(&mut self.kept);
        kept.into_values().map(|kept| kept.window).collect()
    }

    /// Takes in whether the ledger has heard of a return.
    pub(crate) fn on_returned(&mut self, entry: &Return, is_told: bool) {
        self.flying = self.flying.saturating_sub(1);
        if let Some(from) = entry.from.filter(|_| is_told) {
            self.given_up
                .remove(&(from, entry.window, entry.generation));
        }
    }

    /// Gives up what has waited long enough while the ledger was there.
    fn wait(&mut self, now: Now, is_ledger_there: bool) {
        if !is_ledger_there {
            self.until_us = None;
            return;
        }
        let until_us = *self
            .until_us
            .get_or_insert(now.real_us.saturating_add(IDLE_US));
        if now.real_us >= until_us {
            self.give_up_of(|_| true);
        }
    }

    /// What the ledger is to hear of now.
    fn due(&mut self, now: Now) -> Vec<Return> {
        if self.flying > 0 || now.real_us < self.again_us || self.given_up.is_empty() {
            return Vec::new();
        }
        self.given_up
            .retain(|_, (_, end_us)| *end_us > now.ledger_us);
        self.again_us = now.real_us.saturating_add(AGAIN_US);
        self.flying = self.given_up.len();
        let entries = self.given_up.iter();
        entries
            .map(|((from, window, generation), (returned_cum, _))| Return {
                bucket: None,
                window: *window,
                from: Some(*from),
                generation: *generation,
                returned_cum: *returned_cum,
            })
            .collect()
    }
}

impl Engine {
    /// Returns what was taken over and nobody asked for while the ledger was there. Says it until the ledger has heard.
    pub(crate) fn return_unclaimed(&mut self, now: Now) {
        let unclaimed = &mut self.unclaimed;
        if unclaimed.next_due_us().is_none() {
            return;
        }
        unclaimed.look_us = now.real_us.saturating_add(LOOK_US);
        for window in unclaimed.forget_ended(now) {
            self.remove_mark(window);
        }
        let unclaimed = &mut self.unclaimed;
        let is_down = self.links.ledger.is_down(now.real_us);
        unclaimed.wait(now, self.links.watch_epoch().is_some() && !is_down);
        if is_down {
            return;
        }
        for entry in unclaimed.due(now) {
            self.outbox.give_back(entry);
        }
    }

    /// Gives up all that was taken over and nobody asked for, and says so: for a clean stop.
    pub(crate) fn drain_unclaimed(&mut self, now: Now) {
        self.unclaimed.give_up_of(|_| true);
        self.unclaimed.again_us = 0;
        self.return_unclaimed(now);
    }

    /// Gives up what was taken over of a limit and nobody asked for, because somebody else lacks it.
    pub(crate) fn recall_unclaimed(
        &mut self,
        now: Now,
        tenant: &str,
        limit: &str,
        key: Option<KeyHash>,
    ) {
        self.unclaimed.give_up_of(|name| {
            *name.0 == *tenant && *name.1 == *limit && key.is_none_or(|key| key == name.2)
        });
        self.return_unclaimed(now);
    }
}
