//! One window of one bucket: its units, its pool, what was asked of whom.

use std::sync::Arc;

use crate::{
    bucket::{
        balance::Balance,
        values::{Told, Values},
    },
    effect::{PoolFault, UseCum},
    engine::EngineConfig,
    event::{WindowInfo, WindowUse},
    id::ValueHash,
    links::Links,
    proof::{Proof, Sent},
    request::Units,
    time::Now,
};

/// A pool as this holder knows it.
#[allow(clippy::struct_field_names)] // as the contract names them
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    /// timeline × 2^32 + n.
    pub(crate) generation: u64,
    /// Redis key of the pool.
    pub(crate) pool_key: Arc<str>,
    /// Redis key of its holders.
    pub(crate) holders_key: Arc<str>,
    /// Redis key of the values that have a unit (unique meters).
    pub(crate) values_key: Arc<str>,
    /// Channel of its notices.
    pub(crate) channel: Arc<str>,
    /// Last request that it answered.
    pub(crate) request_seq: u64,
    /// The pool's own counter as last seen.
    pub(crate) witness_seq: u64,
    /// Units moved to it, as last seen there.
    pub(crate) total: Units,
    /// Units that it can give, as last seen there.
    pub(crate) free: Units,
    /// Holders as last seen there.
    pub(crate) holders: u64,
    /// The limit had no more to give to it, as last seen.
    pub(crate) is_final: bool,
    /// The ledger was asked to extend it since it answered last.
    pub(crate) is_grown: bool,
    /// Request whose outcome is unknown.
    pub(crate) unsure: Option<Sent>,
    /// The pool may have taken more back than it has confirmed: a request of unknown outcome said so.
    pub(crate) is_return_unsure: bool,
}

impl Pool {
    /// A pool that the ledger named, of which nothing was asked yet; `keys`: pool, holders, channel.
    pub(crate) fn of_ledger(
        generation: u64,
        allotted_cum: Units,
        is_final: bool,
        [pool_key, holders_key, values_key, channel]: [Arc<str>; 4],
    ) -> Self {
        Self {
            generation,
            pool_key,
            holders_key,
            values_key,
            channel,
            request_seq: 0,
            witness_seq: 0,
            total: allotted_cum,
            free: allotted_cum,
            holders: 1,
            is_final,
            is_grown: true,
            unsure: None,
            is_return_unsure: false,
        }
    }

    /// Whether the ledger should extend it before it is asked for so many units: it is known to lack them, and asking it
    /// would bring what it has left in ever smaller parts.
    pub(crate) const fn is_short_of(&self, units: Units) -> bool {
        self.free < units && !self.is_final && !self.is_grown
    }
}

/// A request that is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flight {
    /// To the ledger.
    Allot(Sent),
    /// To the pool; the cumulative return that it carries.
    Grant(Sent, Units),
}

/// One window.
#[allow(clippy::struct_excessive_bools)] // independent facts, not one state
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// Its name, bounds and figures as last heard.
    pub(crate) info: WindowInfo,
    /// Its units.
    pub(crate) balance: Balance,
    /// Last ask that the ledger answered.
    pub(crate) ledger_seq: u64,
    /// Ask of the ledger whose outcome is unknown.
    pub(crate) unsure: Option<Sent>,
    /// Its pool, once the ledger named one.
    pub(crate) pool: Option<Pool>,
    /// What went wrong at the pool and is to be told to the ledger.
    pub(crate) fault: Option<PoolFault>,
    /// The ledger has not heard of it yet: it hears before units of that pool go back there.
    pub(crate) is_fault_untold: bool,
    /// The pool could not serve: the ledger is to extend it.
    pub(crate) extend: bool,
    /// The pool refused before its channel was confirmed: ask again once it is.
    pub(crate) await_channel: bool,
    /// The ledger gave notice and has not been asked since: it may have units of which the pool knows nothing.
    pub(crate) is_noticed: bool,
    /// What is under way.
    pub(crate) flight: Option<Flight>,
    /// Proof of exhaustion.
    pub(crate) proof: Option<Proof>,
    /// The last ask was refused: serve the smallest first.
    pub(crate) smallest_first: bool,
    /// Unique meters: what was said of values.
    pub(crate) values: Values,
    /// Units that policy `open` admitted without cover.
    pub(crate) uncovered: Units,
    /// Below this balance more is asked for ahead; 0 = never.
    pub(crate) low_mark: Units,
    /// What the fleet used as last heard, and what this process had used when it was asked.
    pub(crate) fleet: Option<(WindowUse, Units)>,
    /// What was used as last confirmed by the ledger.
    pub(crate) reported: UseCum,
    /// A return to the ledger is under way.
    pub(crate) returning: bool,
    /// Below this balance the mark is lowered, while anything is kept.
    pub(crate) keep_low: Units,
    /// A mark is on its way to the disk.
    pub(crate) is_marking: bool,
    /// Units of it went back to the ledger since a mark said how many had.
    pub(crate) is_mark_behind: bool,
    /// What the log says is owed.
    pub(crate) debt_marked: Units,
    /// Concurrency: the lease that its units belong to; 0 = none.
    pub(crate) lease_epoch: u64,
    /// Concurrency: real time until which the lease may be used.
    pub(crate) valid_until_us: u64,
    /// Concurrency: a renewal lasts so many real µs from when it was sent.
    pub(crate) valid_for_us: u64,
    /// Concurrency: real time at which a renewal was sent last.
    pub(crate) renewal_sent_us: u64,
    /// Concurrency: a renewal is under way.
    pub(crate) renewing: bool,
    /// Concurrency: units in flight beyond the limit.
    pub(crate) over_flying: Units,
    /// Levels: units that fell by records of this process.
    pub(crate) fallen: Units,
    /// Levels: of these, what had fallen when the fleet was asked last.
    pub(crate) fallen_told: Units,
    /// Levels: of these, what had fallen when the fleet was asked for the figures that are known.
    pub(crate) fallen_then: Units,
    /// The timeline in which it was said what is had of it, as of a window of an earlier one; 0 = never.
    pub(crate) told_in: u64,
}

impl Window {
    /// A window of which nothing is held yet.
    pub(crate) fn new(info: WindowInfo) -> Self {
        Self {
            info,
            balance: Balance::default(),
            ledger_seq: 0,
            unsure: None,
            pool: None,
            fault: None,
            is_fault_untold: false,
            extend: false,
            await_channel: false,
            is_noticed: false,
            flight: None,
            proof: None,
            smallest_first: false,
            values: Values::default(),
            uncovered: 0,
            low_mark: 0,
            fleet: None,
            reported: UseCum::default(),
            returning: false,
            keep_low: 0,
            is_marking: false,
            is_mark_behind: false,
            debt_marked: 0,
            lease_epoch: 0,
            valid_until_us: 0,
            valid_for_us: 0,
            renewal_sent_us: 0,
            renewing: false,
            over_flying: 0,
            fallen: 0,
            fallen_told: 0,
            fallen_then: 0,
            told_in: 0,
        }
    }

    /// Whether it is over.
    pub(crate) const fn has_ended(&self, ledger_us: i64) -> bool {
        self.info.end_us <= ledger_us
    }

    /// Units that this process used, beyond the limit or within.
    pub(crate) const fn own_use(&self) -> Units {
        self.balance.used()
    }

    /// Units that the fleet used, as last heard, own use up to now.
    pub(crate) fn used(&self) -> Units {
        if self.info.is_standing() {
            return self.standing_use();
        }
        let own = self.own_use();
        self.fleet.map_or(own, |(fleet, own_then)| {
            let all = fleet.consumed.saturating_add(fleet.over);
            all.saturating_add(own).saturating_sub(own_then).max(own)
        })
    }

    /// Units that a call could still take at this amount, as last seen.
    pub(crate) fn remaining(&self, amount: Units) -> Units {
        let free_in_pool = self.pool.as_ref().map_or(0, |pool| pool.free);
        let free_here = self
            .balance
            .free
            .saturating_add(self.balance.standby)
            .saturating_add(self.balance.kept)
            .saturating_add(self.balance.returning());
        let reach = free_here
            .saturating_add(free_in_pool)
            .saturating_add(amount);
        let by_units = reach
            .saturating_sub(self.info.allotted)
            .saturating_sub(self.balance.debt);
        let held = if self.lease_epoch == 0 {
            self.balance.held
        } else {
            // What is in flight is used already.
            0
        };
        let by_use = amount.saturating_sub(self.used()).saturating_sub(held);
        by_units.min(by_use)
    }

    /// Whether this process' own use alone leaves no room for so many units more.
    pub(crate) const fn is_own_use_full(&self, units: Units, amount: Units) -> bool {
        let own = self
            .balance
            .spent()
            .saturating_add(self.balance.held)
            .saturating_add(self.balance.debt);
        own.saturating_add(units) > amount
    }

    /// Begins another lease where the ledger says that there is one: whatever the one before had is gone.
    pub(crate) fn enter_lease(&mut self, epoch: u64, granted_cum: Units, give: Units) {
        if epoch == self.lease_epoch {
            return;
        }
        self.lose_lease();
        self.lease_epoch = epoch;
        self.balance.begin_at(granted_cum.saturating_sub(give));
    }

    /// Takes in that the ledger holds a lease alive of which it heard in a message sent at `sent_us`.
    pub(crate) const fn renew(&mut self, epoch: u64, sent_us: u64) {
        let until_us = sent_us.saturating_add(self.valid_for_us);
        if epoch == self.lease_epoch && until_us > self.valid_until_us {
            self.valid_until_us = until_us;
        }
    }

    /// Forgets the lease with every unit that it had, those in flight included: the ledger has reclaimed them.
    pub(crate) fn lose_lease(&mut self) {
        let over = self.balance.over;
        self.balance = Balance {
            over,
            ..Balance::default()
        };
        (self.lease_epoch, self.valid_until_us, self.renewing) = (0, 0, false);
        self.proof = None;
    }

    /// Leaves its pool for good: what was on its way back there is lost.
    pub(crate) fn leave_pool(&mut self) {
        if self.pool.take().is_none() {
            return;
        }
        (self.fault, self.is_fault_untold) = (None, false);
        (self.extend, self.await_channel, self.proof) = (false, false, None);
        self.values.lose_marks();
        for source in &mut self.balance.sources {
            source.told_pool = source.returned_pool;
        }
    }

    /// Whether the log says something of it that is to be brought up to date.
    pub(crate) const fn is_log_behind(&self) -> bool {
        let is_debt_behind = self.balance.debt != self.debt_marked;
        is_debt_behind || (self.is_mark_behind && self.balance.kept > 0)
    }

    /// Takes in newer figures of the same window.
    pub(crate) fn update(&mut self, info: WindowInfo) {
        self.info = info;
    }

    /// Sets what is kept apart and below which balance more is asked for, after `credited` units came that were asked for
    /// with `ask`. `apart` = units to keep apart; `is_scarce` = others will lack whatever lies here unused.
    pub(crate) fn stock(&mut self, credited: Units, ask: &Sent, apart: Units, is_scarce: bool) {
        let spare = credited.saturating_sub(ask.need);
        let apart = if is_scarce { 0 } else { apart };
        self.balance.keep_apart(apart, spare / 2);
        let ahead = spare.min(self.balance.free);
        self.low_mark = if is_scarce {
            0
        } else if ahead >= ask.want.saturating_sub(ask.need) / 2 {
            // Two thirds of what was wanted are 10 s of use.
            ahead.saturating_sub(ahead / 3)
        } else {
            ahead / 2
        };
    }

    /// Frees what is kept apart for a call of this cost; answers whether that covers it.
    pub(crate) fn call_up(&mut self, units: Units) -> bool {
        let lacking = self.balance.missing(units);
        self.balance.call_up(lacking)
    }

    /// What was said of a value and still counts.
    pub(crate) fn told(
        &self,
        value: ValueHash,
        notices: u32,
        links: &Links,
        now: Now,
        config: &EngineConfig,
    ) -> Option<Told> {
        let told = self.values.get(value)?;
        let Told::Denied {
            proof,
            notices: then,
            generation,
        } = told
        else {
            return Some(told);
        };
        let pool = self
            .pool
            .as_ref()
            .filter(|pool| pool.generation == generation && then == notices)?;
        proof
            .is_current(links, Some(&pool.channel), now.real_us, config.proof_age_us)
            .then_some(told)
    }

    /// The generation that takes units back, where there is one.
    pub(crate) fn pool_generation(&self) -> Option<u64> {
        self.pool
            .as_ref()
            .filter(|_| self.fault.is_none())
            .map(|pool| pool.generation)
    }
}
