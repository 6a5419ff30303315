//! Token buckets: finding their shard, taking slices.

use std::sync::Arc;

use crate::{
    bucket::token::Shard,
    check::judge::refill_of,
    effect::{AllotAsk, FunctionCall},
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
    /// Asks the ledger where a token bucket lives. One ask serves all buckets of the limit.
    pub(crate) fn ask_shard(&mut self, now: Now, key: Key) {
        let Some(index) = self.buckets.get(key).map(|bucket| bucket.limit) else {
            return;
        };
        let Some(limit) = self.catalog.limit_mut(index) else {
            return;
        };
        if !limit.shard.waiting.contains(&key) {
            limit.shard.waiting.push(key);
        }
        if limit.shard.is_flying {
            return;
        }
        limit.shard.is_flying = true;
        let ask = AllotAsk {
            tenant: Arc::clone(&limit.tenant_name),
            limit: Arc::clone(&limit.rule.name),
            key_hash: KeyHash::default(),
            key_values: Vec::new(),
            at_us: now.ledger_us,
            request_seq: limit.shard.request_seq.saturating_add(1),
            need: 0,
            want: 0,
            generation_seen: limit
                .shard
                .shard
                .as_ref()
                .map_or(0, |shard| shard.generation),
            allotted_cum_seen: 0,
            fault: limit.shard.fault,
            ledger_only: false,
        };
        self.outbox.ask(ask, AskOrigin::Shard(index));
    }

    /// Takes in where a limit's token buckets live; `None` = the ledger did not answer.
    pub(crate) fn on_shard(&mut self, now: Now, index: u32, answer: Option<AllotAnswer>) {
        let Some(limit) = self.catalog.limit_mut(index) else {
            return;
        };
        let state = &mut limit.shard;
        state.is_flying = false;
        match answer {
            Some(AllotAnswer::Bucket {
                generation,
                marker_key,
                bucket_prefix,
                ..
            }) => {
                state.request_seq = state.request_seq.saturating_add(1);
                state.shard = Some(Shard {
                    generation,
                    marker_key,
                    bucket_prefix,
                });
                state.fault = None;
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
        let (Some(refill), Some(shard)) = (refill_of(&limit.rule), &limit.shard.shard) else {
            return;
        };
        let mut bucket_key = String::from(&*shard.bucket_prefix);
        bucket_key.push_str(&hex(&bucket.key_hash.0));
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
        let text = |number: u64| number.min(UNITS_MAX).to_string();
        let call = FunctionCall {
            function: "bucket_take",
            keys: vec![Arc::clone(&shard.marker_key), Arc::from(bucket_key)],
            arguments: vec![
                shard.generation.to_string(),
                self.holder_hex.clone(),
                text(tokens.request_seq),
                text(size.need),
                text(want),
                text(refill.units),
                refill.interval_us.to_string(),
                text(refill.burst),
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
            } => {
                tokens.credit(&ask, give, level, now);
                if give == 0 && ask.need > 0 {
                    tokens.deny(&ask, retry_after_us);
                }
            }
            Taken::Behind(last) => tokens.request_seq = tokens.request_seq.max(last),
            Taken::Fault(fault) => {
                if limit
                    .shard
                    .shard
                    .as_ref()
                    .is_some_and(|shard| shard.generation == generation)
                {
                    limit.shard.fault = Some(fault);
                }
            }
            Taken::Silence => {}
        }
        self.stir(key);
    }
}

enum Taken {
    Slice {
        give: Units,
        level: Units,
        retry_after_us: i64,
    },
    /// It has seen a later request of this holder.
    Behind(u64),
    Fault(crate::PoolFault),
    Silence,
}

fn read_take(reply: Result<FunctionReply, FailureKind>) -> Taken {
    let Ok(FunctionReply::Elements(elements)) = reply else {
        return Taken::Silence;
    };
    let parsed = match elements.as_slice() {
        [ok, give, level, retry] if &**ok == "OK" => give
            .parse()
            .ok()
            .zip(level.parse().ok())
            .zip(retry.parse().ok())
            .map(|((give, level), retry_after_us)| Taken::Slice {
                give,
                level,
                retry_after_us,
            }),
        [_, seq, last, ..] if &**seq == "SEQ" => last.parse().ok().map(Taken::Behind),
        [_, reason, ..] => fault_of(reason).map(Taken::Fault),
        _ => None,
    };
    parsed.unwrap_or(Taken::Silence)
}
