//! Tokens that go back to their bucket, and the standing share that a shard lends.

use crate::{
    bucket::shard::place_of,
    check::{aside::Turn, judge::refill_of},
    effect::FunctionCall,
    engine::Engine,
    event::FunctionReply,
    id::ReservationId,
    lease::{
        pool::{Reply, fault_of},
        shard::{bucket_keys, note_fault, text, time_text, units_text},
    },
    outbox::CallOrigin,
    request::Units,
    slab::Key,
    time::Now,
};

impl Engine {
    /// Gives units of live slices back, because the call that they were lent for takes nothing. What is set aside for others
    /// stays, unless the process ends.
    pub(crate) fn return_tokens(&mut self, now: Now, key: Key, units: Units) {
        let bucket = self.buckets.get(key).filter(|_| !self.is_draining);
        let aside = bucket.map_or(0, |bucket| bucket.set_aside(Turn::NEWCOMER));
        let Some(tokens) = self.tokens_mut(key) else {
            return;
        };
        let units = units.min(tokens.free(now.real_us).saturating_sub(aside));
        let lot = tokens.draw(units, now.real_us);
        tokens.send_back(lot.unwrap_or_default());
        self.give_tokens(now, key);
    }

    /// Ends what a reservation holds of a token bucket at what it used. Answers the units that go back.
    pub(crate) fn settle_tokens(
        &mut self,
        now: Now,
        key: Key,
        id: ReservationId,
        used: Units,
    ) -> Units {
        let Some(tokens) = self.tokens_mut(key) else {
            return 0;
        };
        let back = tokens.settle(id, used);
        self.give_tokens(now, key);
        back
    }

    pub(crate) fn tokens_mut(&mut self, key: Key) -> Option<&mut crate::bucket::token::Tokens> {
        self.buckets.get_mut(key)?.tokens.as_deref_mut()
    }

    /// Sends what is on its way back, one request at a time. Where the shard can't be asked it is lost: tokens come again.
    pub(crate) fn give_tokens(&mut self, now: Now, key: Key) {
        let is_redis_down = self.links.redis.is_down(now.real_us);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let Some(limit) = self.catalog.limit(bucket.limit) else {
            return;
        };
        let Some(tokens) = bucket.tokens.as_deref_mut() else {
            return;
        };
        if tokens.giving.is_some() {
            return;
        }
        let state = limit
            .shards
            .get(place_of(bucket.key_hash))
            .filter(|state| state.is_open() && !is_redis_down);
        let shard = state.and_then(|state| state.shard.as_ref());
        let generation = shard.map(|shard| shard.generation);
        let lot = loop {
            match tokens.next_returning() {
                Some(lot) if Some(lot.origin.generation) == generation => break lot,
                Some(_) => {}
                None => return,
            }
        };
        let (Some(refill), Some(shard)) = (refill_of(&limit.rule), shard) else {
            return;
        };
        tokens.give_seq = tokens.give_seq.saturating_add(1);
        tokens.giving = Some(lot);
        tokens.asked_rate = refill.units;
        let call = FunctionCall {
            function: "bucket_give",
            keys: bucket_keys(shard, bucket.key_hash),
            arguments: vec![
                text(shard.generation),
                self.holder_hex.clone(),
                text(tokens.give_seq),
                units_text(lot.units),
                units_text(lot.origin.op),
                units_text(refill.units),
                refill.interval_us.to_string(),
                units_text(refill.burst),
                time_text(now),
            ],
        };
        self.outbox
            .call(call, CallOrigin::Give(key, shard.generation));
    }

    /// Takes in what became of a return. One of unknown outcome is lost and never sent again.
    pub(crate) fn on_given(&mut self, now: Now, key: Key, generation: u64, reply: Reply) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let place = place_of(bucket.key_hash);
        let (index, Some(tokens)) = (bucket.limit, bucket.tokens.as_deref_mut()) else {
            return;
        };
        let giving = tokens.giving.take();
        if let Ok(FunctionReply::Elements(elements)) = reply {
            match elements.as_slice() {
                [ok, taken, level] if &**ok == "OK" => {
                    if let Ok(level) = level.parse() {
                        tokens.heard(level, now);
                    }
                    if taken.parse().is_ok_and(|taken: Units| taken > 0) {
                        tokens.forgive();
                    }
                }
                [_, seq, last, ..] if &**seq == "SEQ" => {
                    let last = last.parse().unwrap_or(0);
                    if last > tokens.give_seq {
                        // It was not looked at: this key gave way once, and what it had sent was forgotten.
                        tokens.give_seq = last;
                        tokens.send_back(giving.unwrap_or_default());
                    }
                }
                [_, reason, ..] => {
                    if let Some(fault) = fault_of(reason)
                        && let Some(limit) = self.catalog.limit_mut(index)
                    {
                        note_fault(limit.shards.at(place), generation, fault);
                    }
                }
                _ => {}
            }
        }
        self.give_tokens(now, key);
        self.stir(key);
    }

    /// Asks a shard for the part of the rate that may be admitted while nothing is heard from it, where that is due.
    pub(crate) fn ask_share(&mut self, now: Now, index: u32, place: u8) {
        let Some(limit) = self.catalog.limit_mut(index) else {
            return;
        };
        let state = limit.shards.at(place);
        let Some(shard) = state
            .shard
            .as_ref()
            .filter(|_| state.share.is_due(now.real_us))
        else {
            return;
        };
        let held = state.share.ask(now.real_us);
        let call = FunctionCall {
            function: "bucket_share",
            keys: vec![shard.marker_key.clone()],
            arguments: vec![
                text(shard.generation),
                self.holder_hex.clone(),
                text(state.share.request_seq),
                text(held),
                time_text(now),
            ],
        };
        self.outbox
            .call(call, CallOrigin::Share(index, place, shard.generation));
    }

    /// Takes in the share that a shard lends.
    pub(crate) fn on_share(
        &mut self,
        now: Now,
        index: u32,
        place: u8,
        generation: u64,
        reply: Reply,
    ) {
        let Some(limit) = self.catalog.limit_mut(index) else {
            return;
        };
        let state = limit.shards.at(place);
        if state
            .shard
            .as_ref()
            .is_none_or(|shard| shard.generation != generation)
        {
            return;
        }
        let mut part = None;
        if let Ok(FunctionReply::Elements(elements)) = reply {
            match elements.as_slice() {
                [ok, ppm] if &**ok == "OK" => part = ppm.parse().ok(),
                [_, seq, last] if &**seq == "SEQ" => {
                    state.share.catch_up(last.parse().unwrap_or(0));
                }
                [_, reason, ..] => {
                    if let Some(fault) = fault_of(reason) {
                        note_fault(state, generation, fault);
                    }
                }
                _ => {}
            }
        }
        state.share.answer(part, now.real_us);
    }
}
