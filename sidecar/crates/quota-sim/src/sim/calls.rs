//! One call after the other: what is asked, where and how; and what comes of giving back.

use quota_core::{Mode, Reason, ReservationId};

use super::{Run, Span, states_of};
use crate::world::Verdict;

impl Run {
    /// One call, reservation, settlement or fall somewhere.
    pub(super) fn use_something(&mut self) {
        let node = self.draw(self.schedule.nodes as u64);
        if self.world.is_paused(node) {
            return;
        }
        let is_large = self.world.rng.chance(self.schedule.large_rate);
        let large = self.schedule.amount / 4 + 1;
        let units = if is_large && self.schedule.values == 0 {
            self.world.rng.between(1, large)
        } else {
            1
        };
        let mut check = self.template.clone();
        check.costs[0].units = units;
        check.all_limits = self.is_manifold();
        if !self.schedule.inherited.is_empty() {
            check.tenant = ["t", "t", "u", "p"][self.draw(4)].into();
        }
        if self.schedule.keys > 1 {
            let key = if self.world.rng.chance(500) { "a" } else { "b" };
            check.attributes = vec![("user".into(), key.into())];
        }
        if self.schedule.values > 0 {
            let value = self.world.rng.below(self.schedule.values);
            check.attributes = vec![("user".into(), value.to_string().into())];
        }
        if self.is_standing() {
            return self.use_standing(node, check);
        }
        if self.schedule.back_rate > 0 && self.world.rng.chance(self.schedule.back_rate) {
            check.mode = Mode::GiveBack;
        } else if self.world.rng.chance(self.schedule.reserve_rate) {
            let (id, expires_us) = self.next_reservation(node);
            check.mode = Mode::Reserve { id, expires_us };
        }
        self.world.check(node, &check);
        self.hear();
        if self.world.rng.chance(self.schedule.reserve_rate * 3 / 4) {
            self.settle_something();
        }
    }

    /// Names a reservation and draws when it expires.
    pub(super) fn next_reservation(&mut self, node: usize) -> (ReservationId, i64) {
        self.serial += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.serial.to_be_bytes());
        let ttl_us = if self.world.rng.chance(300) {
            50_000
        } else {
            3_600_000_000
        };
        let ttl_us = ttl_us * self.schedule.speed_milli / 1_000;
        (
            ReservationId(id),
            self.world.now_of(node).ledger_us + ttl_us,
        )
    }

    /// What is given back was used by calls at the same process, of the window that is open, and not given back before.
    pub(super) fn judge_give_back(&mut self, verdict: &Verdict, units: u64) {
        let (holder, decision) = (verdict.holder, &verdict.decision);
        let is_taken = decision.reason.allowed();
        if self.schedule.is_bucket() {
            if let Some(tokens) = self.audit.tokens.as_mut().filter(|_| is_taken) {
                tokens.give_back(holder, units);
            }
            return;
        }
        for state in states_of(decision) {
            let Some((start_us, _)) = state.window_us else {
                continue;
            };
            let span: Span = (state.name.clone(), self.world.key_of(state), start_us);
            let own = self.audit.used_by(&span, holder);
            if is_taken && own < units {
                let detail = format!("{units} units given back, {own} were used");
                self.audit.break_rule("give back", detail);
            }
            if is_taken {
                self.audit.unuse(&span, holder, units);
            }
            let is_refused = decision.reason == Reason::NotConsumedHere;
            if is_refused && self.is_simple() && own >= units {
                let detail = format!("{own} units were used, {units} are not taken back");
                self.audit.break_rule("give back", detail);
            }
        }
    }
}
