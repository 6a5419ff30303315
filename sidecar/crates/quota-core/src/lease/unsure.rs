//! Asks of which nobody knows what came: what they may have brought is fetched and goes back, though nobody waits for it.
//!
//! Whoever was asked counts those units as lent. Unless they are fetched, everybody lacks them until the window ends, and
//! levels and units in flight end never.

use crate::{
    bucket::{Bucket, Opening, window::Window},
    check::charge::UPKEEP_US,
    engine::Engine,
    id::WindowId,
    lease::pursue::Size,
    slab::Key,
    time::Now,
};

/// Of a window it is asked again after as long as that took up to now, at least [`UPKEEP_US`] and at most this, real µs:
/// a ledger that is behind is not kept behind.
const PAUSE_MAX_US: u64 = 60_000_000;

/// Whom to ask again.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// The ledger, for a window of which nothing is known.
    Opening(Opening),
    /// The ledger, for more of a window.
    Ledger(WindowId),
    /// The window's pool.
    Pool(WindowId),
}

impl Bucket {
    /// What was asked without an answer, and when first, real µs.
    fn unsure(&self) -> Option<(Asked, u64)> {
        let of_window = |window: &Window| {
            let id = window.info.id;
            let ledger = window.unsure.map(|sent| (Asked::Ledger(id), sent.real_us));
            let is_served = window.fault.is_none() && !self.counts_values;
            let pool = window.pool.as_ref().filter(|_| is_served);
            let pool = pool.and_then(|pool| pool.unsure);
            ledger.or(pool.map(|sent| (Asked::Pool(id), sent.real_us)))
        };
        let mut windows = self.current.iter().chain(self.next.as_deref());
        let opening = self
            .opening
            .map(|opening| (Asked::Opening(opening), opening.sent.real_us));
        windows.find_map(of_window).or(opening)
    }
}

impl Engine {
    /// Whether an answer about units of a bucket is missing that is worth to be asked for again.
    pub(crate) fn is_unsure(&self, key: Key) -> bool {
        self.unsure(key).is_some()
    }

    fn unsure(&self, key: Key) -> Option<(Asked, u64)> {
        let bucket = self.buckets.get(key)?;
        let is_rolling = self
            .catalog
            .limit(bucket.limit)
            .is_some_and(|limit| limit.rule.is_rolling);
        // A rolling window begins with a use: to ask for it again for nobody might begin it.
        bucket
            .unsure()
            .filter(|(asked, _)| !is_rolling || !matches!(asked, Asked::Opening(_)))
    }

    /// Asks again where an answer was lost and nobody waits any more: what it may have brought is to go back.
    pub(crate) fn ask_again(&mut self, now: Now, key: Key) {
        let unsure = self.unsure(key);
        let is_redis_down = self.links.redis.is_down(now.real_us);
        let pause_max_us = self.pause_max_us(key);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let Some((asked, since_us)) = unsure else {
            bucket.again_us = 0;
            return;
        };
        if bucket.has_flight() || !bucket.waiters.is_empty() {
            bucket.is_active = true;
            return;
        }
        let is_away = match asked {
            Asked::Pool(_) => is_redis_down,
            Asked::Ledger(_) | Asked::Opening(_) => bucket.is_ledger_away(&self.links, now),
        };
        if is_away || now.real_us < bucket.again_us {
            return;
        }
        let span_us = now.real_us.saturating_sub(since_us);
        let pause_us = span_us.clamp(UPKEEP_US, pause_max_us);
        // What it brings is looked for in a second.
        (bucket.again_us, bucket.is_active) = (now.real_us.saturating_add(pause_us), true);
        match asked {
            Asked::Ledger(id) => self.ask_for_nothing(now, key, id),
            Asked::Pool(id) => self.call_pool(now, key, id, 0, 0),
            Asked::Opening(opening) => {
                let at_us = opening.at_us.max(now.ledger_us);
                self.open(now, key, at_us, Size { need: 1, all: 1 });
            }
        }
    }

    /// Looks after a bucket again when it is to be asked again for an answer that was lost.
    pub(crate) fn watch_unsure(&mut self, now: Now, key: Key) {
        if !self.is_unsure(key) {
            return;
        }
        if let Some(bucket) = self.buckets.get_mut(key) {
            let soon_us = now.real_us.saturating_add(UPKEEP_US);
            let again_us = bucket.again_us.max(soon_us);
            self.timers.arm(key, bucket, again_us);
        }
    }

    fn pause_max_us(&self, key: Key) -> u64 {
        if self.is_standing(key) {
            UPKEEP_US
        } else {
            PAUSE_MAX_US
        }
    }
}
