//! Looking after buckets: idle units go back, windows turn, what nobody needs is forgotten.

use crate::{
    bucket::Bucket,
    check::{charge::UPKEEP_US, judge::refill_of},
    engine::Engine,
    lease::turn::LATELY_US,
    slab::Key,
    time::Now,
};

/// Units idle for so long go back, real µs.
pub(crate) const IDLE_US: u64 = 2_000_000;
/// A bucket without use is looked after this often at least, real µs.
const REST_US: u64 = 3_600_000_000;
/// A token bucket whose tokens may be given back yet is looked after this often, real µs.
const TOKENS_REST_US: u64 = 60_000_000;

impl Engine {
    /// Looks after every bucket whose time has come.
    pub(crate) fn upkeep_due(&mut self, now: Now) {
        while let Some((due_us, key)) = self.timers.pop_due(now.real_us) {
            let is_meant = self
                .buckets
                .get(key)
                .is_some_and(|bucket| bucket.due_us == due_us);
            if is_meant {
                self.upkeep(now, key);
            }
        }
    }

    fn upkeep(&mut self, now: Now, key: Key) {
        self.turn_if_over(now, key);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        bucket.due_us = u64::MAX;
        let idle_us = now.real_us.saturating_sub(bucket.used_us);
        let own_use = bucket
            .current
            .as_ref()
            .map_or(0, crate::bucket::window::Window::own_use);
        let span_us = now.real_us.saturating_sub(bucket.mark.1);
        if span_us >= UPKEEP_US / 2 {
            let used = u128::from(own_use.saturating_sub(bucket.mark.0))
                .saturating_mul(u128::from(UPKEEP_US));
            let per_second = used.checked_div(u128::from(span_us)).unwrap_or(0);
            bucket.second_use = u64::try_from(per_second).unwrap_or(u64::MAX);
            bucket.mark = (own_use, now.real_us);
        }
        let keep = bucket.second_use;
        let is_recalled = bucket.waiters.is_empty() && std::mem::take(&mut bucket.recalled);
        bucket.is_active = idle_us < LATELY_US;
        let is_idle = idle_us >= IDLE_US || is_recalled;
        self.plan_keeping(key, is_idle);
        if is_recalled && self.is_standing(key) {
            self.give_back(now, key, 0);
        } else if is_idle {
            self.give_back(now, key, keep);
        } else {
            self.go_on_returning(now, key);
        }
        self.keep_lease(now, key);
        self.ask_again(now, key);
        self.lease_early(now, key);
        if !self.forget_if_done(now, key) {
            self.plan_upkeep(now, key);
        }
    }

    fn plan_upkeep(&mut self, now: Now, key: Key) {
        self.watch_end(now, key);
        self.watch_unsure(now, key);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let owes = bucket.current.as_ref().is_some_and(|window| {
            let sources = &window.balance.sources;
            sources
                .iter()
                .any(|source| source.told_ledger < source.returned_ledger)
        });
        let is_timed = bucket
            .current
            .as_ref()
            .is_some_and(crate::bucket::window::Window::is_timed);
        let is_idle = !bucket.is_active && !owes && !is_timed;
        let pause_us = if is_idle
            && bucket
                .tokens
                .as_ref()
                .is_some_and(|tokens| tokens.used() > 0)
        {
            TOKENS_REST_US
        } else if !is_idle || bucket.current.is_none() {
            UPKEEP_US
        } else {
            REST_US
        };
        self.timers
            .arm(key, bucket, now.real_us.saturating_add(pause_us));
    }

    /// Forgets a bucket whose window is over and that nobody used lately.
    fn forget_if_done(&mut self, now: Now, key: Key) -> bool {
        let Some(bucket) = self.buckets.get(key) else {
            return true;
        };
        // Who is asked and denies is in use as well: what was proved is to last.
        let heard_us = bucket.used_us.max(bucket.asked_us);
        let is_idle = now.real_us.saturating_sub(heard_us) >= LATELY_US;
        let is_needed = !bucket.waiters.is_empty()
            || bucket.has_flight()
            || bucket.has_moved
            || bucket.is_dirty
            || self.is_unsure(key)
            || self.has_tokens_to_give(now, bucket)
            || bucket
                .tokens
                .as_ref()
                .is_some_and(|tokens| tokens.is_needed() || tokens.is_denying(now.ledger_us));
        if !is_idle || is_needed || bucket.current.is_some() || bucket.next.is_some() {
            return false;
        }
        self.forget(key);
        true
    }

    /// Whether tokens that were spent here would not have come again yet: their callers may give them back.
    fn has_tokens_to_give(&self, now: Now, bucket: &Bucket) -> bool {
        let limit = self.catalog.limit(bucket.limit);
        let refill = limit.and_then(|limit| refill_of(&limit.rule));
        let (Some(tokens), Some(refill)) = (&bucket.tokens, refill) else {
            return false;
        };
        let again_us = refill.time_for(tokens.used().min(refill.burst));
        let pause_us = now.real_us_until(now.ledger_us.saturating_add(again_us));
        let idle_us = now.real_us.saturating_sub(bucket.used_us);
        tokens.used() > 0 && pause_us.is_none_or(|pause_us| idle_us < pause_us)
    }

    /// Lets a bucket go; its units are back, or lost.
    pub(crate) fn forget(&mut self, key: Key) {
        let Some(bucket) = self.buckets.remove(key) else {
            return;
        };
        if let Some(channel) = &bucket.channel
            && self.links.leave(channel, key)
        {
            self.outbox.unsubscribe(channel.clone());
        }
        let Some(limit) = self.catalog.limit_mut(bucket.limit) else {
            return;
        };
        if limit.unsplit == Some(key) {
            limit.unsplit = None;
        }
        let place = bucket.place as usize;
        if place < limit.buckets.len() {
            limit.buckets.swap_remove(place);
        }
        let moved = limit.buckets.get(place).copied();
        if let Some(moved) = moved.and_then(|key| self.buckets.get_mut(key)) {
            moved.place = bucket.place;
        }
    }
}
