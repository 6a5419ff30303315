//! Levels and units in flight, judged by what callers were told: what is stored, and what is in flight, is within bounds.

use std::collections::{BTreeMap, BTreeSet};

use quota_core::{CheckRequest, Holder, KeyHash, LimitKind, Mode, Reason, ReservationId};

use super::{Held, Run, Span};
use crate::world::{Verdict, fact::Fact, ledger::LEASE_US};

/// A call in flight.
#[derive(Clone, Copy, Debug)]
struct Flight {
    holder: Holder,
    units: u64,
    expires_us: i64,
}

/// What the world holds of one level, or of one limit of units in flight.
#[derive(Debug, Default)]
pub struct Stock {
    /// Units that callers were told are stored, less those that they were told are not.
    pub stored: u64,
    /// Falls that callers were told are recorded.
    falls: BTreeMap<u64, u64>,
    /// Of these, the ones that the ledger has counted.
    credited: BTreeSet<u64>,
    /// Calls in flight, but for those of holders that were not heard of within the time of a lease.
    flights: BTreeMap<ReservationId, Flight>,
    /// When a holder's lease was renewed last, as the ledger knows it; real µs.
    renewed: BTreeMap<Holder, u64>,
}

impl Stock {
    /// Takes in what the ledger did.
    ///
    /// # Errors
    /// What it must not do.
    pub fn learn(&mut self, fact: &Fact) -> Result<(), String> {
        match *fact {
            Fact::Renewed { holder, real_us } => {
                let before = self.renewed.insert(holder, real_us);
                if before.is_some_and(|before_us| before_us + LEASE_US < real_us) {
                    // Its lease may have been reclaimed meanwhile: nothing is promised of what it had in flight.
                    self.flights.retain(|_, flight| flight.holder != holder);
                }
                Ok(())
            }
            Fact::Fell { id, units } if self.falls.get(&id) != Some(&units) => Err(format!(
                "a fall of {units} was counted that nobody recorded"
            )),
            Fact::Fell { id, units } if !self.credited.insert(id) => {
                Err(format!("a fall of {units} was counted again"))
            }
            Fact::FallRefused { id } => {
                self.stored += self.falls.get(&id).copied().unwrap_or(0);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Takes in that a caller was told of a fall.
    pub fn fall(&mut self, id: u64, units: u64) {
        self.falls.insert(id, units);
        self.stored = self.stored.saturating_sub(units);
    }

    /// Takes in that the ledger has forgotten which records it has counted, but for these.
    pub fn forget(&mut self, recorded: &BTreeSet<u64>) {
        self.credited.retain(|id| recorded.contains(id));
    }

    /// Takes in that a call has landed.
    pub fn land(&mut self, id: ReservationId) {
        self.flights.remove(&id);
    }

    /// Whether a holder's lease was renewed within the time for which it may be used.
    fn is_renewed(&self, holder: Holder, real_us: u64) -> bool {
        let renewed_us = self.renewed.get(&holder);
        renewed_us.is_some_and(|renewed_us| real_us <= renewed_us + LEASE_US)
    }

    /// Units in flight at holders that were heard of within the time of a lease.
    fn flying(&self, real_us: u64, ledger_us: i64) -> u64 {
        let flights = self.flights.values();
        flights
            .filter(|one| one.expires_us > ledger_us && self.is_renewed(one.holder, real_us))
            .map(|one| one.units)
            .sum()
    }
}

impl Run {
    /// Whether the limit is a level or counts units in flight.
    pub(super) fn is_standing(&self) -> bool {
        self.schedule.kind().is_standing()
    }

    fn level() -> Span {
        ("limit".into(), KeyHash::default(), 0)
    }

    /// A rise, a fall or a reservation of a level; a call that takes off or lands.
    pub(super) fn use_standing(&mut self, node: usize, mut check: CheckRequest) {
        let draw = self.world.rng.below(1_000);
        if self.schedule.kind() == LimitKind::Level && draw < 350 {
            return self.fall_somewhere(node);
        }
        if self.schedule.kind() == LimitKind::Level && draw < 350 + self.schedule.set_rate {
            return self.set_level();
        }
        let (id, expires_us) = self.next_reservation(node);
        check.mode = if self.schedule.kind() == LimitKind::Level && draw < 850 {
            Mode::Record { id, expires_us }
        } else {
            Mode::Reserve { id, expires_us }
        };
        self.world.check(node, &check);
        self.hear();
        if self.world.rng.chance(self.schedule.reserve_rate) {
            self.settle_something();
        }
    }

    /// Takes in an admitted rise, or a call that took off.
    pub(super) fn judge_standing(&mut self, verdict: &Verdict, units: u64) {
        let (holder, at) = (verdict.holder, verdict.at);
        if self.schedule.kind() == LimitKind::Level {
            let span = Self::level();
            self.audit.admit(&span, holder, units);
            if let Mode::Reserve { id, .. } = verdict.request.mode {
                let held = Held {
                    span,
                    end_us: i64::MAX,
                    holder,
                    units,
                    has_expired: false,
                };
                self.audit.held.insert(id, vec![held]);
            } else {
                self.audit.stock.stored += units;
            }
            return;
        }
        let Mode::Reserve { id, expires_us } = verdict.request.mode else {
            return;
        };
        self.audit.admitted += units;
        let flight = Flight {
            holder,
            units,
            expires_us,
        };
        self.audit.stock.flights.insert(id, flight);
        self.audit.hold_apart(id, holder, units);
        if !self.audit.stock.is_renewed(holder, at.real_us) {
            let detail = format!("holder {:?} was not renewed in time", &holder.0[..8]);
            self.audit.break_rule("fence", detail);
        }
        let flying = self.audit.stock.flying(at.real_us, at.ledger_us);
        let bound = self.audit.bound();
        if flying > bound {
            let detail = format!("{flying} of {bound} in flight");
            self.audit.break_rule("overshoot", detail);
        }
    }

    /// Lets something that is stored be taken away, somewhere.
    fn fall_somewhere(&mut self, node: usize) {
        let stored = self.audit.stock.stored;
        if stored == 0 {
            return;
        }
        let units = self
            .world
            .rng
            .between(1, stored.min(self.schedule.amount / 2 + 1));
        if let Some(id) = self.world.fall(node, "t", units) {
            if self.is_told {
                eprintln!("{} --- node {node} lets fall {units}", self.world.real_us);
            }
            self.audit.fall(&Self::level(), id, units);
            self.hear();
        }
    }

    /// An operator says what is stored.
    fn set_level(&mut self) {
        let (rises, falls) = self.world.unrecorded();
        // Nothing falls that is not there.
        let units = falls + self.world.rng.below(self.schedule.amount * 5 / 4);
        // After a restore nobody knows what is leased: no level is set before the confirmation.
        let rows = &self.world.ledger.rows;
        if !self.world.is_ledger_up || rows.windows.is_empty() || rows.timeline > 1 {
            return;
        }
        if self.is_told {
            eprintln!("{} --- the level is set to {units}", self.world.real_us);
        }
        self.world.ledger.set_level(units);
        self.audit.set_level(&Self::level(), units + rises - falls);
        self.hear();
    }

    /// After the faults the ledger has what callers were told.
    pub(super) fn must_be_stored(&mut self) {
        let rows = &self.world.ledger.rows;
        let is_kept = rows.timeline == 1 && !self.world.has_lost_log;
        let known = rows.windows.first().map_or(0, |window| window.stored);
        let stored = self.audit.stock.stored;
        if self.schedule.kind() == LimitKind::Level && is_kept && u64::try_from(known) != Ok(stored)
        {
            let detail = format!("{stored} are stored, the ledger has {known}");
            self.audit.break_rule("level", detail);
        }
    }

    /// Units that nobody stores, holds or has in flight, after the faults: somebody can have them.
    fn units_unused(&self) -> u64 {
        let Some(window) = self.world.ledger.rows.windows.first() else {
            return self.world.amount("t", "limit");
        };
        let held = self.audit.held.values().flatten();
        let is_flying =
            |held: &&Held| !held.has_expired && self.world.node_of(held.holder).is_some();
        let mut used: u64 = held.filter(is_flying).map(|held| held.units).sum();
        if self.schedule.kind() == LimitKind::Level {
            let held = self.audit.held.values().flatten();
            used = held.map(|held| held.units).sum::<u64>() + window.stored.max(0).unsigned_abs();
            for (holder, lease) in &window.leases {
                let left = lease
                    .granted_cum
                    .saturating_sub(lease.returned_cum + lease.recorded);
                let is_gone = self.world.node_of(*holder).is_none();
                used += if is_gone { left } else { 0 };
            }
        }
        window.amount.saturating_sub(used)
    }

    /// After the faults whoever asks for what nobody uses has it, at the latest a while after it was denied.
    pub(super) fn must_stand(&mut self, node: usize, mut check: CheckRequest) {
        if self.world.ledger.rows.timeline > 1 {
            // What is out is not known any more: nothing is given until an operator says otherwise.
            return;
        }
        let mut reason = None;
        for attempt in 0..2_u8 {
            let there = self.units_unused();
            let id = ReservationId([node.to_le_bytes()[0] | 0x80 | attempt << 4; 16]);
            let expires_us = i64::MAX;
            check.mode = if self.schedule.kind() == LimitKind::Level {
                Mode::Record { id, expires_us }
            } else {
                Mode::Reserve { id, expires_us }
            };
            reason = self.world.decide_to(node, &check);
            self.hear();
            match reason {
                Some(Reason::Allowed) => return,
                Some(Reason::CostExceedsLimit) if self.world.amount("t", "limit") == 0 => return,
                Some(Reason::QuotaExhausted) if there == 0 => return,
                Some(Reason::QuotaExhausted) => {}
                _ => break,
            }
            self.world.run_for(5_000_000);
            self.hear();
        }
        let there = self.units_unused();
        let what = format!("node {node} heard {reason:?} after the faults; units there: {there}");
        if self.is_told {
            let window = self.world.ledger.rows.windows.first();
            eprintln!("held: {:?}\nrow: {window:?}", self.audit.held);
        }
        self.audit.break_rule("liveness", what);
    }
}
