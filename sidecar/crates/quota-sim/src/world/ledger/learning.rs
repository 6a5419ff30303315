//! Limits that learn: after a restore holders say what they have, and issuing goes on from that.

use std::collections::BTreeMap;

use quota_core::{FunctionReply, Holder, WindowId, WindowLeases};

use super::{Identity, Ledger, Line, RESTORED, Window};

/// Holders have so long to speak, ledger µs at the speed of real time.
const LEARNING_US: i64 = 30_000_000;

/// What one holder said of one source.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    units: u64,
    total: u64,
    allotted: u64,
    /// What the pool never gave, once that is known.
    unspent: Option<u64>,
}

/// What was said since the last restore.
#[derive(Clone, Debug, Default)]
pub(super) struct Learning {
    /// (identity, first instant, window, holder, generation) → what was said.
    told: BTreeMap<(Identity, i64, WindowId, Holder, u64), Told>,
    until_us: i64,
    is_over: bool,
}

impl Learning {
    /// Begins at a restore.
    pub(super) fn begun(now_us: i64) -> Self {
        Self {
            until_us: now_us + LEARNING_US,
            ..Self::default()
        }
    }

    /// Units that are out of a window by what was said.
    fn out(&self, identity: &Identity, start_us: i64) -> u64 {
        let said = self.told.iter();
        let said = said.filter(|((one, start, ..), _)| one == identity && *start == start_us);
        let mut pools: BTreeMap<(WindowId, u64), Told> = BTreeMap::new();
        let mut heard = 0;
        for ((_, _, window, _, generation), told) in said {
            let pool = pools.entry((*window, *generation)).or_default();
            pool.units += told.units;
            pool.total = pool.total.max(told.total);
            pool.unspent = pool.unspent.max(told.unspent);
            heard = heard.max(told.allotted);
        }
        let unspent = |pool: &Told| pool.unspent.unwrap_or(0);
        let of_source = |pool: &Told| (pool.units).max(pool.total.saturating_sub(unspent(pool)));
        let never_given: u64 = pools.values().map(unspent).sum();
        let by_source: u64 = pools.values().map(of_source).sum();
        by_source.max(heard.saturating_sub(never_given))
    }
}

impl Ledger {
    /// Whether a limit takes its windows up again by itself.
    pub(super) fn learns(&self, identity: &Identity) -> bool {
        let limit = (identity.0.clone(), identity.1.clone());
        (self.limits.get(&limit)).is_some_and(|(rule, _)| rule.learns)
    }

    /// Whether holders have had their time, and the pools that they named are closed.
    pub(super) const fn has_learned(&self) -> bool {
        self.learning.is_over
    }

    /// Takes in what a holder has of windows of an earlier timeline.
    pub fn learn(&mut self, holder: Holder, entries: &[WindowLeases]) {
        for said in entries {
            let identity = (said.tenant.clone(), said.limit.clone(), said.key_hash);
            let is_older = said.timeline.max(1) < self.rows.timeline;
            let known = self.window(said.window);
            let is_of_now = known.is_some_and(|window| window.timeline >= self.rows.timeline);
            if !is_older || is_of_now || !self.learns(&identity) {
                continue;
            }
            let cursor = self.rows.cursors.entry(identity.clone()).or_default();
            let place = match cursor.find(said.start_us) {
                Some(place) => place,
                None => match self.add_lost(&identity, said) {
                    Some(place) => place,
                    None => continue,
                },
            };
            let start_us = self.rows.windows[place].start_us;
            let before = self.learning.out(&identity, start_us);
            for source in &said.sources {
                let name = (
                    identity.clone(),
                    start_us,
                    said.window,
                    source.holder.unwrap_or(holder),
                    source.generation,
                );
                let told = self.learning.told.entry(name).or_default();
                told.units = told.units.max(source.units);
                told.total = told.total.max(source.total);
                told.allotted = told.allotted.max(said.allotted);
            }
            let late = self
                .learning
                .out(&identity, start_us)
                .saturating_sub(before);
            let window = &mut self.rows.windows[place];
            if window.timeline == self.rows.timeline && late > 0 {
                window.allotted += late;
                window.ceiling = window.ceiling.max(window.allotted);
            }
        }
    }

    /// Makes a window that Postgres lacks known, as one of the timeline that it was opened in.
    fn add_lost(&mut self, identity: &Identity, said: &WindowLeases) -> Option<usize> {
        let place = self.rows.windows.len();
        let cursor = self.rows.cursors.entry(identity.clone()).or_default();
        let span = cursor.open(said.start_us, (said.start_us, said.end_us), place)?;
        let id = self.name(span.1);
        self.add_window(identity.clone(), span, id, None);
        self.rows.windows[place].timeline = said.timeline.max(1);
        Some(place)
    }

    /// The window to issue from in place of a known one, or why not.
    pub(super) fn take_up(&mut self, place: usize) -> Result<usize, &'static str> {
        let before = &self.rows.windows[place];
        let identity = before.identity.clone();
        if !self.learns(&identity) {
            let is_frozen = before.start_us < self.frozen_before_us();
            return if is_frozen && !quota_core::mutant::is(quota_core::Mutant::RestoreNotFrozen) {
                Err(RESTORED)
            } else {
                Ok(place)
            };
        }
        if before.timeline >= self.rows.timeline {
            return Ok(place);
        }
        if !self.has_learned() {
            return Err(RESTORED);
        }
        let span = (before.start_us, before.end_us);
        let (amount, version) = (before.amount, before.amount_version);
        let allotted = (before.allotted).max(self.learning.out(&identity, before.start_us));
        let by = self.rows.windows.len();
        if let Some(cursor) = self.rows.cursors.get_mut(&identity) {
            cursor.replace(place, by);
        }
        let id = self.name(span.1);
        self.add_window(identity, span, id, None);
        let after: &mut Window = &mut self.rows.windows[by];
        (after.amount, after.amount_version) = (amount, version);
        (after.allotted, after.ceiling) = (allotted, amount.max(allotted));
        Ok(by)
    }

    /// Closes the pools that were named, once holders have had their time.
    pub(super) fn end_learning(&mut self, line: &mut Line<'_>, now_us: i64) {
        if self.rows.timeline == 1 || self.learning.is_over || now_us < self.learning.until_us {
            return;
        }
        let mut told = std::mem::take(&mut self.learning.told);
        for ((_, _, window, _, generation), said) in &mut told {
            let Some(window) = self.window(*window).filter(|_| *generation > 0) else {
                said.unspent = Some(0);
                continue;
            };
            let arguments = vec![generation.to_string(), window.channel.to_string()];
            let reply = line.call("pool_close", vec![window.pool_key.clone()], arguments);
            said.unspent = match reply.as_ref() {
                Some(FunctionReply::Elements(elements)) => match elements.as_slice() {
                    [ok, unspent] if &**ok == "OK" => unspent.parse().ok(),
                    _ => Some(0),
                },
                _ => Some(0),
            };
        }
        self.learning.told = told;
        self.learning.is_over = true;
    }
}
