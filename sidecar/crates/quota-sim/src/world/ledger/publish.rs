//! What Redis is told after a transaction, by calls of its functions, none of them retried by itself.

use std::sync::Arc;

use quota_core::{
    AllotAnswer, AllotAsk, FunctionCall, FunctionReply, PoolFault,
    mutant::{self, Mutant},
};

use super::Ledger;
use crate::world::{fact::Fact, redis::Redis};

/// The ledger's connection to Redis, at this moment.
#[derive(Debug)]
pub struct Line<'a> {
    /// To whom.
    pub redis: &'a mut Redis,
    /// Calls arrive.
    pub is_sent: bool,
    /// Replies come back.
    pub is_answered: bool,
    /// Real µs.
    pub real_us: u64,
    /// Ledger µs per 1,000 real µs.
    pub speed_milli: u64,
}

impl Line<'_> {
    /// Makes one call; `None` where its outcome is unknown.
    pub(super) fn call(
        &mut self,
        function: &'static str,
        keys: Vec<Arc<str>>,
        arguments: Vec<String>,
    ) -> Option<FunctionReply> {
        if !self.is_sent {
            return None;
        }
        let call = FunctionCall {
            function,
            keys,
            arguments,
        };
        let reply = self.redis.run(&call, self.real_us);
        self.is_answered.then_some(reply)
    }
}

/// Whether a pool said that it is gone: it can tell nobody whom it had refused.
fn is_gone(reply: Option<&FunctionReply>) -> bool {
    let Some(FunctionReply::Elements(elements)) = reply else {
        return false;
    };
    matches!(elements.as_slice(), [_, reason, ..] if matches!(&**reason, "NO_POOL" | "FENCE"))
}

impl Ledger {
    /// Brings Redis to a window's newest generation.
    pub(super) fn publish(&mut self, place: usize, line: &mut Line<'_>) {
        let window = &mut self.rows.windows[place];
        let (is_final, version, id) = (window.is_final(), window.amount_version, window.id);
        let Some(generation) = window
            .generations
            .last_mut()
            .filter(|last| last.is_publishing)
        else {
            return;
        };
        let is_opening = std::mem::take(&mut generation.is_opened_now);
        generation.is_publishing = false;
        let told = *generation;
        let (pool, holders, channel) = (&window.pool_key, &window.holders_key, &window.channel);
        let number = told.number.to_string();
        if is_opening {
            let call = |line: &mut Line<'_>| {
                let arguments = vec![number.clone(), "4102444800".to_owned()];
                line.call("pool_open", vec![pool.clone(), holders.clone()], arguments)
            };
            if call(line).is_none() && mutant::is(Mutant::OpenRepeated) {
                window.generations.last_mut().expect("it").is_opened_now = true;
            }
        }
        // Closing needs its answer: `close_pools` does it.
        if told.is_closing || told.is_lost {
            return;
        }
        let arguments = vec![
            number,
            told.allotted_cum.to_string(),
            version.to_string(),
            u64::from(is_final).to_string(),
            channel.to_string(),
        ];
        let reply = line.call("pool_extend", vec![pool.clone()], arguments);
        if is_gone(reply.as_ref()) {
            self.gone.push(id);
        }
        if reply.is_none() && !self.untold.contains(&id) && !mutant::is(Mutant::UntoldForgotten) {
            self.untold.push(id);
        }
    }

    /// Closes pools whose amount went below what is out; what was never granted goes back to the limit, once.
    pub(super) fn close_pools(&mut self, line: &mut Line<'_>) {
        for place in 0..self.rows.windows.len() {
            let window = &self.rows.windows[place];
            let closing: Vec<u64> = window
                .generations
                .iter()
                .filter(|one| {
                    one.is_closing && (!one.is_closed || mutant::is(Mutant::CloseCreditsAgain))
                })
                .map(|one| one.number)
                .collect();
            for number in closing {
                self.close(place, number, line);
            }
        }
    }

    fn close(&mut self, place: usize, number: u64, line: &mut Line<'_>) {
        let window = &mut self.rows.windows[place];
        let arguments = vec![number.to_string(), window.channel.to_string()];
        let reply = line.call("pool_close", vec![window.pool_key.clone()], arguments);
        let Some(FunctionReply::Elements(elements)) = reply else {
            return;
        };
        let unspent = match elements.as_slice() {
            [ok, unspent] if &**ok == "OK" => unspent.parse().expect("a number"),
            _ => 0,
        };
        let is_forgotten = window.timeline < self.rows.timeline;
        let units = window.credit_closed(number, unspent, is_forgotten);
        let id = window.id;
        if units > 0 {
            self.note(Fact::Credited {
                window: id,
                generation: number,
                is_unspent: true,
                units,
            });
        }
        self.publish(place, line);
        self.notice_if_due(place);
    }

    /// What the ledger does every second: closes what waits for it, tells again what may not have been heard.
    pub fn tick(&mut self, line: &mut Line<'_>, now_us: i64) {
        self.close_pools(line);
        self.look(line.real_us);
        self.end_learning(line, now_us);
        for id in std::mem::take(&mut self.gone) {
            if let Some(place) = self.rows.ids.get(&id) {
                let window = &self.rows.windows[*place];
                self.notices.push(window.identity.clone());
            }
        }
        for id in std::mem::take(&mut self.untold) {
            let Some(place) = self.rows.ids.get(&id).copied() else {
                continue;
            };
            let window = &mut self.rows.windows[place];
            if window.end_us <= now_us {
                continue;
            }
            if let Some(generation) = window.generations.last_mut() {
                generation.is_publishing = true;
                self.publish(place, line);
            }
        }
    }

    /// Answers where a token bucket lives; a shard that is new or lost is opened.
    pub(super) fn shard(
        &mut self,
        ask: &AllotAsk,
        line: &mut Line<'_>,
        now_us: i64,
    ) -> AllotAnswer {
        let place = ask.key_hash.0[0] % 16;
        let key = (ask.tenant.clone(), ask.limit.clone(), place);
        let before = self.rows.shards.get(&key).copied().unwrap_or(0);
        let is_lost = ask
            .fault
            .is_some_and(|fault| fault != PoolFault::Unreachable);
        let marker: Arc<str> = format!("tk:{{{}.{}.{place}}}:m", ask.tenant, ask.limit).into();
        let channel: Arc<str> = format!("tk:{{{}.{}.{place}}}:bn", ask.tenant, ask.limit).into();
        let mut generation = before;
        if before == 0 || (is_lost && ask.generation_seen == before) {
            generation = before.max(self.rows.timeline << 32) + 1;
            self.rows.shards.insert(key, generation);
            // After a restore nobody knows whether it ever was open: its buckets then refill from empty.
            let is_first = before == 0
                && (self.rows.timeline == 1 || mutant::is(Mutant::RestoredBucketIsFull));
            self.opened = Some(is_first);
            Self::open_bucket(&marker, &channel, (generation, is_first), line, now_us);
        }
        AllotAnswer::Bucket {
            generation,
            marker_key: marker,
            bucket_prefix: format!("tk:{{{}.{}.{place}}}:b:", ask.tenant, ask.limit).into(),
            channel,
        }
    }

    fn open_bucket(
        marker: &Arc<str>,
        channel: &Arc<str>,
        (generation, is_first): (u64, bool),
        line: &mut Line<'_>,
        now_us: i64,
    ) {
        let arguments = vec![
            generation.to_string(),
            now_us.to_string(),
            line.speed_milli.to_string(),
            u64::from(is_first).to_string(),
            channel.to_string(),
        ];
        line.call("bucket_open", vec![marker.clone()], arguments);
    }
}
