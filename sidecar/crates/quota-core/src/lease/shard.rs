//! Token buckets: finding their shard, taking slices.

use std::sync::Arc;

use crate::{
    bucket::{
        shard::{Shard, ShardState, place_of},
        token::{Lot, Origin},
    },
    check::{aside::Turn, judge::refill_of},
    effect::{AllotAsk, FunctionCall, PoolFault},
    engine::Engine,
    event::{AllotAnswer, FailureKind, FunctionReply},
    hash::hex,
    id::KeyHash,
    lease::{
        pool::{Reply, fault_of},
        pursue::{Size, sent},
    },
    outbox::{AskOrigin, CallOrigin},
    request::{UNITS_MAX, Units},
    slab::Key,
    time::Now,
};

/// After a refusal the ledger is left alone for so long, real µs.
const REFUSED_US: u64 = 100_000;

impl Engine {
    /// Asks the ledger where a token bucket lives. One ask serves all buckets of the shard.
    pub(crate) fn ask_shard(&mut self, now: Now, key: Key) {
        let Some((index, key_hash)) = self
            .buckets
            .get(key)
            .map(|bucket| (bucket.limit, bucket.key_hash))
        else {
            return;
        };
        let Some(limit) = self.catalog.limit_mut(index) else {
            return;
        };
        let place = place_of(key_hash);
        let state = limit.shards.at(place);
        if !state.waiting.contains(&key) {
            state.waiting.push(key);
        }
        if state.is_flying {
            return;
        }
        state.is_flying = true;
        let ask = AllotAsk {
            tenant: Arc::clone(&limit.tenant_name),
            limit: Arc::clone(&limit.rule.name),
            key_hash,
            key_values: Vec::new(),
            at_us: now.ledger_us,
            request_seq: state.request_seq.saturating_add(1),
            need: 0,
            want: 0,
            generation_seen: state.shard.as_ref().map_or(0, |shard| shard.generation),
            allotted_cum_seen: 0,
            fault: state.fault,
            ledger_only: false,
        };
        self.outbox.ask(ask, AskOrigin::Shard(index, place));
    }

    /// Takes in where a shard's buckets live; `None` = the ledger did not answer.
    pub(crate) fn on_shard(
        &mut self,
        now: Now,
        index: u32,
        place: u8,
        answer: Option<AllotAnswer>,
    ) {
        let Some(limit) = self.catalog.limit_mut(index) else {
            return;
        };
        let state = limit.shards.at(place);
        state.is_flying = false;
        match answer {
            Some(AllotAnswer::Bucket {
                generation,
                marker_key,
                bucket_prefix,
                ..
            }) => {
                state.request_seq = state.request_seq.saturating_add(1);
                state.open(Shard {
                    generation,
                    marker_key,
                    bucket_prefix,
                });
            }
            Some(AllotAnswer::Refused {
                reason,
                last_request_seq,
            }) if &*reason == "REQUEST_SEQ" => {
                state.request_seq = last_request_seq;
            }
            Some(_) => {
                state.request_seq = state.request_seq.saturating_add(1);
                state.refused_until_us = now.real_us.saturating_add(REFUSED_US);
            }
            None => {}
        }
        for key in std::mem::take(&mut state.waiting) {
            self.stir(key);
        }
    }

    /// Asks a token bucket for a slice, or with need 0 only for its figures.
    pub(crate) fn ask_bucket(&mut self, now: Now, key: Key, size: Size) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let Some(limit) = self.catalog.limit(bucket.limit) else {
            return;
        };
        let shard = limit
            .shards
            .get(place_of(bucket.key_hash))
            .and_then(|state| state.shard.as_ref());
        let (Some(refill), Some(shard)) = (refill_of(&limit.rule), shard) else {
            return;
        };
        let ask = sent(bucket, &self.links, now, size.need, 0, None);
        let tokens = bucket.tokens.get_or_insert_default();
        let want = if size.need == 0 {
            0
        } else {
            tokens.demand.slice(now.real_us, size.need).max(size.all)
        };
        let want = want.min(refill.burst).max(size.need);
        tokens.request_seq = tokens.request_seq.saturating_add(1);
        tokens.flight = Some(ask);
        tokens.asked_rate = refill.units;
        let call = FunctionCall {
            function: "bucket_take",
            keys: bucket_keys(shard, bucket.key_hash),
            arguments: vec![
                text(shard.generation),
                self.holder_hex.clone(),
                text(tokens.request_seq),
                units_text(size.need),
                units_text(want),
                units_text(refill.units),
                refill.interval_us.to_string(),
                units_text(refill.burst),
                time_text(now),
            ],
        };
        self.outbox
            .call(call, CallOrigin::Take(key, shard.generation));
    }

    /// Takes in what a token bucket answered.
    pub(crate) fn on_take(&mut self, now: Now, key: Key, generation: u64, reply: Reply) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let Some(limit) = self.catalog.limit_mut(bucket.limit) else {
            return;
        };
        let tokens = bucket.tokens.get_or_insert_default();
        let Some(ask) = tokens.flight.take() else {
            return;
        };
        match read_take(reply) {
            Taken::Slice {
                give,
                level,
                retry_after_us,
                op,
            } => {
                let lot = Lot {
                    units: give,
                    origin: Origin { generation, op },
                };
                tokens.credit(&ask, lot, level, now);
                if give == 0 && ask.need > 0 {
                    tokens.deny(&ask, retry_after_us, now);
                } else if let Some(refill) = refill_of(&limit.rule).filter(|_| give > 0) {
                    tokens.line_up(&ask, level, &refill, now);
                }
                let waiting = bucket.waiters.iter();
                let claimed = waiting
                    .filter(|(waiter, _)| self.waiting.get(*waiter).is_some())
                    .fold(bucket.set_aside(Turn::NEWCOMER), |sum, (_, cost)| {
                        sum.saturating_add(*cost)
                    });
                let unclaimed = ask.need.saturating_sub(claimed);
                let (index, place) = (bucket.limit, place_of(bucket.key_hash));
                self.ask_share(now, index, place);
                // Whoever asked was answered without it: a denied call takes nothing.
                self.return_tokens(now, key, unclaimed.min(give));
            }
            Taken::Behind(last) => tokens.request_seq = tokens.request_seq.max(last),
            Taken::Fault(fault) => {
                let state = limit.shards.at(place_of(bucket.key_hash));
                note_fault(state, generation, fault);
            }
            Taken::Silence => {}
        }
        self.stir(key);
    }

    /// Lets the next one in the line of those who wait for tokens wait on, where what the shard has left, and gets in half
    /// of the time for which it may wait, is enough for it and those ahead; else it is denied. Answers how many units the
    /// line wants up to here.
    pub(crate) fn pass_line(
        &mut self,
        now: Now,
        key: Key,
        (waiter, cost): (Key, Units),
        (level, ahead): (Units, Units),
    ) -> Units {
        let state = self.waiting.get(waiter);
        let Some(state) = state.filter(|state| state.queues.contains(&key)) else {
            return ahead;
        };
        let half_us = state.deadline_us.saturating_sub(now.real_us) / 2;
        let Some(bucket) = self.buckets.get_mut(key) else {
            return ahead;
        };
        let rule = self.catalog.limit(bucket.limit).map(|limit| &limit.rule);
        let refill = rule.and_then(refill_of);
        let (Some(refill), Some(tokens)) = (refill, bucket.tokens.as_deref_mut()) else {
            return ahead;
        };
        let line = ahead.saturating_add(cost);
        let coming = refill.tokens_in(now.ledger_us_of(half_us));
        let Some(beyond) = line.checked_sub(level).filter(|beyond| *beyond > coming) else {
            return line;
        };
        let missing = cost.saturating_sub(tokens.free(now.real_us));
        if missing == 0 {
            // What it lacks is here, set aside for those before it.
            return line;
        }
        tokens.refuse(missing, refill.time_for(beyond), now);
        self.reconsider(now, waiter, false);
        if let Some(tokens) = self.tokens_mut(key) {
            tokens.forgive();
        }
        ahead
    }
}

/// Keys of a bucket: its shard's marker, and its own.
pub(crate) fn bucket_keys(shard: &Shard, key_hash: KeyHash) -> Vec<Arc<str>> {
    let mut bucket_key = String::from(&*shard.bucket_prefix);
    bucket_key.push_str(&hex(&key_hash.0));
    vec![Arc::clone(&shard.marker_key), Arc::from(bucket_key)]
}

/// Notes what went wrong at a shard, unless that is about a generation before the one that is known.
pub(crate) fn note_fault(state: &mut ShardState, generation: u64, fault: PoolFault) {
    if state
        .shard
        .as_ref()
        .is_some_and(|shard| shard.generation == generation)
    {
        state.fault = Some(fault);
    }
}

/// A number as functions take it.
pub(crate) fn text(number: u64) -> String {
    number.to_string()
}

/// Units as functions take them.
pub(crate) fn units_text(units: Units) -> String {
    text(units.min(UNITS_MAX))
}

/// Ledger time as functions take it.
pub(crate) fn time_text(now: Now) -> String {
    units_text(Units::try_from(now.ledger_us).unwrap_or(0))
}

enum Taken {
    Slice {
        give: Units,
        level: Units,
        retry_after_us: i64,
        op: u64,
    },
    /// It has seen a later request of this holder.
    Behind(u64),
    Fault(PoolFault),
    Silence,
}

fn read_take(reply: Result<FunctionReply, FailureKind>) -> Taken {
    let Ok(FunctionReply::Elements(elements)) = reply else {
        return Taken::Silence;
    };
    let parsed = match elements.as_slice() {
        [ok, give, level, retry, op] if &**ok == "OK" => give
            .parse()
            .ok()
            .zip(level.parse().ok())
            .zip(retry.parse().ok())
            .zip(op.parse().ok())
            .map(|(((give, level), retry_after_us), op)| Taken::Slice {
                give,
                level,
                retry_after_us,
                op,
            }),
        [_, seq, last, ..] if &**seq == "SEQ" => last.parse().ok().map(Taken::Behind),
        [_, reason, ..] => fault_of(reason).map(Taken::Fault),
        _ => None,
    };
    parsed.unwrap_or(Taken::Silence)
}
