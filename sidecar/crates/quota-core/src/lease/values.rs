//! Asking a pool for units of values that were not seen here yet (unique meters), and what it answers.
//!
//! Nothing is leased ahead: the pool marks a value and grants its unit in one step, and here it is spent at once. So the
//! values of a window that were ever admitted are never more than the units that left the limit.

use crate::{
    bucket::{
        values::{Mark, SentBack, Told},
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
    request::{CheckRequest, Units},
    slab::Key,
    time::Now,
};

/// Values in one call.
const ASKED_MAX: usize = 64;

impl Engine {
    /// Asks the pool of a window for units of the values of those who wait. First it takes back what it was asked for in
    /// vain: those who wait may lack just that.
    pub(crate) fn ask_values(&mut self, now: Now, key: Key, id: WindowId) {
        if self.take_marks_back(now, key, id) {
            return;
        }
        let wanted = self.values_wanted(now, key, id);
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
        let Some(window) = bucket.window_mut(id).filter(|_| !wanted.is_empty()) else {
            return;
        };
        window.balance.attribute();
        let over = window.balance.over;
        let Some(pool) = &window.pool else { return };
        // A request of unknown outcome is repeated as it was: of marks that it made nobody else would know.
        let values = if pool.unsure.is_some() && !window.values.asked.is_empty() {
            std::mem::take(&mut window.values.asked)
        } else {
            wanted
        };
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
        let settled = window.values.tell_settled(ASKED_MAX);
        arguments.extend(settled.iter().map(|value| format!("={}", hex(&value.0))));
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

    /// Sends what takes marks back that no call counts on, or sends it again where its outcome is unknown. Answers whether
    /// anything was sent.
    pub(crate) fn take_marks_back(&mut self, now: Now, key: Key, id: WindowId) -> bool {
        let is_redis_down = self.links.redis.is_down(now.real_us);
        let Some(bucket) = self.buckets.get_mut(key) else {
            return false;
        };
        let ask = sent(bucket, &self.links, now, 0, 0, None);
        let Some(window) = bucket.window_mut(id) else {
            return false;
        };
        let is_idle = window.flight.is_none() && window.fault.is_none();
        if !is_idle || is_redis_down || !prepare_marks(window) {
            return false;
        }
        let over = window.balance.over;
        let (Some(pool), Some(back)) = (&window.pool, &window.values.sent_back) else {
            return false;
        };
        let consumed = window.balance.source(pool.generation).spent();
        let text = |number: u64| number.to_string();
        let mut arguments = vec![
            text(pool.generation),
            self.holder_hex.clone(),
            text(pool.request_seq.saturating_add(1)),
            text(back.returned_cum),
            text(consumed),
            text(over),
            text(pool.witness_seq),
            text(pool.holders),
            pool.channel.to_string(),
        ];
        for (value, seq) in &back.marks {
            arguments.extend([text(*seq), hex(&value.0)]);
        }
        let call = FunctionCall {
            function: "values_return",
            keys: vec![
                pool.pool_key.clone(),
                pool.holders_key.clone(),
                pool.values_key.clone(),
            ],
            arguments,
        };
        let origin = CallOrigin::Grant(key, id, pool.generation);
        window.flight = Some(Flight::Grant(ask, back.returned_cum));
        self.outbox.call(call, origin);
        true
    }

    /// Lets a call that takes nothing go without the marks that were made for its values alone.
    pub(crate) fn withdraw_values(&mut self, request: &CheckRequest, brought: &[Key]) {
        for key in brought {
            let value = self.value_in(*key, request);
            let window = self
                .buckets
                .get_mut(*key)
                .and_then(|bucket| bucket.current.as_mut());
            if let (Some(value), Some(window)) = (value, window)
                && window.values.withdraw(value)
            {
                self.stir(*key);
            }
        }
    }

    /// Notes that an admitted call counts on its value at a bucket.
    pub(crate) fn settle_value(&mut self, key: Key, request: &CheckRequest) {
        let bucket = self.buckets.get(key).filter(|bucket| bucket.counts_values);
        let window = bucket.and_then(|bucket| bucket.current.as_ref());
        if !window.is_some_and(|window| window.values.has_fresh()) {
            return;
        }
        let value = self.value_in(key, request);
        let window = self
            .buckets
            .get_mut(key)
            .and_then(|bucket| bucket.current.as_mut());
        if let (Some(value), Some(window)) = (value, window) {
            window.values.settle(value);
        }
    }

    /// The value that a call brings to a bucket, as its present window names it.
    fn value_in(&self, key: Key, request: &CheckRequest) -> Option<ValueHash> {
        let bucket = self
            .buckets
            .get(key)
            .filter(|bucket| bucket.counts_values)?;
        let limit = self.catalog.limit(bucket.limit)?;
        let name = self.catalog.value_attribute(&limit.rule.meter)?;
        let value = attribute(&request.attributes, name)?;
        Some(value_hash(bucket.current.as_ref()?.info.id, value))
    }

    /// Values of those who wait at a window, of which nothing is known that holds: each once, oldest first.
    pub(crate) fn values_wanted(&self, now: Now, key: Key, id: WindowId) -> Vec<ValueHash> {
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

/// Makes the request that takes marks back, where there is none whose outcome is unknown. Answers whether there is one.
fn prepare_marks(window: &mut Window) -> bool {
    let values = &mut window.values;
    if values.sent_back.is_none() && values.unwanted.is_empty() {
        return false;
    }
    let Some(pool) = &window.pool else {
        return false;
    };
    let generation = pool.generation;
    if values.sent_back.is_some() {
        return true;
    }
    if pool.unsure.is_some() {
        // A repeat of that request comes first: it has this one's number.
        return false;
    }
    window.balance.attribute();
    let source = *window.balance.source(generation);
    let most = usize::try_from(source.spent()).unwrap_or(usize::MAX);
    let mut marks = std::mem::take(&mut values.unwanted);
    let later = marks.split_off(marks.len().min(ASKED_MAX));
    values.unwanted = later;
    marks.retain(|(_, mark)| mark.generation == generation);
    marks.truncate(most);
    if marks.is_empty() {
        return false;
    }
    values.sent_back = Some(SentBack {
        generation,
        returned_cum: source.returned_pool,
        marks: marks
            .into_iter()
            .map(|(value, mark)| (value, mark.seq))
            .collect(),
    });
    true
}

/// Takes in how many of the marks the pool took back: their units are spent here no more, and its own again.
fn take_marks(window: &mut Window, back: &SentBack, returned_cum: Units) {
    let source = window.balance.source(back.generation);
    source.told_pool = source.told_pool.max(back.returned_cum);
    let marks = u64::try_from(back.marks.len()).unwrap_or(u64::MAX);
    let units = returned_cum.saturating_sub(back.returned_cum).min(marks);
    window.balance.take_back(back.generation, units);
    if let Some(pool) = window.pool.as_mut() {
        pool.is_return_unsure = false;
    }
}

/// Takes in what a pool said of the values that it was asked for; what it gave is spent with this. A value of `wanted` is
/// brought by a call that still waits.
pub(crate) fn take_values(
    window: &mut Window,
    grant: &Grant,
    letters: &str,
    ask: &Sent,
    notices: u32,
    wanted: &[ValueHash],
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
    let mark = Mark {
        generation,
        seq: pool.request_seq,
    };
    if let Some(back) = window.values.sent_back.take() {
        return take_marks(window, &back, letters.parse().unwrap_or(back.returned_cum));
    }
    window.values.settled_told();
    window.await_channel = false;
    let credited = window
        .balance
        .credit(generation, grant.granted_cum, grant.give);
    let _ = window.balance.take(credited);
    let mut is_denied = false;
    for (value, letter) in asked.into_iter().zip(letters.chars()) {
        match letter {
            'N' if wanted.contains(&value) => window.values.set_marked(value, mark),
            'N' => window.values.leave(value, mark),
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
                let told = proof.map(|proof| Told::Denied {
                    proof,
                    notices,
                    generation,
                });
                let broken = mutant::is(Mutant::DeniedValueCounts).then_some(Told::Counted);
                if let Some(told) = broken.or(told) {
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
