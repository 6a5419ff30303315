//! Asking a pool, and what it answers.

use crate::{
    bucket::window::{Flight, Pool, Window},
    effect::{FunctionCall, PoolFault},
    engine::Engine,
    event::{FailureKind, FunctionReply},
    id::WindowId,
    lease::{
        pursue::{Size, sent},
        values::{split_letters, take_values},
    },
    mutant::{self, Mutant},
    outbox::CallOrigin,
    proof::{Proof, Sent},
    request::{UNITS_MAX, Units},
    slab::Key,
    time::Now,
};

/// How a call of a function ended.
pub(crate) type Reply = Result<FunctionReply, FailureKind>;

/// What a pool granted.
pub(crate) struct Grant {
    /// Units given by this answer.
    pub(crate) give: Units,
    /// Units given to this holder in all.
    pub(crate) granted_cum: Units,
    /// The pool's counter.
    pub(crate) pool_seq: u64,
    /// Units that it still can give.
    pub(crate) free: Units,
    /// It gets no more.
    pub(crate) is_final: bool,
    /// Units that went into it.
    pub(crate) total: Units,
    /// Holders.
    pub(crate) holders: u64,
}

impl Engine {
    /// Asks the pool of a window for units.
    pub(crate) fn ask_pool(&mut self, now: Now, key: Key, id: WindowId, size: Size) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        if bucket.counts_values {
            return self.ask_values(now, key, id);
        }
        let left_us = bucket.left_us(now, id);
        let apart = bucket.apart;
        let demand = bucket.demand.window(now.real_us, size.need, left_us);
        let want = demand.saturating_add(apart);
        let pool = bucket
            .window_mut(id)
            .and_then(|window| window.pool.as_ref());
        let share = pool.map_or(want, fair_share);
        let want = want.min(share).max(size.all);
        self.call_pool(now, key, id, size.need, want);
    }

    /// Sends one `lease_grant`: an ask, or with zeros only a return.
    pub(crate) fn call_pool(&mut self, now: Now, key: Key, id: WindowId, need: Units, want: Units) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let most = self
            .catalog
            .limit(bucket.limit)
            .and_then(|limit| limit.rule.amount)
            .unwrap_or(UNITS_MAX);
        let want = want.min(most).max(need).min(UNITS_MAX);
        let channel = bucket
            .window_mut(id)
            .and_then(|window| window.pool.as_ref())
            .map(|pool| pool.channel.clone());
        let ask = sent(bucket, &self.links, now, need, want, channel.as_deref());
        let Some(window) = bucket.window_mut(id) else {
            return;
        };
        window.balance.attribute();
        let over = window.balance.over;
        let Some(pool) = &window.pool else { return };
        let source = *window.balance.source(pool.generation);
        let ask = ask.repeating(pool.unsure);
        let text = |number: u64| number.to_string();
        let call = FunctionCall {
            function: "lease_grant",
            keys: vec![pool.pool_key.clone(), pool.holders_key.clone()],
            arguments: vec![
                text(pool.generation),
                self.holder_hex.clone(),
                text(pool.request_seq.saturating_add(1)),
                text(need),
                text(want),
                text(source.returned_pool),
                text(source.spent()),
                text(over),
                text(pool.witness_seq),
                text(pool.holders),
                pool.channel.to_string(),
            ],
        };
        let origin = CallOrigin::Grant(key, id, pool.generation);
        window.flight = Some(Flight::Grant(ask, source.returned_pool));
        self.outbox.call(call, origin);
    }

    /// Takes in what a pool answered.
    pub(crate) fn on_grant(
        &mut self,
        now: Now,
        key: Key,
        id: WindowId,
        generation: u64,
        reply: Reply,
    ) {
        let wanted = self.values_wanted(now, key, id);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let (notices, apart, counts_values) = (bucket.notices, bucket.apart, bucket.counts_values);
        let Some(window) = bucket.window_mut(id) else {
            return;
        };
        let Some(Flight::Grant(ask, returned_cum)) = window.flight else {
            return;
        };
        window.flight = None;
        let is_late = window
            .pool
            .as_ref()
            .is_none_or(|pool| pool.generation != generation);
        let (reply, letters) = if counts_values {
            split_letters(reply)
        } else {
            (reply, Box::default())
        };
        let is_refused = matches!(reply, Ok(FunctionReply::Error(_)));
        let used_before = window.own_use();
        match read_grant(reply) {
            _ if is_late => {}
            Ok(grant) if counts_values => {
                take_values(window, &grant, &letters, &ask, notices, &wanted);
            }
            Ok(grant) => take_grant(window, &grant, &ask, returned_cum, notices, apart),
            Err(Trouble::Fault(fault)) => {
                let is_unsure = window
                    .pool
                    .as_ref()
                    .is_some_and(|pool| pool.is_return_unsure);
                if !is_unsure || mutant::is(Mutant::ReturnSettledElsewhere) {
                    window.balance.return_elsewhere(generation);
                }
                window.fault = Some(fault).filter(|_| !mutant::is(Mutant::FaultNotReported));
                window.is_fault_untold = window.fault.is_some();
                window.proof = None;
                window.low_mark = 0;
                window.values.lose_marks();
            }
            Err(Trouble::Silence(is_unsure)) => {
                if let Some(pool) = window.pool.as_mut().filter(|_| is_unsure) {
                    pool.unsure = Some(ask);
                    pool.is_return_unsure = true;
                }
                if is_refused {
                    // Of a library that does not know the function: nothing is asked in vain for ever.
                    window.values.sent_back = None;
                }
                bucket.ahead_steps = 0;
            }
        }
        // Values are used when their unit comes.
        let used = bucket.window_mut(id).map_or(0, |window| window.own_use());
        if counts_values && used != used_before {
            self.mark_moved(key);
        }
        self.after_grant(now, key, id, ask.need == 0);
    }

    fn after_grant(&mut self, now: Now, key: Key, id: WindowId, was_ahead: bool) {
        self.keep_sound(key);
        self.stir(key);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let is_current = bucket
            .current
            .as_ref()
            .is_some_and(|window| window.info.id == id);
        let is_extending = bucket.current.as_ref().is_some_and(|window| window.extend);
        if was_ahead && !is_extending {
            bucket.ahead_steps = 0;
        }
        let awaits_channel = bucket
            .window_mut(id)
            .is_some_and(|window| window.await_channel);
        let is_proved = bucket
            .window_mut(id)
            .is_some_and(|window| window.proof.is_some());
        if awaits_channel {
            self.follow_pool(key, id);
        }
        if is_proved {
            // Whoever is denied is told what the fleet used.
            self.mark_moved(key);
        }
        if is_current {
            self.hunts.push_back(key);
            self.keeps_due.push(key);
        }
        self.go_on_returning(now, key);
        self.watch_unsure(now, key);
    }
}

/// What one of several holders may have ahead: so little that all together strand next to nothing when the pool ends.
/// With a share of a half instead of an eighth, fifty sidecars admit 99.2 % before a false denial instead of 99.99 %.
const fn fair_share(pool: &Pool) -> Units {
    if pool.holders <= 1 {
        return pool.free;
    }
    match pool.free.checked_div(pool.holders.saturating_mul(8)) {
        Some(share) => share,
        None => 0,
    }
}

enum Trouble {
    Fault(PoolFault),
    /// Nothing came; whether it may have been done.
    Silence(bool),
}

fn take_grant(
    window: &mut Window,
    grant: &Grant,
    ask: &Sent,
    returned_cum: Units,
    notices: u32,
    apart: Units,
) {
    let Some(pool) = window.pool.as_mut() else {
        return;
    };
    let was_unsure = pool.unsure.take().is_some();
    pool.request_seq = pool.request_seq.saturating_add(1);
    pool.witness_seq = pool.witness_seq.max(grant.pool_seq);
    pool.total = grant.total;
    // What was given back after this ask was sent is on its way to the pool.
    let source = *window.balance.source(pool.generation);
    pool.free = grant
        .free
        .saturating_add(source.returned_pool.saturating_sub(returned_cum));
    pool.holders = grant.holders.max(1);
    (pool.is_final, pool.is_grown) = (grant.is_final, false);
    let generation = pool.generation;
    // One holder more than is known: shares of all that come one after the other stay within the whole.
    let seats = pool.holders.saturating_add(1);
    let is_plenty = pool.free.saturating_mul(10) >= pool.total;
    let credited = window
        .balance
        .credit(generation, grant.granted_cum, grant.give);
    if !was_unsure {
        pool.is_return_unsure = false;
        // A repeated answer says nothing about what this request returned.
        let source = window.balance.source(generation);
        source.told_pool = source.told_pool.max(returned_cum);
    }
    window.await_channel = false;
    if credited > 0 {
        window.proof = None;
        window.smallest_first = false;
        let is_scarce = !is_plenty && grant.is_final;
        window.stock(
            credited,
            ask,
            apart.checked_div(seats).unwrap_or(0),
            is_scarce,
        );
        return;
    }
    if ask.want == 0 {
        return;
    }
    window.low_mark = 0;
    let is_final = grant.is_final || mutant::is(Mutant::ProofFromPoolNotFinal);
    let is_short = grant.free < ask.need;
    if !is_final && (is_short || !is_plenty) || window.is_noticed && is_short {
        window.extend = true;
        window.proof = None;
        return;
    }
    if !is_short || !is_final {
        return;
    }
    window.smallest_first = true;
    window.proof = Proof::by_pool(ask, notices);
    // Without the channel nobody would say when it ends: follow it, then ask again.
    window.await_channel = ask.channel.is_none();
}

fn read_grant(reply: Reply) -> Result<Grant, Trouble> {
    let elements = match reply {
        Ok(FunctionReply::Elements(elements)) => elements,
        Ok(FunctionReply::Error(_)) | Err(FailureKind::Deadline) => {
            return Err(Trouble::Silence(true));
        }
        Err(FailureKind::Unreachable | FailureKind::Refused) => {
            return Err(Trouble::Silence(false));
        }
    };
    if let [first, second, ..] = elements.as_slice()
        && &**first == "ERR"
    {
        return Err(fault_of(second).map_or(Trouble::Silence(true), Trouble::Fault));
    }
    parse_grant(&elements).ok_or(Trouble::Silence(true))
}

fn parse_grant(elements: &[Box<str>]) -> Option<Grant> {
    let [
        ok,
        give,
        granted_cum,
        pool_seq,
        free,
        is_final,
        total,
        holders,
    ] = elements
    else {
        return None;
    };
    if &**ok != "OK" {
        return None;
    }
    Some(Grant {
        give: give.parse().ok()?,
        granted_cum: granted_cum.parse().ok()?,
        pool_seq: pool_seq.parse().ok()?,
        free: free.parse().ok()?,
        is_final: &**is_final == "1",
        total: total.parse().ok()?,
        holders: holders.parse().ok()?,
    })
}

/// The fault that a function's error names.
pub(crate) fn fault_of(reason: &str) -> Option<PoolFault> {
    match reason {
        "NO_POOL" => Some(PoolFault::NoPool),
        "FENCE" => Some(PoolFault::Fence),
        "GENERATION" => Some(PoolFault::Generation),
        "CLOSED" => Some(PoolFault::Closed),
        "ROLLBACK" => Some(PoolFault::Rollback),
        "SEQ" => Some(PoolFault::Seq),
        "RETURN_RANGE" => Some(PoolFault::ReturnRange),
        _ => None,
    }
}
