//! The functions of the pools and token buckets, after their contract. One server, which may lose what it has.

use std::collections::BTreeMap;

use quota_core::{FunctionCall, FunctionReply};

#[derive(Clone, Debug, Default)]
struct Seat {
    seq: u64,
    granted: u64,
    returned: u64,
    give: u64,
}

#[derive(Clone, Debug)]
struct Pool {
    generation: u64,
    fence: u64,
    total: u64,
    granted: u64,
    returned: u64,
    seq: u64,
    is_final: bool,
    is_closed: bool,
    wanted: u64,
    version: u64,
    seats: BTreeMap<String, Seat>,
}

impl Pool {
    fn free(&self) -> u64 {
        self.total + self.returned - self.granted
    }
}

#[derive(Clone, Debug)]
struct Marker {
    generation: u64,
    fence: u64,
    opened_us: i64,
    is_first: bool,
}

/// Tokens are counted in units × interval, so that nothing is minted by rounding.
#[derive(Clone, Debug)]
struct TokenBucket {
    generation: u64,
    level: i128,
    at_us: i64,
    ahead: Vec<(u64, u64)>,
}

#[derive(Clone, Debug, Default)]
struct Data {
    pools: BTreeMap<String, Pool>,
    markers: BTreeMap<String, Marker>,
    buckets: BTreeMap<String, TokenBucket>,
}

/// A server.
#[derive(Debug, Default)]
pub struct Redis {
    data: Data,
    kept: Data,
    fence: u64,
    /// Notices published since they were last taken.
    pub notices: Vec<String>,
}

fn reply(parts: &[String]) -> FunctionReply {
    FunctionReply::Elements(parts.iter().map(|part| part.as_str().into()).collect())
}

fn err(parts: &[&str]) -> FunctionReply {
    let mut all = vec!["ERR".to_owned()];
    all.extend(parts.iter().map(|part| (*part).to_owned()));
    reply(&all)
}

impl Redis {
    /// Loses everything.
    pub fn flush(&mut self) {
        self.data = Data::default();
        self.fence += 1;
    }

    /// Remembers the present as what a replica has.
    pub fn replicate(&mut self) {
        self.kept = self.data.clone();
    }

    /// Promotes the replica: whatever came after `replicate` is lost, and the history has another name.
    pub fn fail_over(&mut self) {
        self.data = self.kept.clone();
        self.fence += 1;
    }

    /// `pool_open`.
    pub fn pool_open(&mut self, key: &str, generation: u64) -> bool {
        if self
            .data
            .pools
            .get(key)
            .is_some_and(|pool| pool.generation >= generation)
        {
            return false;
        }
        let pool = Pool {
            generation,
            fence: self.fence,
            total: 0,
            granted: 0,
            returned: 0,
            seq: 0,
            is_final: false,
            is_closed: false,
            wanted: 0,
            version: 0,
            seats: BTreeMap::new(),
        };
        self.data.pools.insert(key.to_owned(), pool);
        true
    }

    /// `pool_extend`.
    pub fn pool_extend(
        &mut self,
        key: &str,
        generation: u64,
        total: u64,
        version: u64,
        is_final: bool,
        channel: &str,
    ) {
        let fence = self.fence;
        let Some(pool) = self.data.pools.get_mut(key) else {
            return;
        };
        if pool.generation != generation || pool.fence != fence || pool.is_closed {
            return;
        }
        let is_newest = version > pool.version || (version == pool.version && total >= pool.total);
        let was_final = pool.is_final;
        if is_newest {
            pool.is_final = is_final;
        }
        pool.total = pool.total.max(total);
        pool.version = pool.version.max(version);
        if (was_final && !pool.is_final) || (pool.wanted > 0 && pool.free() >= pool.wanted) {
            self.notices.push(channel.to_owned());
            pool.wanted = 0;
        }
    }

    /// `pool_close`.
    pub fn pool_close(&mut self, key: &str, generation: u64, channel: &str) {
        if let Some(pool) = self
            .data
            .pools
            .get_mut(key)
            .filter(|pool| pool.generation == generation)
        {
            pool.is_closed = true;
            self.notices.push(channel.to_owned());
        }
    }

    /// `bucket_open`.
    pub fn bucket_open(&mut self, key: &str, generation: u64, ledger_us: i64, is_first: bool) {
        let marker = Marker {
            generation,
            fence: self.fence,
            opened_us: ledger_us,
            is_first,
        };
        self.data.markers.insert(key.to_owned(), marker);
    }

    /// Free units of all pools of this name's generation, for reckoning.
    pub fn pool_free(&self, key: &str) -> u64 {
        self.data.pools.get(key).map_or(0, Pool::free)
    }

    /// Runs one call.
    pub fn run(&mut self, call: &FunctionCall, ledger_us: i64, real_us: u64) -> FunctionReply {
        match call.function {
            "lease_grant" => self.lease_grant(call),
            "bucket_take" => self.bucket_take(call, ledger_us, real_us),
            other => FunctionReply::Error(format!("ERR no function {other}").into()),
        }
    }

    fn lease_grant(&mut self, call: &FunctionCall) -> FunctionReply {
        let argument = |place: usize| call.arguments[place].parse::<u64>().expect("a number");
        let (generation, seq, need, want) = (argument(0), argument(2), argument(3), argument(4));
        let (returned_cum, consumed_cum, witness) = (argument(5), argument(6), argument(8));
        let (holder, channel) = (call.arguments[1].clone(), call.arguments[10].clone());
        let fence = self.fence;
        let Some(pool) = self.data.pools.get_mut(&*call.keys[0]) else {
            return err(&["NO_POOL"]);
        };
        if pool.generation != generation {
            return err(&["GENERATION", &pool.generation.to_string()]);
        }
        if pool.fence != fence {
            return err(&["FENCE"]);
        }
        if pool.seq < witness {
            return err(&["ROLLBACK", &pool.seq.to_string()]);
        }
        let seats = pool.seats.len() as u64;
        let known = pool.seats.contains_key(&holder);
        let mut seat = pool.seats.get(&holder).cloned().unwrap_or_default();
        if known && seq == seat.seq {
            if seat.give == 0 && pool.free() < need && (pool.wanted == 0 || need < pool.wanted) {
                pool.wanted = need;
            }
            return Self::granted(&seat, pool, seats);
        }
        if pool.is_closed {
            return err(&["CLOSED"]);
        }
        if seq != seat.seq + 1 {
            return err(&["SEQ", &seat.seq.to_string()]);
        }
        if returned_cum < seat.returned || consumed_cum + returned_cum > seat.granted {
            return err(&["RETURN_RANGE"]);
        }
        pool.returned += returned_cum - seat.returned;
        seat.returned = returned_cum;
        let holders = seats + u64::from(!known);
        let free = pool.free();
        seat.give = match () {
            () if free < need => 0,
            () if free * 10 < pool.total => need,
            () => need.max(want.min(free / (2 * holders))),
        };
        seat.seq = seq;
        seat.granted += seat.give;
        pool.granted += seat.give;
        pool.seq += 1;
        if pool.wanted > 0 && pool.free() >= pool.wanted {
            self.notices.push(channel);
            pool.wanted = 0;
        }
        if seat.give == 0 && pool.free() < need && (pool.wanted == 0 || need < pool.wanted) {
            pool.wanted = need;
        }
        pool.seats.insert(holder, seat.clone());
        assert!(pool.granted <= pool.total + pool.returned, "I2");
        Self::granted(&seat, pool, holders)
    }

    fn granted(seat: &Seat, pool: &Pool, holders: u64) -> FunctionReply {
        let mut parts = vec!["OK".to_owned()];
        let numbers = [
            seat.give,
            seat.granted,
            pool.seq,
            pool.free(),
            u64::from(pool.is_final),
            pool.total,
            holders,
        ];
        parts.extend(numbers.iter().map(u64::to_string));
        reply(&parts)
    }

    fn bucket_take(&mut self, call: &FunctionCall, ledger_us: i64, real_us: u64) -> FunctionReply {
        let argument = |place: usize| call.arguments[place].parse::<u64>().expect("a number");
        let (generation, need, want) = (argument(0), argument(3), argument(4));
        let (rate, interval, burst) = (
            i128::from(argument(5)),
            i128::from(argument(6)),
            i128::from(argument(7)),
        );
        let Some(marker) = self.data.markers.get(&*call.keys[0]) else {
            return err(&["NO_POOL"]);
        };
        if marker.generation != generation {
            return err(&["GENERATION", &marker.generation.to_string()]);
        }
        if marker.fence != self.fence {
            return err(&["FENCE"]);
        }
        let age = i128::from(ledger_us - marker.opened_us);
        let first_level = if marker.is_first {
            burst * interval
        } else {
            (age * rate).min(burst * interval)
        };
        let fresh = TokenBucket {
            generation,
            level: first_level,
            at_us: ledger_us,
            ahead: Vec::new(),
        };
        let name = call.keys[1].to_string();
        let bucket = self
            .data
            .buckets
            .entry(name)
            .or_insert_with(|| fresh.clone());
        if bucket.generation != generation {
            *bucket = fresh;
        }
        bucket.ahead.retain(|(ends_us, _)| real_us < *ends_us);
        let ahead: u64 = bucket.ahead.iter().map(|(_, units)| units).sum();
        let flow = i128::from((ledger_us - bucket.at_us).max(0)) * rate;
        let cap = (burst - i128::from(ahead)) * interval;
        bucket.level = bucket.level.max((bucket.level + flow).min(cap));
        bucket.at_us = bucket.at_us.max(ledger_us);
        let whole = u64::try_from(bucket.level / interval).expect("a level");
        let (mut give, mut retry) = (0, 0);
        if whole >= need {
            let extra = want.saturating_sub(need).min((whole - need) / 2);
            give = need + extra;
            bucket.level -= i128::from(give) * interval;
            bucket.ahead.push((real_us + 200_000, extra));
        } else {
            let lacks = i128::from(need) * interval - bucket.level;
            retry = if rate == 0 {
                i128::from(quota_core::UNITS_MAX)
            } else {
                (lacks + rate - 1) / rate
            };
        }
        let level = bucket.level / interval;
        reply(&[
            "OK".to_owned(),
            give.to_string(),
            level.to_string(),
            retry.to_string(),
        ])
    }
}
