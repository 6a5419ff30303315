//! What operators ask of every sidecar: to lease ahead, or to give everything back.

use std::sync::Arc;

use crate::{
    bucket::window::Window,
    engine::Engine,
    lease::{
        plan::{Plan, plan},
        pursue::Size,
    },
    limit::LimitKind,
    slab::Key,
    tenants::Lookup,
    time::Now,
};

impl Engine {
    /// Leases one real second of demand ahead: of every key in use, and of a named tenant's limits that nothing splits,
    /// used or not. A named tenant that is not known yet is fetched; nothing is leased for it by this call.
    ///
    /// Answers how many keys hold that much or have asked for it. Levels and units in flight are left out: what lies
    /// idle here is lacking elsewhere. Idempotent; nobody waits for it, and what nobody uses goes back after two seconds.
    pub fn warm(&mut self, now: Now, tenant: Option<&Arc<str>>) -> usize {
        let mut touched: usize = 0;
        for index in self.limits_of(now, tenant) {
            if tenant.is_some() && self.is_unsplit(index) {
                let _ = self.make_bucket(now, index, &[]);
            }
            let keys = self.catalog.limit(index).map(|limit| limit.buckets.clone());
            for key in keys.unwrap_or_default() {
                touched = touched.saturating_add(usize::from(self.warm_key(now, key)));
            }
        }
        self.work_off(now);
        touched
    }

    /// Gives back every unit that no reservation holds and forgets every proof, of one tenant's limits or of all.
    ///
    /// Answers how many keys had something to give or to forget. Calls that wait go on waiting: what is here counts
    /// towards theirs first. What is in use is leased anew by the next call. Idempotent.
    pub fn invalidate(&mut self, now: Now, tenant: Option<&Arc<str>>) -> usize {
        let mut touched: usize = 0;
        for index in self.limits_of(now, tenant) {
            let keys = self.catalog.limit(index).map(|limit| limit.buckets.clone());
            for key in keys.unwrap_or_default() {
                touched = touched.saturating_add(usize::from(self.invalidate_key(now, key)));
            }
        }
        self.work_off(now);
        touched
    }

    /// Limits of one tenant and its ancestors, or of all tenants.
    fn limits_of(&mut self, now: Now, tenant: Option<&Arc<str>>) -> Vec<u32> {
        let Some(name) = tenant else {
            return self.catalog.every_limit();
        };
        match self.catalog.look_up(now, name, self.outbox.watch_list()) {
            Lookup::Known(index) => self.catalog.all_limits(index).to_vec(),
            Lookup::Fetching(_) | Lookup::Unknown => Vec::new(),
        }
    }

    /// Whether nothing splits a limit and nothing of it is known yet.
    fn is_unsplit(&self, index: u32) -> bool {
        self.catalog
            .limit(index)
            .is_some_and(|limit| limit.rule.key.is_empty() && limit.unsplit.is_none())
    }

    fn warm_key(&mut self, now: Now, key: Key) -> bool {
        self.turn_if_over(now, key);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return false;
        };
        let Some(limit) = self.catalog.limit(bucket.limit) else {
            return false;
        };
        let is_leased = matches!(
            limit.rule.kind,
            LimitKind::Window | LimitKind::TokenBucket { .. }
        );
        if !limit.is_live || !is_leased || limit.rule.amount.is_none() {
            return false;
        }
        let second = bucket.second_use.max(bucket.demand.per_second).max(1);
        let step = plan(limit, bucket, &self.links, now);
        let free = bucket
            .current
            .as_ref()
            .map_or(0, |window| window.balance.free);
        match step {
            Plan::Unreachable => return false,
            // A slice is over in a moment: having the shard open is all that helps.
            Plan::Wait(_) | Plan::Take => {}
            Plan::Open => {
                let size = Size {
                    need: 1,
                    all: second,
                };
                self.open(now, key, now.ledger_us, size);
            }
            Plan::Shard => self.ask_shard(now, key),
            _ if free >= second => {}
            _ => {
                bucket.ahead = second;
                bucket.ahead_steps = 3;
                self.hunts.push_back(key);
            }
        }
        true
    }

    fn invalidate_key(&mut self, now: Now, key: Key) -> bool {
        self.turn_if_over(now, key);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return false;
        };
        let is_known = bucket.current.is_some() || bucket.next.is_some() || bucket.tokens.is_some();
        bucket.refused_until_us = 0;
        bucket.ahead_steps = 0;
        // What was used until now is no reason to keep anything.
        let own_use = bucket.current.as_ref().map_or(0, Window::own_use);
        (bucket.second_use, bucket.mark) = (0, (own_use, now.real_us));
        for window in bucket.current.iter_mut().chain(bucket.next.as_deref_mut()) {
            window.low_mark = 0;
        }
        // What is under way, or has to wait for the disk, goes back when it is here.
        bucket.recalled = bucket.has_flight() || !bucket.waiters.is_empty();
        let has_waiters = !bucket.waiters.is_empty();
        self.on_notice(key);
        if !has_waiters {
            self.plan_keeping(key, true);
            self.return_tokens(now, key, crate::request::UNITS_MAX);
            self.give_back(now, key, 0);
            self.give_back_next(now, key);
        }
        if let Some(tokens) = self
            .buckets
            .get_mut(key)
            .and_then(|bucket| bucket.tokens.as_mut())
        {
            tokens.forget();
        }
        is_known
    }
}
