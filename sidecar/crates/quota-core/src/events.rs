//! Taking in what happened: each event to the part that it concerns.

use std::sync::Arc;

use crate::{
    bucket::Bucket,
    engine::Engine,
    event::{CommandFailure, Event, FailureKind, FunctionReply},
    id::{KeyHash, WindowId},
    outbox::{CallOrigin, Outstanding},
    slab::Key,
    tenants::Changed,
    time::Now,
};

impl Engine {
    /// Takes in an event; what follows from it is left to `work_off`.
    pub(crate) fn on_event(&mut self, now: Now, event: Event) {
        match event {
            Event::Meters(meters) => {
                self.catalog.set_meters(&meters);
                for key in std::mem::take(&mut self.meter_waiters) {
                    self.reconsider(now, key, false);
                }
            }
            Event::Tenant(snapshot) => {
                let name = Arc::clone(&snapshot.tenant);
                let changes = self.catalog.set_tenant(now, snapshot);
                self.apply(now, &changes);
                self.wake_tenant(now, &name);
            }
            Event::TenantUnknown(name) => {
                let changes = self.catalog.set_unknown(now, &name);
                self.apply(now, &changes);
                self.wake_tenant(now, &name);
            }
            Event::WatchUp => {
                self.links.watch(true, now.real_us);
                self.catalog.fetch_again(now, self.outbox.watch_list());
            }
            Event::WatchDown => self.links.watch(false, now.real_us),
            Event::LedgerAlive { sent_us } => self.links.ledger_alive(sent_us, now.real_us),
            Event::RedisAlive { sent_us } => self.links.redis_alive(sent_us, now.real_us),
            Event::RedisLost => self.links.redis_lost(),
            Event::Notice(channel) => {
                self.links.redis_spoke(now.real_us);
                for key in self.links.followers(&channel).to_vec() {
                    self.on_notice(key);
                }
            }
            Event::Short(channel) => {
                self.links.redis_spoke(now.real_us);
                for key in self.links.followers(&channel).to_vec() {
                    self.give_back_unused(now, key);
                }
            }
            Event::UnitsNotice {
                tenant,
                limit,
                key_hash,
            } => self.on_units_notice(&tenant, &limit, key_hash),
            Event::Recall {
                tenant,
                limit,
                key_hash,
                units,
            } => self.on_recall(now, &tenant, &limit, key_hash, units),
            Event::Replaced {
                tenant,
                limit,
                key_hash,
                window,
            } => self.on_replaced(&tenant, &limit, key_hash, window),
            Event::Timeline(timeline) => self.on_timeline(timeline),
            Event::Marked(id, outcome) => self.on_marked(now, id, outcome),
            answer => self.on_command_answer(now, answer),
        }
    }

    /// Takes in how a command ended. An answer that nobody waits for any more changes nothing.
    fn on_command_answer(&mut self, now: Now, event: Event) {
        let (Event::Allotted(id, _)
        | Event::Returned(id, _)
        | Event::Reported(id, _)
        | Event::Functions(id, _)
        | Event::Done(id, _)) = event
        else {
            return;
        };
        let Some((sent_us, outstanding)) = self.outbox.answered(id) else {
            return;
        };
        match (event, outstanding) {
            (Event::Allotted(_, result), Outstanding::Allot(origins)) => {
                self.hear_ledger(now, sent_us, result.as_ref().err());
                self.on_allotted(now, origins, result);
            }
            (Event::Returned(_, result), Outstanding::Return(entries)) => {
                self.hear_ledger(now, sent_us, result.as_ref().err());
                self.on_returned(now, &entries, result);
            }
            (Event::Reported(_, result), Outstanding::Report(entries)) => {
                self.hear_ledger(now, sent_us, result.as_ref().err());
                self.on_reported(now, entries, result);
            }
            (Event::Reported(_, result), Outstanding::Leases(leases)) => {
                self.hear_ledger(now, sent_us, result.as_ref().err());
                self.on_told(now, leases, result.as_ref().err());
            }
            (Event::Functions(_, result), Outstanding::Functions(origins)) => {
                self.hear_redis(now, sent_us, result.as_deref().unwrap_or_default());
                self.on_functions(now, origins, result);
            }
            (Event::Done(_, result), outstanding) => {
                self.on_done(sent_us, outstanding, result.is_ok());
            }
            _ => {}
        }
    }

    fn hear_ledger(&mut self, now: Now, sent_us: u64, failure: Option<&CommandFailure>) {
        match failure.map(|failure| failure.kind) {
            None | Some(FailureKind::Refused) => self.links.ledger.answered(now.real_us),
            Some(_) => self.links.ledger.failed(now.real_us, sent_us),
        }
    }

    fn hear_redis(&mut self, now: Now, sent_us: u64, replies: &[FunctionReply]) {
        if replies
            .iter()
            .any(|reply| matches!(reply, FunctionReply::Elements(_)))
        {
            self.links.redis.answered(now.real_us);
        } else {
            self.links.redis.failed(now.real_us, sent_us);
        }
    }

    fn wake_tenant(&mut self, now: Now, name: &str) {
        for key in self.catalog.take_waiters(name) {
            self.reconsider(now, key, false);
        }
    }

    /// Lets changed limits act on what is leased.
    fn apply(&mut self, now: Now, changes: &[(u32, Changed)]) {
        for (index, change) in changes {
            let Some(limit) = self.catalog.limit(*index) else {
                continue;
            };
            for key in limit.buckets.clone() {
                self.turn_if_over(now, key);
                self.apply_to_bucket(now, key, *change);
            }
        }
    }

    fn apply_to_bucket(&mut self, now: Now, key: crate::slab::Key, change: Changed) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        if let Some(tokens) = bucket.tokens.as_mut() {
            tokens.forget();
        }
        bucket.refused_until_us = 0;
        // What was said of values, and what is under way, may be of the old amount as well.
        bucket.notices = bucket.notices.wrapping_add(1);
        if let Some(limit) = self.catalog.limit(bucket.limit) {
            bucket.apart = limit.rule.standby_units();
        }
        let mut keep = None;
        for window in bucket.current.iter_mut().chain(bucket.next.as_deref_mut()) {
            window.proof = None;
            window.smallest_first = false;
            // What the pool says may still be of the old amount: the ledger knows.
            window.extend = window.pool.is_some();
        }
        match change {
            Changed::Raised => {}
            Changed::Lowered(amount) => {
                let used = bucket.current.as_ref().map_or(0, |window| {
                    window.used().saturating_add(window.balance.held)
                });
                keep = Some(amount.saturating_sub(used));
            }
            Changed::Shape | Changed::Removed => keep = Some(0),
        }
        if let Some(keep) = keep {
            self.give_back(now, key, keep);
        }
        self.stir(key);
    }

    /// Buckets of all limits of this name, in whatever kind and key they have or had: of one key, or all.
    pub(crate) fn buckets_named(
        &self,
        tenant: &str,
        limit: &str,
        key_hash: Option<KeyHash>,
    ) -> Vec<Key> {
        let limits = self.catalog.limits_named(tenant, limit);
        let keys = limits.flat_map(|(_, limit)| limit.buckets.iter().copied());
        let is_meant = |bucket: &Bucket| key_hash.is_none_or(|hash| hash == bucket.key_hash);
        keys.filter(|key| self.buckets.get(*key).is_some_and(is_meant))
            .collect()
    }

    /// Forgets a window whose next round has begun: its units are nobody's, its refusals say nothing any more.
    fn on_replaced(&mut self, tenant: &str, limit: &str, key_hash: KeyHash, id: WindowId) {
        for key in self.buckets_named(tenant, limit, Some(key_hash)) {
            let Some(bucket) = self.buckets.get_mut(key) else {
                continue;
            };
            let replaced = bucket.current.take_if(|window| window.info.id == id);
            if replaced.is_some() {
                bucket.ahead_steps = 0;
                bucket.refused_until_us = 0;
                self.retire(replaced);
                self.stir(key);
            }
        }
    }

    fn on_recall(
        &mut self,
        now: Now,
        tenant: &str,
        limit: &str,
        key_hash: Option<KeyHash>,
        units: crate::Units,
    ) {
        self.recall_unclaimed(now, tenant, limit, key_hash);
        for key in self.buckets_named(tenant, limit, key_hash) {
            if self.is_standing(key) {
                self.on_standing_recall(now, key, units);
            } else {
                self.give_back_unused(now, key);
            }
        }
    }

    /// Returns all but one second of use, now and when what is under way has come.
    fn give_back_unused(&mut self, now: Now, key: crate::slab::Key) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        // Whatever is under way brings units that nobody asked for any more.
        bucket.recalled = bucket.has_flight();
        let keep = bucket.second_use;
        if let Some(window) = bucket.current.as_mut() {
            window.low_mark = 0;
        }
        if !bucket.waiters.is_empty() {
            // Those who wait here lack units too, and may be why this was called for: what is here counts towards
            // theirs first. Given away now, it would be missing from their ask, and a pool that lacks it is no proof.
            bucket.recalled = true;
            return;
        }
        self.give_back(now, key, keep);
    }

    fn on_functions(
        &mut self,
        now: Now,
        origins: Vec<CallOrigin>,
        result: Result<Vec<FunctionReply>, CommandFailure>,
    ) {
        let (replies, failure) = match result {
            Ok(replies) => (replies, FailureKind::Deadline),
            Err(failure) => (Vec::new(), failure.kind),
        };
        let mut replies = replies.into_iter();
        for origin in origins {
            let reply = replies.next().ok_or(failure);
            match origin {
                CallOrigin::Grant(key, window, generation) => {
                    self.on_grant(now, key, window, generation, reply);
                }
                CallOrigin::Take(key, generation) => self.on_take(now, key, generation, reply),
                CallOrigin::Give(key, generation) => self.on_given(now, key, generation, reply),
                CallOrigin::Share(limit, place, generation) => {
                    self.on_share(now, limit, place, generation, reply);
                }
            }
        }
    }

    fn on_done(&mut self, sent_us: u64, outstanding: Outstanding, is_ok: bool) {
        match outstanding {
            Outstanding::Subscribe(channels, epoch) => {
                for channel in channels {
                    for key in self.links.subscribed(&channel, epoch, is_ok, sent_us) {
                        self.stir(key);
                    }
                }
            }
            Outstanding::Watch(names) if !is_ok => self.catalog.fetch_failed(&names),
            _ => {}
        }
    }
}
