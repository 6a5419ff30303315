//! Open reservations: what they hold, and what becomes of it.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use foldhash::fast::FixedState;

use crate::{
    effect::Effect,
    engine::Engine,
    hash::Map,
    id::ReservationId,
    limit::Enforcement,
    mutant::{self, Mutant},
    request::{Cost, Units},
    reservation::{Hold, HoldKind, Reservation, SettleRefusal, Settled},
    slab::Key,
    time::Now,
};

/// Expired reservations are remembered, so that a late settlement is told apart from an unknown one.
const EXPIRED_MAX: usize = 65_536;

#[derive(Debug)]
struct Entry {
    reservation: Reservation,
    /// The bucket of each hold; none for another process' reservation.
    buckets: Vec<Key>,
    is_expired: bool,
}

/// All reservations.
#[derive(Debug)]
pub(crate) struct Book {
    entries: Map<ReservationId, Entry>,
    expiries: BinaryHeap<Reverse<(i64, ReservationId)>>,
    expired: VecDeque<ReservationId>,
}

impl Book {
    /// None.
    pub(crate) fn new(state: FixedState) -> Self {
        Self {
            entries: Map::with_hasher(state),
            expiries: BinaryHeap::new(),
            expired: VecDeque::new(),
        }
    }

    /// Takes a reservation in.
    pub(crate) fn open(&mut self, reservation: Reservation, buckets: Vec<Key>) {
        let id = reservation.id;
        self.expiries.push(Reverse((reservation.expires_us, id)));
        self.entries.insert(
            id,
            Entry {
                reservation,
                buckets,
                is_expired: false,
            },
        );
    }

    /// An open one.
    pub(crate) fn get(&self, id: ReservationId) -> Option<&Reservation> {
        self.entries
            .get(&id)
            .filter(|entry| !entry.is_expired)
            .map(|entry| &entry.reservation)
    }

    /// Ledger time of the next expiry; never late.
    pub(crate) fn next_expiry_us(&self) -> Option<i64> {
        self.expiries
            .peek()
            .map(|Reverse((expires_us, _))| *expires_us)
    }

    fn pop_expired(&mut self, ledger_us: i64) -> Option<ReservationId> {
        while let Some(Reverse((expires_us, id))) = self.expiries.peek().copied() {
            if expires_us > ledger_us {
                return None;
            }
            self.expiries.pop();
            let is_open = self.entries.get(&id).is_some_and(|entry| {
                !entry.is_expired && entry.reservation.expires_us == expires_us
            });
            if is_open {
                return Some(id);
            }
        }
        None
    }

    fn remember_expired(&mut self, id: ReservationId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.is_expired = true;
        }
        self.expired.push_back(id);
        if self.expired.len() > EXPIRED_MAX
            && let Some(oldest) = self.expired.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }
}

/// How one meter of a reservation ends.
#[derive(Clone, Copy, Debug)]
struct Ending {
    reserved: Units,
    actual: Units,
    refund: Units,
    excess: Units,
}

impl Engine {
    /// Ends a reservation at what was used.
    pub(crate) fn settle_reservation(
        &mut self,
        now: Now,
        id: ReservationId,
        actual: &[Cost],
    ) -> Result<Settled, SettleRefusal> {
        let entry = self
            .book
            .entries
            .remove(&id)
            .ok_or(SettleRefusal::Unknown)?;
        if mutant::is(Mutant::SettledTwice) {
            let buckets = entry.buckets.clone();
            self.book.open(entry.reservation.clone(), buckets);
        }
        let expired = entry.is_expired || entry.reservation.expires_us <= now.ledger_us;
        let mut settled = Settled {
            refunded: Vec::new(),
            excess: Vec::new(),
            expired,
        };
        for cost in &entry.reservation.costs {
            let used = actual
                .iter()
                .find(|used| used.meter == cost.meter)
                .map_or(0, |used| used.units);
            let ending = Ending {
                reserved: cost.units,
                actual: used,
                refund: cost.units.saturating_sub(used),
                excess: used.saturating_sub(cost.units),
            };
            let is_refunded = self.end_holds(now, &entry, cost, ending, expired);
            if ending.refund > 0 && is_refunded {
                settled.refunded.push(Cost {
                    meter: cost.meter.clone(),
                    units: ending.refund,
                });
            }
            if ending.excess > 0 {
                settled.excess.push(Cost {
                    meter: cost.meter.clone(),
                    units: ending.excess,
                });
            }
        }
        let unreserved = |used: &&Cost| {
            used.units > 0
                && !entry
                    .reservation
                    .costs
                    .iter()
                    .any(|cost| cost.meter == used.meter)
        };
        settled
            .excess
            .extend(actual.iter().filter(unreserved).cloned());
        Ok(settled)
    }

    /// Ends what a reservation holds of one meter. Answers whether units went back, or none were held at all.
    fn end_holds(
        &mut self,
        now: Now,
        entry: &Entry,
        cost: &Cost,
        ending: Ending,
        expired: bool,
    ) -> bool {
        let is_own = entry.reservation.holder == self.holder;
        let (mut had_holds, mut went_back) = (false, false);
        for (hold, key) in entry.reservation.holds.iter().zip(&entry.buckets) {
            if hold.meter != cost.meter || !is_own {
                continue;
            }
            had_holds |= hold.units > 0;
            if let HoldKind::Flight { .. } = hold.kind {
                went_back |= !entry.is_expired && self.land(now, *key, hold);
                continue;
            }
            self.turn_if_over(now, *key);
            if hold.kind == HoldKind::Tokens {
                let used = if expired { hold.units } else { ending.actual };
                went_back |= self.settle_tokens(now, *key, entry.reservation.id, used) > 0;
                continue;
            }
            went_back |= self.end_window_hold(*key, hold, entry.is_expired, ending, expired);
        }
        let is_own = is_own || mutant::is(Mutant::DeadRefunded);
        !expired && is_own && (went_back || !had_holds)
    }

    /// Ends what a reservation holds of one window or level. Answers whether units went back.
    fn end_window_hold(
        &mut self,
        key: Key,
        hold: &Hold,
        was_expired: bool,
        ending: Ending,
        expired: bool,
    ) -> bool {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return false;
        };
        let enforcement = self
            .catalog
            .limit(bucket.limit)
            .map(|limit| limit.rule.enforcement);
        let place = if mutant::is(Mutant::RefundIntoNewWindow) {
            bucket.current.as_mut()
        } else {
            hold.window.and_then(|id| bucket.window_mut(id))
        };
        let Some(window) = place else {
            return false;
        };
        if mutant::is(Mutant::RefundIntoNewWindow) && Some(window.info.id) != hold.window {
            window.balance.mint(hold.units);
        }
        let mut went_back = false;
        if !was_expired {
            let spent = if expired && hold.kind != HoldKind::Level {
                hold.units
            } else {
                hold.units.min(ending.actual)
            };
            window.balance.spend_held(spent);
            went_back = window.balance.refund(hold.units.saturating_sub(spent)) > 0;
        }
        let excess = match hold.kind {
            // Expired units of a level went back: what was used all the same is owed whole.
            HoldKind::Level if was_expired => ending.actual,
            _ => ending.excess,
        };
        if excess > 0 {
            match enforcement {
                Some(Enforcement::Hard) if hold.units > 0 || ending.reserved == 0 => {
                    window.balance.owe(excess);
                }
                _ => window.balance.exceed(excess),
            }
        }
        if window.is_log_behind() {
            self.keeps_due.push(key);
        }
        self.keep_sound(key);
        self.mark_moved(key);
        self.stir(key);
        went_back
    }

    /// Takes a charge back as if it had never been.
    pub(crate) fn undo(&mut self, now: Now, id: ReservationId) {
        let Some(entry) = self.book.entries.remove(&id) else {
            return;
        };
        for cost in &entry.reservation.costs {
            let ending = Ending {
                reserved: cost.units,
                actual: 0,
                refund: cost.units,
                excess: 0,
            };
            self.end_holds(now, &entry, cost, ending, false);
        }
    }

    /// Ends reservations whose time is up: units of windows stay spent, those of levels and in flight go back.
    pub(crate) fn expire_reservations(&mut self, now: Now) {
        while let Some(id) = self.book.pop_expired(now.ledger_us) {
            let Some(entry) = self.book.entries.get(&id) else {
                continue;
            };
            let is_own = entry.reservation.holder == self.holder;
            let pairs: Vec<_> = entry
                .reservation
                .holds
                .iter()
                .cloned()
                .zip(entry.buckets.clone())
                .collect();
            for (hold, key) in pairs {
                if !is_own {
                    continue;
                }
                if hold.kind != HoldKind::Window && hold.kind != HoldKind::Tokens {
                    self.expire_standing(now, key, &hold);
                    continue;
                }
                let (window, units) = (hold.window, hold.units);
                if window.is_none() {
                    let _ = self.settle_tokens(now, key, id, units);
                }
                let bucket = self.buckets.get_mut(key);
                if let Some(window) = window.and_then(|id| bucket?.window_mut(id)) {
                    if mutant::is(Mutant::ExpiryRefunds) {
                        let _ = window.balance.refund(units);
                    }
                    window.balance.spend_held(units);
                    self.mark_moved(key);
                }
            }
            self.book.remember_expired(id);
            self.outbox.tell(Effect::Expired(id));
        }
    }
}
