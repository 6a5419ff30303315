//! Asking the ledger, and what it answers.

use std::sync::Arc;

use crate::{
    bucket::window::{Flight, Pool, Window},
    effect::{AllotAsk, PoolFault},
    engine::Engine,
    event::{AllotAnswer, CommandFailure, FailureKind, WindowInfo},
    id::{KeyHash, WindowId},
    lease::pursue::{Size, sent},
    mutant::{self, Mutant},
    outbox::AskOrigin,
    proof::{Proof, Sent},
    request::{UNITS_MAX, Units},
    slab::Key,
    time::Now,
};

/// After a refusal the ledger is left alone for so long, real µs.
const REFUSED_US: u64 = 100_000;

/// What the ledger leased by one answer.
struct Lease {
    give: Units,
    granted_cum: Units,
    epoch: u64,
    valid_for_us: u64,
}

impl Engine {
    /// Asks the ledger for more units of a known window.
    pub(crate) fn ask_ledger(
        &mut self,
        now: Now,
        key: Key,
        id: WindowId,
        size: Size,
        fault: Option<PoolFault>,
    ) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let left_us = bucket.left_us(now, id);
        let apart = bucket.apart;
        let demand = bucket.demand.window(now.real_us, size.need, left_us);
        let want = demand.saturating_add(apart).max(size.all);
        self.ask_window(now, key, id, (size.need, want), fault);
    }

    pub(crate) fn ask_window(
        &mut self,
        now: Now,
        key: Key,
        id: WindowId,
        (need, want): (Units, Units),
        fault: Option<PoolFault>,
    ) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let ask = sent(bucket, &self.links, now, need, want, None);
        let Some(window) = bucket.window_mut(id) else {
            return;
        };
        let ask = ask.repeating(window.unsure);
        window.flight = Some(Flight::Allot(ask));
        let request_seq = window.ledger_seq.saturating_add(1);
        let at_us = now
            .ledger_us
            .clamp(window.info.start_us, window.info.end_us.saturating_sub(1));
        let pool = window.pool.as_ref();
        let known = (
            fault,
            pool.map_or(0, |pool| pool.generation),
            pool.map_or(0, |pool| pool.total),
        );
        let origin = AskOrigin::Window(key, id);
        self.send_ask(key, at_us, request_seq, (need, want), known, origin);
    }

    /// Asks the ledger for no units: it hears that a pool is lost, if it is, and tells what an ask before brought.
    pub(crate) fn ask_for_nothing(&mut self, now: Now, key: Key, id: WindowId) {
        let fault = self
            .buckets
            .get_mut(key)
            .and_then(|bucket| bucket.window_mut(id))
            .and_then(|window| window.fault);
        self.ask_window(now, key, id, (0, 0), fault);
    }

    /// Puts an ask in words.
    #[allow(clippy::too_many_arguments)] // one caller more would be one struct more; these are the wire's fields
    pub(crate) fn send_ask(
        &mut self,
        key: Key,
        at_us: i64,
        request_seq: u64,
        (need, want): (Units, Units),
        (fault, generation_seen, allotted_cum_seen): (Option<PoolFault>, u64, Units),
        origin: AskOrigin,
    ) {
        let Some(bucket) = self.buckets.get(key) else {
            return;
        };
        let Some(limit) = self.catalog.limit(bucket.limit) else {
            return;
        };
        let most = limit.rule.amount.unwrap_or(UNITS_MAX).min(UNITS_MAX);
        // A pool that can't be reached is of no use: whoever may go on without it is to be served by the ledger.
        let ledger_only = self.links.redis.is_down(self.outbox.real_us())
            && limit.rule.goes_on_without_pools()
            && !bucket.counts_values;
        let ask = AllotAsk {
            tenant: Arc::clone(&limit.tenant_name),
            limit: Arc::clone(&limit.rule.name),
            key_hash: bucket.key_hash,
            key_values: bucket.key_values.to_vec(),
            at_us,
            request_seq,
            need: need.min(UNITS_MAX),
            want: want.min(most).max(need.min(UNITS_MAX)),
            generation_seen,
            allotted_cum_seen,
            fault,
            ledger_only,
        };
        self.outbox.ask(ask, origin);
    }

    /// Takes in the answers to one `Allot`.
    pub(crate) fn on_allotted(
        &mut self,
        now: Now,
        origins: Vec<AskOrigin>,
        result: Result<Vec<AllotAnswer>, CommandFailure>,
    ) {
        let (answers, failure) = match result {
            Ok(answers) => (answers, FailureKind::Deadline),
            Err(failure) => (Vec::new(), failure.kind),
        };
        let mut answers = answers.into_iter();
        for origin in origins {
            match answers.next() {
                Some(answer) => self.on_answer(now, origin, answer),
                None => self.on_no_answer(now, origin, failure),
            }
        }
    }

    fn on_no_answer(&mut self, now: Now, origin: AskOrigin, failure: FailureKind) {
        let is_unsure = failure == FailureKind::Deadline;
        let (key, id) = match origin {
            AskOrigin::Shard(limit, place) => return self.on_shard(now, limit, place, None),
            AskOrigin::Opening(key) => (key, None),
            AskOrigin::Window(key, id) => (key, Some(id)),
        };
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        bucket.ahead_steps = 0;
        if failure == FailureKind::Refused {
            bucket.refused_until_us = now.real_us.saturating_add(REFUSED_US);
        }
        match id {
            None => {
                bucket.early_at_us = i64::MIN;
                // That the repeat never left says nothing of what was sent before.
                let opening = bucket.opening.take();
                let opening = opening.filter(|opening| is_unsure || opening.is_repeat);
                bucket.opening = opening.map(|opening| crate::bucket::Opening {
                    is_flying: false,
                    ..opening
                });
            }
            Some(id) => {
                if let Some(window) = bucket.window_mut(id)
                    && let Some(Flight::Allot(ask)) = window.flight.take()
                    && is_unsure
                {
                    window.unsure = Some(ask);
                }
            }
        }
        self.watch_unsure(now, key);
        self.fall_behind(key);
        self.stir(key);
    }

    fn on_answer(&mut self, now: Now, origin: AskOrigin, answer: AllotAnswer) {
        if let AskOrigin::Shard(limit, place) = origin {
            return self.on_shard(now, limit, place, Some(answer));
        }
        let Some((key, ask, request_seq)) = self.take_ask(origin) else {
            return;
        };
        self.stir(key);
        match answer {
            AllotAnswer::Lease {
                window,
                give,
                granted_cum,
                lease_epoch,
                valid_for_us,
            } => {
                let lease = Lease {
                    give,
                    granted_cum,
                    epoch: lease_epoch,
                    valid_for_us,
                };
                self.on_lease(now, key, window, request_seq, &ask, &lease);
            }
            AllotAnswer::Pool {
                window,
                generation,
                allotted_cum,
                pool_key,
                holders_key,
                channel,
                values_key,
                last,
            } => {
                let keys = [pool_key, holders_key, values_key, channel];
                let pool = Pool::of_ledger(generation, allotted_cum, last, keys);
                self.on_pool(now, key, window, request_seq, &ask, pool);
            }
            AllotAnswer::Denied { window, left: _ } => {
                self.on_denied(now, key, window, request_seq, &ask);
            }
            AllotAnswer::Refused {
                reason,
                last_request_seq,
            } => {
                self.on_refused(now, key, origin, &ask, &reason, last_request_seq);
            }
            AllotAnswer::Bucket { .. } => self.leave_ledger_alone(now, key),
        }
        self.go_on_returning(now, key);
    }

    /// Ends the flight of an ask: its bucket, what was sent, and its sequence number. `None` where it is not awaited.
    fn take_ask(&mut self, origin: AskOrigin) -> Option<(Key, Sent, u64)> {
        match origin {
            AskOrigin::Shard(..) => None,
            AskOrigin::Opening(key) => {
                let opening = self.buckets.get_mut(key)?.opening.take()?;
                Some((key, opening.sent, opening.request_seq))
            }
            AskOrigin::Window(key, id) => {
                let window = self.buckets.get_mut(key)?.window_mut(id)?;
                let Some(Flight::Allot(ask)) = window.flight.take() else {
                    return None;
                };
                Some((key, ask, window.ledger_seq.saturating_add(1)))
            }
        }
    }

    fn leave_ledger_alone(&mut self, now: Now, key: Key) {
        if let Some(bucket) = self.buckets.get_mut(key) {
            bucket.refused_until_us = now.real_us.saturating_add(REFUSED_US);
            bucket.ahead_steps = 0;
        }
    }

    fn on_refused(
        &mut self,
        now: Now,
        key: Key,
        origin: AskOrigin,
        ask: &Sent,
        reason: &str,
        last_request_seq: u64,
    ) {
        if reason != "REQUEST_SEQ" {
            return self.leave_ledger_alone(now, key);
        }
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        if let AskOrigin::Window(_, id) = origin {
            if let Some(window) = bucket.window_mut(id) {
                window.ledger_seq = last_request_seq;
                window.unsure = None;
            }
            return;
        }
        bucket.opening = Some(crate::bucket::Opening {
            at_us: now.ledger_us,
            sent: *ask,
            request_seq: last_request_seq.saturating_add(1),
            is_flying: false,
            is_repeat: true,
        });
    }

    /// The window that an answer speaks of, brought up to date; `None` where it is over already.
    fn enter(
        &mut self,
        now: Now,
        key: Key,
        info: WindowInfo,
        request_seq: u64,
        ask: &Sent,
    ) -> Option<&mut Window> {
        let id = info.id;
        let bucket = self.buckets.get_mut(key)?;
        let was_noticed = ask.notices != bucket.notices;
        if let Some(window) = bucket.window_mut(id) {
            window.update(info);
            window.is_fault_untold = false;
            window.is_noticed &= was_noticed;
        } else if info.end_us <= now.ledger_us {
            return None;
        } else if info.start_us > now.ledger_us {
            let before = bucket.next.replace(Box::new(Window::new(info)));
            self.retire(before.map(|window| *window));
        } else {
            let mut window = Window::new(info);
            window.balance.over = std::mem::take(&mut bucket.over_early);
            let before = bucket.current.replace(window);
            bucket.mark = (0, now.real_us);
            self.retire(before);
            self.watch_end(now, key);
        }
        let window = self.buckets.get_mut(key)?.window_mut(id)?;
        window.ledger_seq = window.ledger_seq.max(request_seq);
        window.unsure = None;
        Some(window)
    }

    fn on_lease(
        &mut self,
        now: Now,
        key: Key,
        info: WindowInfo,
        request_seq: u64,
        ask: &Sent,
        lease: &Lease,
    ) {
        let (allotted, amount) = (info.allotted, info.amount.unwrap_or(Units::MAX));
        let apart = self.buckets.get(key).map_or(0, |bucket| bucket.apart);
        let Some(window) = self.enter(now, key, info, request_seq, ask) else {
            return;
        };
        if window.fault.take().is_some() {
            window.pool = None;
            window.values.lose_marks();
        }
        window.enter_lease(lease.epoch, lease.granted_cum, lease.give);
        window.valid_for_us = lease.valid_for_us;
        window.renew(lease.epoch, ask.real_us);
        window.renewal_sent_us = window.renewal_sent_us.max(ask.real_us);
        // A repeated ask may have brought units of which no answer told: windows end, and these with them, others do not.
        let give = if window.info.is_standing() {
            UNITS_MAX
        } else {
            lease.give
        };
        let credited = window.balance.credit(0, lease.granted_cum, give);
        window.extend = false;
        if credited > 0 {
            window.proof = None;
            window.smallest_first = false;
            let is_scarce = amount.saturating_sub(allotted) < amount / 10;
            // Another holder may follow: half of what one alone would keep apart.
            window.stock(credited, ask, apart / 2, is_scarce);
        }
        if let Some(bucket) = self.buckets.get_mut(key) {
            bucket.ahead_steps = 0;
        }
        self.keep_sound(key);
        self.keeps_due.push(key);
    }

    fn on_pool(
        &mut self,
        now: Now,
        key: Key,
        info: WindowInfo,
        request_seq: u64,
        ask: &Sent,
        pool: Pool,
    ) {
        let id = info.id;
        let is_next = info.start_us > now.ledger_us;
        let Some(window) = self.enter(now, key, info, request_seq, ask) else {
            return;
        };
        window.fault = None;
        window.extend = false;
        match &mut window.pool {
            Some(known) if known.generation == pool.generation => {
                let more = pool.total.saturating_sub(known.total);
                known.free = known.free.saturating_add(more);
                known.total = known.total.max(pool.total);
                (known.is_final, known.is_grown) = (pool.is_final, true);
                known.pool_key = pool.pool_key;
                known.holders_key = pool.holders_key;
                known.channel = pool.channel;
            }
            _ => {
                window.pool = Some(pool);
                window.values.lose_marks();
                window.await_channel = false;
                window.proof = None;
            }
        }
        self.follow_pool(key, id);
        if is_next {
            self.fill_next(now, key, id);
        } else {
            self.hunts.push_back(key);
        }
    }

    fn on_denied(&mut self, now: Now, key: Key, info: WindowInfo, request_seq: u64, ask: &Sent) {
        let notices = self.buckets.get(key).map_or(0, |bucket| bucket.notices);
        let is_watched = self.links.watch_epoch().is_some();
        let Some(window) = self.enter(now, key, info, request_seq, ask) else {
            return;
        };
        window.extend = false;
        window.low_mark = 0;
        window.smallest_first = true;
        let is_proof = ask.need > 0;
        window.proof = Proof::by_ledger(ask, notices).filter(|_| is_proof);
        let is_proved = window.proof.is_some();
        if let Some(pool) = &mut window.pool {
            // The ledger knows of no such pool any more: only an ask of the pool itself says what became of it.
            pool.is_grown = true;
        }
        if is_proved {
            // Whoever is denied is told what the fleet used.
            self.mark_moved(key);
        }
        if !is_watched {
            // Asking again at once would bring the same: who waits hears that nobody knows.
            self.leave_ledger_alone(now, key);
        } else if ask.need == 0
            && let Some(bucket) = self.buckets.get_mut(key)
        {
            bucket.ahead_steps = 0;
        }
    }

    /// Takes in a notice of the ledger: units may be there of which a pool knows nothing, because it was reported as lost.
    /// What that pool refuses proves nothing before the ledger has been asked.
    pub(crate) fn on_units_notice(&mut self, tenant: &str, limit: &str, key_hash: KeyHash) {
        for key in self.buckets_named(tenant, limit, Some(key_hash)) {
            self.on_notice(key);
            self.ask_before_proof(key);
        }
    }

    fn ask_before_proof(&mut self, key: Key) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        for window in bucket.current.iter_mut().chain(bucket.next.as_deref_mut()) {
            window.is_noticed = window.pool.is_some();
        }
    }

    /// Units may be there: proofs end.
    pub(crate) fn on_notice(&mut self, key: Key) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        if mutant::is(Mutant::NoticeIgnored) {
            return;
        }
        bucket.notices = bucket.notices.wrapping_add(1);
        let mut was_proved = false;
        for window in bucket.current.iter_mut().chain(bucket.next.as_deref_mut()) {
            was_proved |= window.proof.take().is_some();
            window.smallest_first = false;
        }
        if was_proved {
            self.mark_moved(key);
        }
        self.stir(key);
    }
}
