//! Reservations end: at home, elsewhere, twice, late, with the home paused or dead.

use quota_core::{Holder, LimitKind, ReservationId, SettleRefusal, Settled};

use super::{Run, audit::Held};
use crate::world::Told;

impl Run {
    /// Lets some client settle a reservation somewhere.
    pub(super) fn settle_something(&mut self) {
        let count = self.audit.held.len() as u64;
        let place = self.draw(count);
        let Some((id, held)) = self.audit.held.iter().nth(place) else {
            return;
        };
        let (id, held) = (*id, held.clone());
        let units = held.iter().map(|held| held.units).max().unwrap_or(0);
        let actual = match self.world.rng.below(4) {
            0 => 0,
            1 => units,
            2 if self.schedule.is_true_bound => units,
            2 => units + self.world.rng.below(3),
            _ => self.world.rng.below(units + 1),
        };
        let Some(holder) = held.first().map(|held| held.holder) else {
            return;
        };
        if self.world.rng.chance(self.schedule.elsewhere_rate) {
            let nodes = self.schedule.nodes as u64;
            let at = self.draw(nodes + 1);
            let at = Some(at).filter(|at| *at < self.schedule.nodes);
            if at.is_some_and(|node| self.world.is_paused(node)) {
                return;
            }
            if self.is_told {
                eprintln!(
                    "{} --- {at:?} settles {id:?} at {actual}",
                    self.world.real_us
                );
            }
            self.world.settle_elsewhere(at, id, holder, actual);
            return;
        }
        let Some(node) = self.world.home_of(id, holder) else {
            self.audit.held.remove(&id);
            return;
        };
        if self.world.is_paused(node) {
            return;
        }
        let now = self.world.now_of(node);
        // Before anything else is decided there: what is free again may be taken at once.
        let result = self.world.settle_here(node, id, actual);
        if self.is_told {
            eprintln!(
                "{} --- node {node} settles {held:?} at {actual}: {result:?}",
                now.real_us
            );
        }
        let by = self.world.holder(node);
        self.end(id, actual, &result, by, now.ledger_us);
        self.world.carry(node);
        self.hear();
    }

    /// Takes in what a home made of an outcome that the ledger told it.
    pub(super) fn hear_told(&mut self, told: &Told) {
        if self.is_told {
            eprintln!("{} --- {told:?}", told.at.real_us);
        }
        let (by, at_us) = (told.holder, told.at.ledger_us);
        self.end(told.id, told.actual, &told.result, by, at_us);
    }

    /// A reservation ends once; only the process that took its units has something to refund.
    fn end(
        &mut self,
        id: ReservationId,
        actual: u64,
        result: &Result<Settled, SettleRefusal>,
        by: Holder,
        ledger_us: i64,
    ) {
        let held = self.audit.held.get(&id).and_then(|held| held.first());
        let is_own = held.is_some_and(|held| held.holder == by);
        if is_own && result.is_ok() {
            self.audit.stock.land(id);
        }
        let Ok(settled) = result else {
            if is_own {
                let detail = format!("{id:?} is not known at home");
                self.audit.break_rule("reservation", detail);
            }
            return;
        };
        let is_level = self.schedule.kind() == LimitKind::Level;
        let Some(held) = self.audit.held.remove(&id) else {
            if self.audit.ended.get(&id) == Some(&by) {
                let detail = format!("{id:?} ended twice");
                self.audit.break_rule("reservation", detail);
            }
            return;
        };
        if is_own {
            self.audit.ended.insert(id, by);
        } else {
            if !settled.refunded.is_empty() {
                let detail = format!(
                    "{id:?}: {:?} of another process came back",
                    settled.refunded
                );
                self.audit.break_rule("reservation", detail);
            }
            if !is_level {
                return;
            }
        }
        if is_level {
            self.audit.stock.stored += actual;
        }
        let units = held.iter().map(|held: &Held| held.units).max().unwrap_or(0);
        for held in &held {
            if held.end_us > ledger_us {
                // What expired of a level was not stored yet.
                let is_spent = settled.expired && !is_level;
                self.audit.settle(held, actual, is_spent);
            }
        }
        if let Some(tokens) = self.audit.tokens.as_mut().filter(|_| !settled.expired) {
            let holder = held[0].holder;
            tokens.refund(id, holder, units.saturating_sub(actual));
        }
    }
}
