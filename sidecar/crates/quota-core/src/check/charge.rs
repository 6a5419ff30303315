//! Taking what an admitted call takes.

use crate::{
    check::judge::{Charge, Verdict, refill_of, spend_standing},
    engine::Engine,
    id::ReservationId,
    limit::LimitKind,
    mutant::{self, Mutant},
    request::{CheckRequest, Mode},
    reservation::{Hold, HoldKind, Reservation},
    slab::Key,
    time::Now,
};

/// A bucket in use is looked after this often, real µs.
pub(crate) const UPKEEP_US: u64 = 1_000_000;

impl Engine {
    /// Takes the units of every charge; all verdicts let the call pass.
    pub(crate) fn commit(&mut self, now: Now, request: &CheckRequest) {
        let charges = std::mem::take(&mut self.charges);
        if request.mode != Mode::Peek {
            for key in charges.iter().filter_map(|charge| charge.bucket) {
                self.settle_value(key, request);
            }
        }
        match request.mode {
            Mode::Peek => {}
            Mode::GiveBack => {
                for charge in &charges {
                    self.unspend(now, charge);
                }
            }
            Mode::Consume => {
                for charge in &charges {
                    let is_spared = mutant::is(Mutant::AncestorUncharged)
                        && (self.catalog.limit(charge.limit))
                            .is_some_and(|limit| limit.tenant_name != request.tenant);
                    if !is_spared {
                        self.take(now, charge, None);
                    }
                }
            }
            Mode::Reserve { id, expires_us } | Mode::Record { id, expires_us } => {
                self.reserve(now, request, &charges, id, expires_us);
            }
        }
        self.charges = charges;
    }

    /// Takes what is there although the call is denied, for a mutant.
    pub(crate) fn take_what_fits(&mut self, now: Now) {
        for charge in self.charges.clone() {
            if charge.verdict == Verdict::Fits {
                self.take(now, &charge, None);
            }
        }
    }

    fn reserve(
        &mut self,
        now: Now,
        request: &CheckRequest,
        charges: &[Charge],
        id: ReservationId,
        expires_us: i64,
    ) {
        let mut holds = Vec::with_capacity(charges.len());
        let mut buckets = Vec::with_capacity(charges.len());
        for charge in charges {
            let Some(key) = charge.bucket else { continue };
            let is_held = self.take(now, charge, Some(id));
            let (Some(limit), Some(bucket)) =
                (self.catalog.limit(charge.limit), self.buckets.get(key))
            else {
                continue;
            };
            if bucket.counts_values {
                // A value stays counted: there is nothing to settle.
                continue;
            }
            let kind = match limit.rule.kind {
                LimitKind::TokenBucket { .. } => HoldKind::Tokens,
                LimitKind::Window => HoldKind::Window,
                LimitKind::Level => HoldKind::Level,
                LimitKind::Concurrency => HoldKind::Flight {
                    lease_epoch: bucket
                        .current
                        .as_ref()
                        .map_or(0, |window| window.lease_epoch),
                    over: if is_held { 0 } else { charge.units },
                },
            };
            let window = bucket.current.as_ref().filter(|_| kind != HoldKind::Tokens);
            holds.push(Hold {
                tenant: limit.tenant_name.clone(),
                limit: limit.rule.name.clone(),
                meter: limit.rule.meter.clone(),
                key_hash: bucket.key_hash,
                window: window.map(|window| window.info.id),
                window_end_us: window.map_or(0, |window| window.info.end_us),
                units: if is_held { charge.units } else { 0 },
                kind,
            });
            buckets.push(key);
        }
        let reservation = Reservation {
            id,
            tenant: request.tenant.clone(),
            costs: request.costs.clone(),
            holds,
            expires_us,
            holder: self.holder,
        };
        self.book.open(reservation, buckets);
    }

    /// Takes one charge. Answers whether units were taken (and not just counted).
    fn take(&mut self, now: Now, charge: &Charge, hold: Option<ReservationId>) -> bool {
        if charge.verdict == Verdict::Uncovered {
            self.uncovered_units = self.uncovered_units.saturating_add(charge.units);
        }
        let Some(key) = charge.bucket else {
            return false;
        };
        let Some(limit) = self.catalog.limit(charge.limit) else {
            return false;
        };
        let kind = limit.rule.kind;
        let Some(bucket) = self.buckets.get_mut(key) else {
            return false;
        };
        if charge.units == 0 || limit.rule.amount.is_none() {
            return false;
        }
        bucket.used_us = now.real_us;
        if !bucket.is_active {
            bucket.is_active = true;
            self.timers
                .arm(key, bucket, now.real_us.saturating_add(UPKEEP_US));
        }
        match kind {
            LimitKind::TokenBucket { .. } => {
                if charge.verdict == Verdict::Standing {
                    let _ = spend_standing(limit, bucket, charge.units, now, false);
                    let tokens = bucket.tokens.get_or_insert_default();
                    tokens.spent = tokens.spent.saturating_add(charge.units);
                    return false;
                }
                let tokens = bucket.tokens.get_or_insert_default();
                if charge.verdict == Verdict::Fits {
                    return match hold {
                        Some(id) => tokens.hold(charge.units, id, now.real_us),
                        None => tokens.take(charge.units, now.real_us),
                    };
                }
                if charge.verdict == Verdict::Uncovered
                    && let Some(refill) = refill_of(&limit.rule)
                {
                    let _ = tokens.take_uncovered(charge.units, &refill, now.ledger_us, false);
                }
                tokens.over = tokens.over.saturating_add(charge.units);
                false
            }
            _ => self.take_window(key, charge, hold.is_some(), kind == LimitKind::Concurrency),
        }
    }

    fn take_window(
        &mut self,
        key: Key,
        charge: &Charge,
        is_hold: bool,
        is_concurrency: bool,
    ) -> bool {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return false;
        };
        bucket.note_size(charge.units);
        let Some(window) = bucket.current.as_mut() else {
            bucket.over_early = bucket.over_early.saturating_add(charge.units);
            return false;
        };
        if !bucket.has_moved {
            bucket.has_moved = true;
            self.reporter.moved.push(key);
        }
        bucket.demand.taken = bucket.demand.taken.saturating_add(charge.units);
        if charge.verdict != Verdict::Fits {
            if charge.verdict == Verdict::Uncovered {
                window.uncovered = window.uncovered.saturating_add(charge.units);
            }
            window.exceed(charge.units, is_concurrency);
            return false;
        }
        let is_taken = if is_hold {
            window.balance.hold(charge.units)
        } else {
            window.balance.take(charge.units)
        };
        debug_assert!(is_taken, "a verdict said that the units were there");
        if window.balance.free < window.keep_low && window.balance.kept > 0 && !window.is_marking {
            self.keeps_due.push(key);
        }
        let here = window.balance.free.saturating_add(window.balance.kept);
        if here < window.low_mark && window.flight.is_none() {
            (bucket.ahead_steps, bucket.ahead) = (3, 0);
            self.hunts.push_back(key);
        }
        is_taken
    }
}
