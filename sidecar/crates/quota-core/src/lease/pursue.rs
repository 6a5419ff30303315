//! Going after units that are missing: one request per bucket at a time, sized for everybody who waits.

use crate::{
    bucket::{Bucket, Opening},
    check::{aside::Turn, judge::refill_of},
    engine::Engine,
    id::WindowId,
    lease::plan::{Plan, plan},
    limit::LimitKind,
    proof::Sent,
    request::Units,
    slab::Key,
    time::Now,
};

/// What a request should bring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Size {
    /// At least this or nothing; 0 = nobody waits.
    pub(crate) need: Units,
    /// For everybody who waits.
    pub(crate) all: Units,
}

impl Engine {
    /// What those who wait at a bucket lack: the first of them, or the one that lacks least.
    pub(crate) fn size(&self, bucket: &Bucket, now: Now, smallest_first: bool) -> Option<Size> {
        let mut size: Option<Size> = None;
        let is_refused = is_refused(bucket, now);
        for (waiter, cost) in &bucket.waiters {
            let Some(state) = self.waiting.get(*waiter) else {
                continue;
            };
            // After a refusal more than what is lacked would be refused for longer than the call may wait.
            let turn = match size {
                _ if is_refused => Turn::LAST,
                None => state.turn,
                // All that is set aside is near enough for those after the first, and known at once.
                Some(_) => Turn::NEWCOMER,
            };
            let missing = missing(bucket, *cost, turn, now, self.is_token(bucket));
            let is_fenced = bucket
                .current
                .as_ref()
                .is_some_and(|window| window.is_fenced(now));
            if missing == 0 && *cost > 0 && !is_fenced {
                continue;
            }
            size = Some(size.map_or(
                Size {
                    need: missing,
                    // Who waits for a renewal lacks no units, and waits all the same.
                    all: if is_fenced { *cost } else { missing },
                },
                |size| Size {
                    need: if smallest_first {
                        size.need.min(missing)
                    } else {
                        size.need
                    },
                    all: size.all.saturating_add(*cost),
                },
            ));
        }
        size
    }

    fn is_token(&self, bucket: &Bucket) -> bool {
        let kind = self
            .catalog
            .limit(bucket.limit)
            .map(|limit| limit.rule.kind);
        matches!(kind, Some(LimitKind::TokenBucket { .. }))
    }

    /// Takes the next step for a bucket that somebody waits for, or that is to hold more.
    pub(crate) fn pursue(&mut self, now: Now, key: Key) {
        self.turn_if_over(now, key);
        let Some(bucket) = self.buckets.get(key) else {
            return;
        };
        let smallest_first = bucket
            .current
            .as_ref()
            .is_some_and(|window| window.smallest_first);
        let size = self.size(bucket, now, smallest_first);
        if size.is_none() && bucket.ahead_steps == 0 {
            return;
        }
        if size.is_some() && self.stop_keeping(key) {
            // What is missing may be here: the mark's outcome wakes those who wait.
            return;
        }
        let Some(bucket) = self.buckets.get(key) else {
            return;
        };
        let is_for_nobody = size.is_none_or(|size| size.all == 0);
        let size = size.unwrap_or(Size {
            need: 0,
            all: bucket.ahead,
        });
        let Some(limit) = self.catalog.limit(bucket.limit) else {
            return;
        };
        let plan = plan(limit, bucket, &self.links, now);
        let is_ahead = is_for_nobody && !self.is_token(bucket);
        if is_ahead && !self.may_go_on_ahead(key, plan) {
            return;
        }
        let current = self
            .buckets
            .get(key)
            .and_then(|bucket| bucket.current.as_ref());
        if current.is_some_and(|window| window.returning && window.proof.is_some()) {
            // What comes back is heard of first: it ends the proof.
            return;
        }
        let current = current.map(|window| window.info.id);
        match (plan, current) {
            (Plan::Wait(_), _) => {}
            (Plan::Open, _) => self.open(now, key, now.ledger_us, size),
            (Plan::Allot(fault), Some(id)) => self.ask_ledger(now, key, id, size, fault),
            (Plan::Grant(_), Some(id)) if self.is_to_grow(now, key, size) => {
                let size = Size {
                    need: size.all,
                    ..size
                };
                self.wait_for_ledger(key);
                self.ask_ledger(now, key, id, size, None);
            }
            (Plan::Grant(_), Some(id)) => {
                let size = self.with_others(key, size);
                self.ask_pool(now, key, id, size);
            }
            (Plan::Subscribe, Some(id)) => self.follow_pool(key, id),
            (Plan::Shard, _) => self.ask_shard(now, key),
            (Plan::Take, _) => {
                let size = self.with_others_of_tokens(now, key, size);
                self.ask_bucket(now, key, size);
            }
            (Plan::Renew, _) => self.renew_at_once(now, key),
            // Whoever waits is to hear of it.
            (Plan::Unreachable, _) | (_, None) => self.stir(key),
        }
    }

    /// Whether the ledger should extend the pool before it is asked for what all lack who wait.
    fn is_to_grow(&self, now: Now, key: Key, size: Size) -> bool {
        let Some(bucket) = self.buckets.get(key) else {
            return false;
        };
        let pool = bucket
            .current
            .as_ref()
            .and_then(|window| window.pool.as_ref());
        pool.is_some_and(|pool| pool.is_short_of(size.all))
            && !bucket.is_ledger_away(&self.links, now)
    }

    /// Lets all who wait at a bucket wait as long as the ledger may take.
    fn wait_for_ledger(&mut self, key: Key) {
        let Some(bucket) = self.buckets.get(key) else {
            return;
        };
        for (waiter, _) in &bucket.waiters {
            let since_us = self.waiting.get(*waiter).map(|waiter| waiter.since_us);
            if let Some(since_us) = since_us {
                let until_us = since_us.saturating_add(self.config.ledger_budget_us);
                self.waiting.extend(*waiter, until_us);
            }
        }
    }

    /// Adds to what the first one lacks, who waits, what those after it lack, as long as the pool is known to have that.
    ///
    /// A pool gives at least what is needed and beyond that only a share: with the need of one, each of many would take a
    /// request of its own.
    fn with_others(&self, key: Key, size: Size) -> Size {
        let Some(bucket) = self.buckets.get(key) else {
            return size;
        };
        let Some(window) = bucket.current.as_ref() else {
            return size;
        };
        let free = window.pool.as_ref().map_or(0, |pool| pool.free);
        if size.need == 0 || window.smallest_first || free <= size.need {
            return size;
        }
        let need = self.need_within(bucket, size.need, free, |costs| {
            window.balance.missing(costs)
        });
        Size { need, ..size }
    }

    /// The same for a token bucket, of which the shard is known to have that. Besides, what is given beyond the need counts
    /// as lent ahead: a bucket with many calls in line would be held back by what they have long spent.
    fn with_others_of_tokens(&self, now: Now, key: Key, size: Size) -> Size {
        let Some(bucket) = self.buckets.get(key) else {
            return size;
        };
        let rule = self.catalog.limit(bucket.limit).map(|limit| &limit.rule);
        let (Some(refill), Some(tokens)) = (rule.and_then(refill_of), &bucket.tokens) else {
            return size;
        };
        if size.need == 0 || !tokens.gave_last() {
            return size;
        }
        let held = tokens.free(now.real_us);
        let there = tokens.in_shard(&refill, now.ledger_us);
        let need = self.need_within(bucket, size.need, there, |costs| costs.saturating_sub(held));
        Size { need, ..size }
    }

    /// What is missing for as many of those who wait, first come first, as `free` units are enough for; the first one's
    /// need at least.
    fn need_within(
        &self,
        bucket: &Bucket,
        first: Units,
        free: Units,
        missing_of: impl Fn(Units) -> Units,
    ) -> Units {
        let waiting = bucket
            .waiters
            .iter()
            .filter(|(waiter, _)| self.waiting.get(*waiter).is_some());
        let mut costs = bucket.set_aside(Turn::NEWCOMER);
        let mut need = first;
        for (_, cost) in waiting {
            costs = costs.saturating_add(*cost);
            let missing = missing_of(costs);
            if missing > free {
                break;
            }
            need = need.max(missing);
        }
        need
    }

    /// Counts the steps of an ask that nobody waits for, so that it ends.
    fn may_go_on_ahead(&mut self, key: Key, plan: Plan) -> bool {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return false;
        };
        bucket.ahead_steps = bucket.ahead_steps.saturating_sub(1);
        let is_useful = matches!(plan, Plan::Allot(_) | Plan::Grant(_));
        if !is_useful {
            bucket.ahead_steps = 0;
        }
        is_useful
    }

    /// Asks the ledger for the window that contains `at_us`, of which nothing is known.
    pub(crate) fn open(&mut self, now: Now, key: Key, at_us: i64, size: Size) {
        let need = size.need.max(1);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let unsure = bucket.opening.take();
        let demand = bucket.demand.window(now.real_us, need, u64::MAX);
        let want = demand.saturating_add(bucket.apart).max(size.all);
        let sent = sent(bucket, &self.links, now, need, want, None)
            .repeating(unsure.map(|opening| opening.sent));
        let request_seq = unsure.map_or(1, |opening| opening.request_seq);
        bucket.opening = Some(Opening {
            at_us,
            sent,
            request_seq,
            is_flying: true,
            is_repeat: unsure.is_some(),
        });
        let known = (None, 0, 0);
        self.send_ask(
            key,
            at_us,
            request_seq,
            (need, want),
            known,
            crate::outbox::AskOrigin::Opening(key),
        );
    }

    /// Marks a bucket whose waiters want to look again.
    pub(crate) fn stir(&mut self, key: Key) {
        if let Some(bucket) = self.buckets.get_mut(key)
            && !bucket.is_dirty
        {
            bucket.is_dirty = true;
            self.dirty.push_back(key);
        }
    }

    /// Follows the channel of a window's pool.
    pub(crate) fn follow_pool(&mut self, key: Key, id: WindowId) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let pool = bucket
            .window_mut(id)
            .and_then(|window| window.pool.as_ref());
        let Some(channel) = pool.map(|pool| pool.channel.clone()) else {
            return;
        };
        if self.links.follow(&channel, key) {
            self.outbox
                .subscribe(channel.clone(), self.links.redis_epoch());
        }
        if bucket.channel.as_ref() == Some(&channel) {
            return;
        }
        if let Some(before) = bucket.channel.replace(channel)
            && self.links.leave(&before, key)
        {
            self.outbox.unsubscribe(before);
        }
    }
}

/// Units that a call of this cost and turn lacks at a bucket.
fn missing(bucket: &Bucket, cost: Units, turn: Turn, now: Now, is_token: bool) -> Units {
    let aside = if cost == 0 { 0 } else { bucket.set_aside(turn) };
    if is_token {
        let free = bucket
            .tokens
            .as_ref()
            .map_or(0, |tokens| tokens.free(now.real_us));
        return cost.saturating_sub(free.saturating_sub(aside));
    }
    bucket.current.as_ref().map_or(cost, |window| {
        let aside = aside.min(window.balance.free);
        window.balance.missing(cost.saturating_add(aside))
    })
}

/// Whether whoever was asked for units of a bucket last had none.
fn is_refused(bucket: &Bucket, now: Now) -> bool {
    let tokens = bucket.tokens.as_ref();
    let window = bucket.current.as_ref();
    tokens.is_some_and(|tokens| tokens.is_denying(now.ledger_us))
        || window.is_some_and(|window| window.proof.is_some() || window.smallest_first)
}

/// What is true of an ask at the moment of sending.
pub(crate) fn sent(
    bucket: &Bucket,
    links: &crate::links::Links,
    now: Now,
    need: Units,
    want: Units,
    channel: Option<&str>,
) -> Sent {
    Sent {
        need,
        want,
        real_us: now.real_us,
        ledger_us: now.ledger_us,
        watch: links.watch_epoch(),
        channel: channel.and_then(|name| links.confirmed(name)),
        notices: bucket.notices,
    }
}
