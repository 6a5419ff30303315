//! Levels and units in flight: windows without end, leased by the ledger only.
//!
//! A level's units are stored until a recorded fall; the record credits the ledger, never a balance here. Units in
//! flight are leased with time: the lease counts from when its last renewal was *sent*, fences itself when that is over,
//! and is reclaimed by the ledger only well after. Until the ledger says that it is lost, a renewal brings it back whole.

use crate::{
    bucket::window::Window,
    engine::Engine,
    limit::LimitKind,
    matching,
    mutant::{self, Mutant},
    outbox::Report,
    request::{Cost, Units},
    reservation::{Hold, HoldKind},
    slab::Key,
    tenants::Lookup,
    time::Now,
};

/// A lease of units in flight is renewed this often, real µs.
pub(crate) const RENEW_US: u64 = 10_000_000;

/// What a record changes of one level.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LevelChange {
    /// Tenant whose limit it is.
    pub tenant: std::sync::Arc<str>,
    /// Limit name.
    pub limit: std::sync::Arc<str>,
    /// Key.
    pub key_hash: crate::KeyHash,
    /// Meter that the limit counts.
    pub meter: std::sync::Arc<str>,
    /// Units by which it rises or falls.
    pub units: Units,
    /// Of a rise, units admitted beyond the limit.
    pub over: Units,
}

impl Window {
    /// Whether units in flight may not be given out now, because the lease was not renewed in time.
    pub(crate) fn is_fenced(&self, now: Now) -> bool {
        self.lease_epoch != 0
            && now.real_us >= self.valid_until_us
            && !mutant::is(Mutant::FenceIgnored)
    }

    /// Units in flight here, those beyond the limit included.
    pub(crate) const fn in_flight(&self) -> Units {
        self.balance.held.saturating_add(self.over_flying)
    }

    /// Counts units admitted beyond the limit: for good, or while they are in flight.
    pub(crate) const fn exceed(&mut self, units: Units, is_concurrency: bool) {
        if is_concurrency {
            self.over_flying = self.over_flying.saturating_add(units);
        } else {
            self.balance.exceed(units);
        }
    }

    /// Own use as the fleet's figures are brought up to date with it.
    pub(crate) const fn own_use_now(&self) -> Units {
        let used = self.balance.used().saturating_sub(self.balance.debt);
        // What is in flight is held and not consumed; what a level holds is not stored yet.
        let flying = if self.lease_epoch == 0 {
            self.over_flying
        } else {
            self.in_flight()
        };
        used.saturating_add(flying)
    }

    /// Units stored or in flight over the fleet, as last heard, what changed here since then included.
    pub(crate) fn standing_use(&self) -> Units {
        let own = self.own_use_now();
        let (fleet, own_then) = self
            .fleet
            .map_or((0, 0), |(fleet, own_then)| (fleet.consumed, own_then));
        fleet
            .saturating_add(own)
            .saturating_sub(own_then)
            .saturating_sub(self.fallen.saturating_sub(self.fallen_then))
    }

    /// Takes in what the ledger said of the lease that a report was to renew.
    pub(crate) fn on_renewal(&mut self, entry: &Report, lease_epoch: u64) {
        if entry.lease_epoch == 0 || entry.lease_epoch != self.lease_epoch {
            return;
        }
        self.renewing = false;
        if lease_epoch == self.lease_epoch {
            self.renew(lease_epoch, entry.sent_us);
        } else {
            self.lose_lease();
        }
    }

    /// Whether it has a lease that must be kept alive.
    pub(crate) const fn is_timed(&self) -> bool {
        self.lease_epoch != 0 && self.balance.held.saturating_add(self.balance.free) > 0
    }
}

impl LimitKind {
    /// Whether its units are leased by the ledger only, in a window without end.
    #[must_use]
    pub const fn is_standing(self) -> bool {
        matches!(self, Self::Level | Self::Concurrency)
    }
}

impl Engine {
    /// Whether a bucket's limit is a level or counts units in flight.
    pub(crate) fn is_standing(&self, key: Key) -> bool {
        let limit = self
            .buckets
            .get(key)
            .and_then(|bucket| self.catalog.limit(bucket.limit));
        limit.is_some_and(|limit| limit.rule.kind.is_standing())
    }

    /// Ends what a reservation has in flight: the units are free at once, if the lease is still the one they came from.
    pub(crate) fn land(&mut self, now: Now, key: Key, hold: &Hold) -> bool {
        let HoldKind::Flight { lease_epoch, over } = hold.kind else {
            return false;
        };
        let Some(bucket) = self.buckets.get_mut(key) else {
            return false;
        };
        let Some(window) = hold.window.and_then(|id| bucket.window_mut(id)) else {
            return false;
        };
        let is_here = window.lease_epoch == lease_epoch;
        window.over_flying = window.over_flying.saturating_sub(over);
        let freed = if lease_epoch != 0 && is_here {
            window.balance.refund(hold.units)
        } else {
            0
        };
        self.yield_units(now, key);
        self.keep_sound(key);
        self.mark_moved(key);
        self.stir(key);
        freed > 0
    }

    /// Ends an expired hold: nothing was recorded, so the units of a level are free as those in flight are.
    pub(crate) fn expire_standing(&mut self, now: Now, key: Key, hold: &Hold) {
        if hold.kind != HoldKind::Level {
            self.land(now, key, hold);
            return;
        }
        let bucket = self.buckets.get_mut(key);
        if let Some(window) = hold
            .window
            .and_then(|id| bucket.and_then(|bucket| bucket.window_mut(id)))
        {
            window.balance.refund(hold.units);
        }
        self.yield_units(now, key);
        self.keep_sound(key);
        self.stir(key);
    }

    /// Gives freed units to who lacks them elsewhere before they are used here again.
    pub(crate) fn yield_units(&mut self, now: Now, key: Key) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let free = bucket
            .current
            .as_ref()
            .map_or(0, |window| window.balance.free);
        let units = bucket.lacking_elsewhere.min(free);
        if units > 0 {
            bucket.lacking_elsewhere = bucket.lacking_elsewhere.saturating_sub(units);
            self.give_back(now, key, free.saturating_sub(units));
        }
    }

    /// Takes in that somebody elsewhere lacks units: all that is free goes back, and so many of the next ones.
    pub(crate) fn on_standing_recall(&mut self, now: Now, key: Key, units: Units) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let free = bucket
            .current
            .as_ref()
            .map_or(0, |window| window.balance.free);
        bucket.lacking_elsewhere = units.saturating_sub(free);
        bucket.recalled = bucket.has_flight();
        self.give_back(now, key, 0);
    }

    /// Takes in that a renewal brought no answer: the next report tries again.
    pub(crate) fn on_no_renewal(&mut self, entry: &Report) {
        let bucket = entry.bucket.and_then(|key| self.buckets.get_mut(key));
        if let Some(window) = bucket.and_then(|bucket| bucket.window_mut(entry.window)) {
            window.renewing = false;
        }
    }

    /// Keeps a lease of units in flight alive: its next report renews it.
    pub(crate) fn keep_lease(&mut self, now: Now, key: Key) {
        let is_due = self
            .buckets
            .get(key)
            .and_then(|bucket| bucket.current.as_ref())
            .is_some_and(|window| {
                window.is_timed() && now.real_us.saturating_sub(window.renewal_sent_us) >= RENEW_US
            });
        if is_due {
            self.mark_moved(key);
        }
    }

    /// Sends the renewal of a fenced lease now, where none is under way.
    pub(crate) fn renew_at_once(&mut self, now: Now, key: Key) {
        self.mark_moved(key);
        self.report(now, true);
    }

    /// What a record of these costs would change of levels, own and inherited; `None` while the tenant isn't known.
    pub fn levels(
        &mut self,
        now: Now,
        tenant: &std::sync::Arc<str>,
        costs: &[Cost],
        attributes: &[(Box<str>, Box<str>)],
    ) -> Option<Vec<LevelChange>> {
        let Lookup::Known(index) = self.catalog.look_up(now, tenant, self.outbox.watch_list())
        else {
            return None;
        };
        let mut changes = Vec::new();
        for cost in costs.iter().filter(|cost| cost.units > 0) {
            for limit in self.catalog.limits_on(index, &cost.meter) {
                let Some(limit) = self.catalog.limit(*limit) else {
                    continue;
                };
                let rule = &limit.rule;
                let counts = rule.kind == LimitKind::Level && rule.amount.is_some();
                if !counts || !matching::applies(rule, attributes, now.ledger_us) {
                    continue;
                }
                let values: Box<[Box<str>]> = matching::key_values(rule, attributes)
                    .map(Box::from)
                    .collect();
                changes.push(LevelChange {
                    tenant: limit.tenant_name.clone(),
                    limit: rule.name.clone(),
                    key_hash: crate::hash::key_hash(&values),
                    meter: rule.meter.clone(),
                    units: cost.units,
                    over: 0,
                });
            }
        }
        Some(changes)
    }

    /// Takes in that a fall of a level was recorded here, so that figures show it before the ledger has it.
    pub fn fell(&mut self, change: &LevelChange) {
        for key in self.buckets_named(&change.tenant, &change.limit, Some(change.key_hash)) {
            let Some(bucket) = self.buckets.get_mut(key) else {
                continue;
            };
            if let Some(window) = bucket.current.as_mut() {
                window.fallen = window.fallen.saturating_add(change.units);
                if mutant::is(Mutant::FallFreesHere) {
                    window.balance.mint(change.units);
                }
                self.mark_moved(key);
            }
        }
    }
}

/// Units that a settled hold on a level makes it rise by, and how many of them no lease was used for.
#[must_use]
pub fn rise(hold: &Hold, reserved: Units, actual: Units) -> Option<LevelChange> {
    if hold.kind != HoldKind::Level || actual == 0 {
        return None;
    }
    let is_over = hold.units == 0 && reserved > 0;
    Some(LevelChange {
        tenant: hold.tenant.clone(),
        limit: hold.limit.clone(),
        key_hash: hold.key_hash,
        meter: hold.meter.clone(),
        units: actual,
        over: if is_over { actual } else { 0 },
    })
}
