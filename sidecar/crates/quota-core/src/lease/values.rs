//! Asking a pool for units of values that were not seen here yet (unique meters), and what it answers.
//!
//! Nothing is leased ahead: the pool marks a value and grants its unit in one step, and here it is spent at once. So the
//! values of a window that were ever admitted are never more than the units that left the limit.

use crate::{
    bucket::{
        values::Told,
        window::{Flight, Window},
    },
    effect::FunctionCall,
    engine::Engine,
    event::FunctionReply,
    hash::{hex, value_hash},
    id::{ValueHash, WindowId},
    lease::{
        pool::{Grant, Reply},
        pursue::sent,
    },
    matching::attribute,
    mutant::{self, Mutant},
    outbox::CallOrigin,
    proof::{Proof, Sent},
    slab::Key,
    time::Now,
};

/// Values in one call.
const ASKED_MAX: usize = 64;

impl Engine {
    /// Asks the pool of a window for units of the values of those who wait.
    pub(crate) fn ask_values(&mut self, now: Now, key: Key, id: WindowId) {
        let values = self.values_wanted(now, key, id);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let Some(limit) = self.catalog.limit(bucket.limit) else {
            return;
        };
        let channel = bucket
            .window_mut(id)
            .and_then(|window| window.pool.as_ref())
            .map(|pool| pool.channel.clone());
        let ask = sent(bucket, &self.links, now, 1, 1, channel.as_deref());
        let Some(window) = bucket.window_mut(id).filter(|_| !values.is_empty()) else {
            return;
        };
        window.balance.attribute();
        let over = window.balance.over;
        let Some(pool) = &window.pool else { return };
        let source = *window.balance.source(pool.generation);
        let ask = ask.repeating(pool.unsure);
        let text = |number: u64| number.to_string();
        let mut arguments = vec![
            text(pool.generation),
            self.holder_hex.clone(),
            text(pool.request_seq.saturating_add(1)),
            text(source.returned_pool),
            text(source.spent()),
            text(over),
            text(pool.witness_seq),
            text(pool.holders),
            pool.channel.to_string(),
            text(u64::from(
                limit.rule.enforcement != crate::Enforcement::Hard,
            )),
        ];
        arguments.extend(values.iter().map(|value| hex(&value.0)));
        let call = FunctionCall {
            function: "values_grant",
            keys: vec![
                pool.pool_key.clone(),
                pool.holders_key.clone(),
                pool.values_key.clone(),
            ],
            arguments,
        };
        let origin = CallOrigin::Grant(key, id, pool.generation);
        window.flight = Some(Flight::Grant(ask, source.returned_pool));
        window.values.asked = values;
        self.outbox.call(call, origin);
    }

    /// Values of those who wait at a window, of which nothing is known that holds: each once, oldest first.
    fn values_wanted(&self, now: Now, key: Key, id: WindowId) -> Vec<ValueHash> {
        let mut values = Vec::new();
        let Some(bucket) = self.buckets.get(key) else {
            return values;
        };
        let window = bucket
            .current
            .as_ref()
            .filter(|window| window.info.id == id);
        let limit = self.catalog.limit(bucket.limit);
        let name = limit.and_then(|limit| self.catalog.value_attribute(&limit.rule.meter));
        let (Some(window), Some(name)) = (window, name) else {
            return values;
        };
        for (waiter, _) in &bucket.waiters {
            let request = self.waiting.get(*waiter).map(|waiter| &waiter.request);
            let value = request.and_then(|request| attribute(&request.attributes, name));
            let Some(value) = value.map(|value| value_hash(id, value)) else {
                continue;
            };
            let told = window.told(value, bucket.notices, &self.links, now, &self.config);
            if told.is_none() && !values.contains(&value) && values.len() < ASKED_MAX {
                values.push(value);
            }
        }
        values
    }
}

/// Takes the letters off an answer to `values_grant`.
pub(crate) fn split_letters(reply: Reply) -> (Reply, Box<str>) {
    match reply {
        Ok(FunctionReply::Elements(mut elements)) if elements.len() > 8 => {
            let letters = elements.pop().unwrap_or_default();
            (Ok(FunctionReply::Elements(elements)), letters)
        }
        other => (other, Box::default()),
    }
}

/// Takes in what a pool said of the values that it was asked for; what it gave is spent with this.
pub(crate) fn take_values(
    window: &mut Window,
    grant: &Grant,
    letters: &str,
    ask: &Sent,
    notices: u32,
) {
    let asked = std::mem::take(&mut window.values.asked);
    let Some(pool) = window.pool.as_mut() else {
        return;
    };
    pool.unsure = None;
    pool.request_seq = pool.request_seq.saturating_add(1);
    pool.witness_seq = pool.witness_seq.max(grant.pool_seq);
    (pool.total, pool.free) = (grant.total, grant.free);
    pool.holders = grant.holders.max(1);
    let generation = pool.generation;
    window.await_channel = false;
    let credited = window
        .balance
        .credit(generation, grant.granted_cum, grant.give);
    let _ = window.balance.take(credited);
    let mut is_denied = false;
    for (value, letter) in asked.into_iter().zip(letters.chars()) {
        match letter {
            'K' => window.values.set(value, Told::Counted),
            '?' if mutant::is(Mutant::RepeatMarksOthers) => {
                window.values.set(value, Told::Counted);
            }
            'O' | 'o' => {
                if letter == 'O' {
                    window.balance.exceed(1);
                }
                window.values.set(value, Told::Over);
            }
            'D' => {
                is_denied = true;
                let is_final = grant.is_final && !window.is_noticed;
                let proof = Proof::by_pool(ask, notices).filter(|_| is_final);
                if mutant::is(Mutant::DeniedValueCounts) {
                    window.values.set(value, Told::Counted);
                } else if let Some(proof) = proof {
                    let told = Told::Denied {
                        proof,
                        notices,
                        generation,
                    };
                    window.values.set(value, told);
                }
            }
            _ => {}
        }
    }
    if is_denied && (!grant.is_final || window.is_noticed) {
        window.extend = true;
    } else if is_denied {
        // Without the channel nobody would say when it ends: follow it, then ask again.
        window.await_channel = ask.channel.is_none();
    }
}
