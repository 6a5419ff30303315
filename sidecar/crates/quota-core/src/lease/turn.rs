//! Windows end, the next begin: old units die, early leases come into force.

use crate::{
    bucket::window::Window,
    engine::Engine,
    hash::jitter,
    id::WindowId,
    lease::pursue::Size,
    mutant::{self, Mutant},
    outbox::Report,
    slab::Key,
    time::Now,
};

/// The next window is leased this much ahead at most, ledger µs, and half as much at least.
const EARLY_US: i64 = 5_000_000;
/// A scaled clock makes that too short for a round trip: then this much ahead, real µs.
const EARLY_REAL_US: u64 = 250_000;
/// What failed is tried again after so long, real µs.
const EARLY_AGAIN_US: u64 = 100_000;
/// Only for keys used so lately, real µs.
pub(crate) const LATELY_US: u64 = 10_000_000;

impl Engine {
    /// Ends the current window if its time is up and lets the next one begin if that was leased early.
    pub(crate) fn turn_if_over(&mut self, now: Now, key: Key) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let is_over = bucket
            .current
            .as_ref()
            .is_some_and(|window| window.has_ended(now.ledger_us));
        let may_begin = bucket.current.is_none()
            && bucket
                .next
                .as_ref()
                .is_some_and(|next| next.info.start_us <= now.ledger_us);
        if is_over || may_begin {
            self.turn(now, key);
        }
    }

    fn turn(&mut self, now: Now, key: Key) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let ended = bucket.current.take();
        let carried = ended.as_ref().map_or(0, |window| window.balance.free);
        bucket.ahead_steps = 0;
        bucket.mark = (0, now.real_us);
        if ended.is_some() {
            bucket.forget_sizes();
        }
        let next = bucket
            .next
            .take_if(|next| next.info.start_us <= now.ledger_us);
        let next = next.map(|next| *next);
        let (begun, skipped) = match next {
            Some(next) if next.has_ended(now.ledger_us) => (None, Some(next)),
            next => (next, None),
        };
        bucket.current = begun;
        if let Some(window) = bucket.current.as_mut() {
            if mutant::is(Mutant::OldUnitsCarried) {
                window.balance.mint(carried);
            }
            window.balance.over = window
                .balance
                .over
                .saturating_add(std::mem::take(&mut bucket.over_early));
        }
        if !bucket.waiters.is_empty() {
            self.stir(key);
        }
        self.retire(ended);
        self.retire(skipped);
        self.watch_end(now, key);
    }

    /// Lets a window go: what reservations hold counts as spent, and the last figures are reported.
    pub(crate) fn retire(&mut self, window: Option<Window>) {
        let Some(mut window) = window else { return };
        self.forget_mark(&window);
        window.balance.spend_held(window.balance.held);
        let used = window.balance.use_cum();
        if used != window.reported {
            let entry = Report {
                bucket: None,
                window: window.info.id,
                used,
                own_use: 0,
                lease_epoch: 0,
                in_flight: 0,
                sent_us: 0,
            };
            self.reporter.keep(entry);
        }
    }

    /// Plans to look after a bucket when its window ends, or before, when the next is to be leased.
    pub(crate) fn watch_end(&mut self, now: Now, key: Key) {
        let early_us = self.early_at(now, key);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let Some(window) = bucket.current.as_ref() else {
            return;
        };
        let end_us = window.info.end_us;
        let at_us = match early_us.filter(|_| bucket.is_active) {
            Some(early_us) if early_us > now.ledger_us => early_us,
            Some(_) => {
                // It is time, but nobody who could lease it is there: not at once again.
                let again_us = now.real_us.saturating_add(EARLY_AGAIN_US);
                self.timers.arm(key, bucket, again_us);
                end_us
            }
            None => end_us,
        };
        let Some(left_us) = now.real_us_until(at_us) else {
            return;
        };
        self.timers
            .arm(key, bucket, now.real_us.saturating_add(left_us.max(1)));
    }

    /// Ledger time at which the next window of a bucket is to be leased; `None` where nobody knows yet when it begins,
    /// or the limit is over by then.
    pub(crate) fn early_at(&self, now: Now, key: Key) -> Option<i64> {
        let bucket = self.buckets.get(key)?;
        let rule = &self.catalog.limit(bucket.limit)?.rule;
        if rule.is_rolling {
            return None;
        }
        let window = bucket.current.as_ref()?;
        let end_us = window.info.end_us;
        let is_last = rule.valid_to_us.is_some_and(|to_us| to_us <= end_us);
        if is_last || bucket.next.is_some() || bucket.early_at_us == end_us {
            return None;
        }
        let length_us = end_us.saturating_sub(window.info.start_us);
        let span_us = EARLY_US.max(now.ledger_us_of(EARLY_REAL_US));
        let half_us = u64::try_from(span_us.min(length_us / 2) / 2).unwrap_or(0);
        let spread_us = jitter(&self.hasher, bucket.key_hash, bucket.limit, half_us);
        let ahead_us = i64::try_from(half_us.saturating_add(spread_us)).unwrap_or(0);
        Some(end_us.saturating_sub(ahead_us))
    }

    /// Leases the next window of a bucket that was used lately, when it is time for that.
    pub(crate) fn lease_early(&mut self, now: Now, key: Key) {
        let Some(early_us) = self.early_at(now, key) else {
            return;
        };
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let is_idle = now.real_us.saturating_sub(bucket.used_us) > LATELY_US;
        if early_us > now.ledger_us
            || is_idle
            || bucket.is_ledger_away(&self.links, now)
            || bucket.opening.is_some_and(|opening| opening.is_flying)
        {
            return;
        }
        let Some(window) = bucket.current.as_ref() else {
            return;
        };
        let end_us = window.info.end_us;
        let all = bucket.second_use.max(1);
        bucket.early_at_us = end_us;
        self.open(now, key, end_us, Size { need: 1, all });
    }

    /// The next window's units are in a pool already: fetches some once, without insisting.
    pub(crate) fn fill_next(&mut self, now: Now, key: Key, id: WindowId) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let want = bucket.second_use.max(1);
        let Some(window) = bucket.window_mut(id) else {
            return;
        };
        if window.flight.is_none()
            && window.balance.free == 0
            && !self.links.redis.is_down(now.real_us)
        {
            self.call_pool(now, key, id, 0, want);
        }
    }
}
