//! Giving units back to where they came from: lower the balance first, then say so, cumulatively.

use crate::{
    engine::Engine, event::CommandFailure, id::WindowId, outbox::Return, request::Units, slab::Key,
    time::Now,
};

impl Engine {
    /// Returns all free units of a bucket's current window above `keep`.
    pub(crate) fn give_back(&mut self, now: Now, key: Key, keep: Units) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let Some(window) = bucket.current.as_mut() else {
            return;
        };
        window.balance.keep_apart(0, 0);
        if window.balance.free > keep {
            let to_pool = window.balance.give_back(keep, window.pool_generation());
            if let Some(pool) = window.pool.as_mut() {
                pool.free = pool.free.saturating_add(to_pool);
            }
            window.low_mark = 0;
            if window.balance.kept > 0 {
                window.is_mark_behind = true;
                self.keeps_due.push(key);
            }
        }
        self.keep_sound(key);
        self.go_on_returning(now, key);
    }

    /// Returns everything of the window leased early.
    pub(crate) fn give_back_next(&mut self, now: Now, key: Key) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let Some(window) = bucket.next.as_deref_mut() else {
            return;
        };
        let _ = window.balance.give_back(0, window.pool_generation());
        self.go_on_returning(now, key);
    }

    /// Says what was returned and not confirmed yet, where nothing is under way and nobody waits.
    pub(crate) fn go_on_returning(&mut self, now: Now, key: Key) {
        self.fall_behind(key);
        let Some(bucket) = self.buckets.get(key) else {
            return;
        };
        let ids = [bucket.current.as_ref(), bucket.next.as_deref()];
        for id in ids
            .map(|window| window.map(|window| window.info.id))
            .into_iter()
            .flatten()
        {
            self.tell_of_returns(now, key, id);
            self.return_to_ledger(now, key, id);
            if !self.take_marks_back(now, key, id) {
                self.return_to_pool(now, key, id);
            }
        }
    }

    /// Tells the ledger of a lost pool before units of it go back: whoever that pool refused hears of them then.
    fn tell_of_returns(&mut self, now: Now, key: Key, id: WindowId) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        // Whoever waits sends an ask soon, and that tells it.
        let is_busy = bucket.is_ledger_away(&self.links, now) || !bucket.waiters.is_empty();
        let Some(window) = bucket
            .window_mut(id)
            .filter(|window| window.is_fault_untold && window.flight.is_none() && !is_busy)
        else {
            return;
        };
        let lost = window.pool.as_ref().map(|pool| pool.generation);
        let is_due = window
            .balance
            .sources
            .iter()
            .any(|source| source.is_pools(lost) && source.told_ledger < source.returned_ledger);
        if is_due {
            self.ask_for_nothing(now, key, id);
        }
    }

    fn return_to_pool(&mut self, now: Now, key: Key, id: WindowId) {
        let is_redis_down = self.links.redis.is_down(now.real_us);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        // Whoever waits sends a request soon, and that carries the return.
        let is_busy = !bucket.waiters.is_empty() || is_redis_down;
        let Some(window) = bucket
            .window_mut(id)
            .filter(|window| window.flight.is_none() && !is_busy)
        else {
            return;
        };
        let Some(generation) = window.pool_generation() else {
            return;
        };
        let source = window
            .balance
            .sources
            .iter()
            .find(|source| source.is_pools(Some(generation)));
        if source.is_some_and(|source| source.told_pool < source.returned_pool) {
            self.call_pool(now, key, id, 0, 0);
        }
    }

    fn return_to_ledger(&mut self, now: Now, key: Key, id: WindowId) {
        let is_down = self.links.ledger.is_down(now.real_us);
        let Some(window) = self
            .buckets
            .get_mut(key)
            .and_then(|bucket| bucket.window_mut(id))
        else {
            return;
        };
        if window.returning || is_down {
            return;
        }
        let untold = window
            .pool
            .as_ref()
            .filter(|_| window.is_fault_untold)
            .map(|pool| pool.generation);
        for source in &window.balance.sources {
            if source.told_ledger < source.returned_ledger && !source.is_pools(untold) {
                window.returning = true;
                let returned_cum = source.returned_ledger;
                self.outbox.give_back(Return {
                    bucket: Some(key),
                    window: id,
                    from: source.from,
                    generation: source.generation,
                    returned_cum,
                });
            }
        }
    }

    /// Takes in what the ledger confirmed.
    pub(crate) fn on_returned(
        &mut self,
        now: Now,
        entries: &[Return],
        result: Result<Vec<Units>, CommandFailure>,
    ) {
        let told = result.unwrap_or_default();
        for (place, entry) in entries.iter().enumerate() {
            let Some(key) = entry.bucket else {
                self.unclaimed.on_returned(entry, told.get(place).is_some());
                continue;
            };
            let Some(bucket) = self.buckets.get_mut(key) else {
                continue;
            };
            let Some(window) = bucket.window_mut(entry.window) else {
                continue;
            };
            window.returning = false;
            if told.get(place).is_some() {
                // What it did not take it never will: a cumulative return is taken whole or lost.
                let source = window.balance.source_of(entry.from, entry.generation);
                let confirmed = entry.returned_cum.saturating_sub(source.told_ledger);
                source.told_ledger = source.told_ledger.max(entry.returned_cum);
                window.info.allotted = window.info.allotted.saturating_sub(confirmed);
                // The ledger has units again: a pool that called itself final may not be.
                window.extend = window.pool.is_some();
                window.proof = None;
                // Whoever answers an ask from before may not have had them yet.
                bucket.notices = bucket.notices.wrapping_add(1);
            }
            self.stir(key);
        }
        if !told.is_empty() {
            for key in entries.iter().filter_map(|entry| entry.bucket) {
                self.go_on_returning(now, key);
            }
        }
    }

    /// Asserts I3; a balance that breaks it is never spent.
    pub(crate) fn keep_sound(&mut self, key: Key) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        for window in bucket.current.iter_mut().chain(bucket.next.as_deref_mut()) {
            let is_sound = window.balance.is_sound();
            debug_assert!(is_sound, "I3 is broken: {:?}", window.balance);
            if !is_sound {
                (window.balance.free, window.balance.standby) = (0, 0);
            }
        }
    }
}
