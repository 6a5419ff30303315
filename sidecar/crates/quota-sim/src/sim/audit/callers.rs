//! What callers were told: admitted, held, settled, given back, fallen.

use quota_core::{Holder, KeyHash, ReservationId};

use super::{Audit, Held, Span};
use crate::world::World;

impl Audit {
    /// Takes in that units were admitted in a window.
    pub fn admit(&mut self, span: &Span, holder: Holder, units: u64) {
        self.admitted += units;
        let tally = self.tallies.entry(span.clone()).or_default();
        tally.used += units;
        let share = tally.shares.entry(holder).or_default();
        share.used += units;
        let (share, used, mut bound) = (*share, tally.used, tally.bound);
        if tally.is_standing {
            // What was settled above its reserve is stored beside the limit until the ledger hears of it.
            bound += tally.shares.values().map(|share| share.owed).sum::<u64>();
        }
        if used > bound {
            let detail = format!("{used} of {bound} admitted in {} from {}", span.0, span.2);
            self.break_rule("overshoot", detail);
        }
        if share.used + share.owed + share.returning > share.granted {
            self.break_rule("I3", format!("holder {:?}: {share:?}", &holder.0[..8]));
        }
    }

    /// Takes in that held units were not used after all, or more was used than held.
    pub fn settle(&mut self, held: &Held, actual: u64, is_expired: bool) {
        let Some(tally) = self.tallies.get_mut(&held.span) else {
            return;
        };
        let share = tally.shares.entry(held.holder).or_default();
        if !is_expired {
            let unused = held.units.saturating_sub(actual);
            // Falls may have taken more than that, where something was settled above what it held.
            tally.used = tally.used.saturating_sub(unused);
            share.used -= unused;
        }
        share.owed += actual.saturating_sub(held.units);
    }

    /// Takes in that a value was admitted: distinct ones are never more than the limit.
    pub fn admit_value(&mut self, span: &Span, attributes: &[(Box<str>, Box<str>)]) {
        let Some((_, value)) = attributes.first() else {
            return;
        };
        self.admitted += 1;
        let values = self.values.entry(span.clone()).or_default();
        if !values.insert(value.clone()) {
            return;
        }
        let tally = self.tallies.entry(span.clone()).or_default();
        tally.used += 1;
        let (used, bound) = (tally.used, tally.bound);
        if used > bound {
            let detail = format!("{used} values of {bound} in {} from {}", span.0, span.2);
            self.break_rule("overshoot", detail);
        }
    }

    /// Units that calls used at a holder, and that no reservation holds: so many may be given back there.
    #[must_use]
    pub fn used_by(&self, span: &Span, holder: Holder) -> u64 {
        let share = self
            .tallies
            .get(span)
            .and_then(|tally| tally.shares.get(&holder));
        let share = share.copied().unwrap_or_default();
        let open = self.held.values().flatten();
        let held: u64 = open
            .filter(|held| held.holder == holder && held.span == *span && !held.has_expired)
            .map(|held| held.units)
            .sum();
        (share.used + share.owed).saturating_sub(held)
    }

    /// Takes in that a caller gave back what it had used: what nothing stood for goes first.
    pub fn unuse(&mut self, span: &Span, holder: Holder, units: u64) {
        let Some(tally) = self.tallies.get_mut(span) else {
            return;
        };
        let share = tally.shares.entry(holder).or_default();
        let unpaid = units.min(share.owed);
        let used = (units - unpaid).min(share.used);
        share.owed -= unpaid;
        share.used -= used;
        share.back += units;
        tally.used = tally.used.saturating_sub(used);
    }

    /// Takes in that a level fell, as its caller was told.
    pub fn fall(&mut self, span: &Span, id: u64, units: u64) {
        self.stock.fall(id, units);
        if let Some(tally) = self.tallies.get_mut(span) {
            tally.used = tally.used.saturating_sub(units);
        }
    }

    /// Takes in what an operator says is stored; `stored` with what logs hold and the ledger does not know yet.
    pub fn set_level(&mut self, span: &Span, stored: u64) {
        self.stock.stored = stored;
        let held: u64 = self.held.values().flatten().map(|held| held.units).sum();
        if let Some(tally) = self.tallies.get_mut(span) {
            tally.used = stored + held;
        }
    }

    /// The most that may be out of the only window.
    #[must_use]
    pub fn bound(&self) -> u64 {
        let tally = self.tallies.values().next();
        tally.map_or(0, |tally| tally.bound)
    }

    /// A reservation's time is up at its home: what it held of a level or in flight is free, other units are spent.
    pub(super) fn expire(&mut self, id: ReservationId) {
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        for held in held {
            held.has_expired = true;
            if let Some(tally) = self
                .tallies
                .get_mut(&held.span)
                .filter(|one| one.is_standing)
            {
                tally.used = tally.used.saturating_sub(held.units);
                tally.shares.entry(held.holder).or_default().used -= held.units;
                held.units = 0;
            }
        }
        self.stock.land(id);
        if let Some(tokens) = &mut self.tokens {
            tokens.spend(id);
        }
    }

    /// Notes a reservation whose units are counted elsewhere than in windows.
    pub fn hold_apart(&mut self, id: ReservationId, holder: Holder, units: u64) {
        let held = Held {
            span: ("apart".into(), KeyHash::default(), 0),
            end_us: i64::MAX,
            holder,
            units,
            has_expired: false,
        };
        self.held.insert(id, vec![held]);
    }

    /// What a holder reports as used it was asked for, and said yes to.
    pub fn compare_use(&mut self, world: &World) {
        for (holder, window, consumed_cum) in std::mem::take(&mut self.reported) {
            let counts_values = self.counts_values;
            let Some(tally) = self.tally(window, world) else {
                continue;
            };
            let share = tally.shares.get(&holder).copied().unwrap_or_default();
            let most = if counts_values {
                share.granted
            } else {
                share.used + share.owed + share.back
            };
            if consumed_cum > most {
                let detail = format!("{consumed_cum} units reported as used: {share:?}");
                self.break_rule("use", detail);
            }
        }
    }

    /// Whether a holder used more than it had reserved, which it pays before anything else is admitted.
    #[must_use]
    pub fn owes(&self, holder: Holder) -> bool {
        let mut tallies = self.tallies.values();
        tallies.any(|tally| {
            tally
                .shares
                .get(&holder)
                .is_some_and(|share| share.owed > 0)
        })
    }
}
