//! The functions of token buckets: `bucket_open`, `bucket_take`.

use std::collections::{BTreeMap, VecDeque};

use quota_core::{
    FunctionCall, FunctionReply, UNITS_MAX,
    mutant::{self, Mutant},
};

use super::{Redis, err, err_with, number, ok};

/// A slice is over this long after it was asked for, real µs.
const SLICE_US: u64 = 200_000;
/// Ends of slices are rounded up to this, µs.
const SLOT_US: u64 = 25_000;
/// What a server's wall clock shows at real 0, µs.
const EPOCH_US: i64 = 1_000_000_000_000;

/// A shard's marker, which carries its clocks.
#[derive(Clone, Debug)]
pub(super) struct Marker {
    generation: u64,
    fence: u64,
    is_first: bool,
    opened_us: u64,
    speed_milli: u64,
    at_us: i64,
    real_us: u64,
    ledger_us: u64,
    ledger_rest: u64,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    seq: u64,
    give: u64,
    level: u64,
    real_us: u64,
}

/// One bucket: `level + credit / interval` tokens.
#[derive(Clone, Debug)]
pub(super) struct TokenBucket {
    generation: u64,
    level: u64,
    credit: u64,
    rate: u64,
    interval: u64,
    burst: u64,
    ledger_us: u64,
    real_us: u64,
    ahead: VecDeque<(u64, u64)>,
    holders: BTreeMap<String, Answer>,
}

fn muldiv(a: u64, b: u64, c: u64) -> (u64, u64) {
    let product = u128::from(a) * u128::from(b);
    let (quotient, rest) = (product / u128::from(c), product % u128::from(c));
    match u64::try_from(quotient) {
        Ok(quotient) if quotient <= UNITS_MAX => (quotient, u64::try_from(rest).expect("below c")),
        _ => (UNITS_MAX, 0),
    }
}

impl TokenBucket {
    fn cap(&self) -> u64 {
        if mutant::is(Mutant::AheadUncapped) {
            return self.burst;
        }
        let ahead: u64 = self.ahead.iter().map(|(_, units)| units).sum();
        self.burst.saturating_sub(ahead)
    }

    fn refill(&mut self, elapsed_us: u64, cap: u64) {
        if self.level >= cap {
            (self.level, self.credit) = (cap, 0);
            return;
        }
        let (mut whole, mut rest) = muldiv(elapsed_us, self.rate, self.interval);
        rest += self.credit;
        if rest >= self.interval {
            (whole, rest) = (whole + 1, rest - self.interval);
        }
        if whole >= cap - self.level {
            (self.level, self.credit) = (cap, 0);
        } else {
            (self.level, self.credit) = (self.level + whole, rest);
        }
    }

    fn time_until(&self, need: u64) -> u64 {
        let missing = need.saturating_sub(self.level);
        if missing == 0 {
            return 0;
        }
        if self.rate == 0 {
            return UNITS_MAX;
        }
        let (whole, rest) = muldiv(missing, self.interval, self.rate);
        if whole == UNITS_MAX {
            return UNITS_MAX;
        }
        let more = (i128::from(rest) - i128::from(self.credit)).div_euclid(i128::from(self.rate));
        let is_exact = (i128::from(rest) - i128::from(self.credit)) % i128::from(self.rate) == 0;
        let wait = i128::from(whole) + more + i128::from(!is_exact);
        u64::try_from(wait.max(0)).expect("in range")
    }

    /// Moves it to now; time flows from end of slice to end of slice.
    fn advance(&mut self, marker: &Marker) {
        let span_real_us = marker.real_us - self.real_us;
        let span_ledger_us = marker.ledger_us - self.ledger_us;
        let mut flowed_us = 0;
        while let Some((ends_us, _)) = self.ahead.front().copied() {
            if ends_us > marker.real_us {
                break;
            }
            let mut until_us = span_ledger_us;
            if span_real_us > 0 {
                until_us = muldiv(
                    ends_us.saturating_sub(self.real_us),
                    span_ledger_us,
                    span_real_us,
                )
                .0;
            }
            let cap = self.cap();
            self.refill(until_us.saturating_sub(flowed_us), cap);
            flowed_us = flowed_us.max(until_us);
            self.ahead.pop_front();
        }
        let cap = self.cap();
        self.refill(span_ledger_us.saturating_sub(flowed_us), cap);
        (self.real_us, self.ledger_us) = (marker.real_us, marker.ledger_us);
    }

    fn retry_after_us(&self, marker: &Marker, need: u64) -> u64 {
        if need > self.burst {
            return UNITS_MAX;
        }
        let mut trial = self.clone();
        let mut waited_us = 0;
        for (ends_us, _) in &self.ahead {
            let ends_in_us = muldiv(ends_us - marker.real_us, marker.speed_milli, 1_000).0 + 1;
            let horizon_us = ends_in_us.max(waited_us);
            let cap = trial.cap();
            if need <= cap {
                let wait_us = trial.time_until(need);
                if waited_us + wait_us <= horizon_us {
                    return waited_us + wait_us;
                }
            }
            trial.refill(horizon_us - waited_us, cap);
            waited_us = horizon_us;
            trial.ahead.pop_front();
        }
        UNITS_MAX.min(waited_us + trial.time_until(need))
    }

    fn lend_ahead(&mut self, marker: &Marker, units: u64) {
        if units == 0 {
            return;
        }
        let ends_us = (marker.real_us + SLICE_US).div_ceil(SLOT_US) * SLOT_US;
        match self.ahead.back_mut() {
            Some((last_us, lent)) if *last_us == ends_us => *lent += units,
            _ => self.ahead.push_back((ends_us, units)),
        }
    }
}

impl TokenBucket {
    /// For traces.
    pub(super) fn state(&self) -> String {
        let ahead: Vec<String> = self
            .ahead
            .iter()
            .map(|(ends_us, units)| format!("{ends_us}:{units}"))
            .collect();
        format!(
            "{{\"generation\":{},\"level\":{},\"credit\":{},\"rate\":{},\"interval\":{},\"ledger_us\":{},\"real_us\":{},\"ahead\":\"{}\"}}",
            self.generation,
            self.level,
            self.credit,
            self.rate,
            self.interval,
            self.ledger_us,
            self.real_us,
            ahead.join(";")
        )
    }
}

impl Marker {
    /// For traces.
    pub(super) fn state(&self) -> String {
        format!(
            "{{\"generation\":{},\"history\":{},\"first\":{},\"opened_us\":{},\"speed\":{},\"real_us\":{},\"ledger_us\":{},\"ledger_rest\":{}}}",
            self.generation,
            self.fence,
            u8::from(self.is_first),
            self.opened_us,
            self.speed_milli,
            self.real_us,
            self.ledger_us,
            self.ledger_rest
        )
    }

    /// Moves its clocks; a wall clock that goes back only moves the base.
    fn advance(&mut self, now_us: i64) {
        let mut elapsed_us = u64::try_from(now_us - self.at_us).unwrap_or(0);
        if mutant::is(Mutant::BackwardClockMints) {
            elapsed_us = (now_us - self.at_us).unsigned_abs();
        }
        let moved_milli =
            u128::from(elapsed_us) * u128::from(self.speed_milli) + u128::from(self.ledger_rest);
        self.at_us = now_us;
        self.real_us += elapsed_us;
        self.ledger_us += u64::try_from(moved_milli / 1_000).expect("in range");
        self.ledger_rest = u64::try_from(moved_milli % 1_000).expect("in range");
    }
}

impl Redis {
    /// What a server's wall clock shows, µs.
    #[must_use]
    pub fn wall_us(&self, server: usize, real_us: u64) -> i64 {
        EPOCH_US + i64::try_from(real_us).expect("in range") + self.servers[server].clock_us
    }

    pub(super) fn bucket_open(
        &mut self,
        server: usize,
        call: &FunctionCall,
        real_us: u64,
    ) -> FunctionReply {
        let generation = number(call, 0);
        let (opened_us, speed_milli) = (number(call, 1), number(call, 2));
        let at_us = self.wall_us(server, real_us);
        let fence = self.servers[server].fence();
        let markers = &mut self.servers[server].data.markers;
        if let Some(marker) = markers.get(&call.keys[0])
            && marker.generation >= generation
        {
            return err_with("OLD_GENERATION", marker.generation);
        }
        let marker = Marker {
            generation,
            fence,
            is_first: number(call, 3) == 1 || mutant::is(Mutant::LostBucketIsFull),
            opened_us,
            speed_milli,
            at_us,
            real_us: 0,
            ledger_us: opened_us,
            ledger_rest: 0,
        };
        markers.insert(call.keys[0].clone(), marker);
        self.publish(server, &call.arguments[4]);
        ok(&[])
    }

    pub(super) fn bucket_take(
        &mut self,
        server: usize,
        call: &FunctionCall,
        real_us: u64,
    ) -> FunctionReply {
        let (generation, seq, need, want) = (
            number(call, 0),
            number(call, 2),
            number(call, 3),
            number(call, 4),
        );
        let now_us = self.wall_us(server, real_us);
        let fence = self.servers[server].fence();
        let data = &mut self.servers[server].data;
        let Some(stored) = data.markers.get(&call.keys[0]) else {
            return err("NO_POOL");
        };
        if stored.generation != generation {
            return err_with("GENERATION", stored.generation);
        }
        if stored.fence != fence && !mutant::is(Mutant::FenceUnchecked) {
            return err("FENCE");
        }
        let mut marker = stored.clone();
        marker.advance(now_us);
        let mut bucket = read_bucket(data.buckets.get(&call.keys[1]), call, &marker);
        if let Some(answer) = bucket.holders.get(&call.arguments[1]) {
            if seq < answer.seq {
                return err_with("SEQ", answer.seq);
            }
            let lasts = marker.real_us - answer.real_us < SLICE_US;
            let is_repeat = seq == answer.seq && answer.give != 0 && lasts;
            if is_repeat && !mutant::is(Mutant::RepeatGrantsAgain) {
                return ok(&[answer.give, answer.level, 0]);
            }
        }
        let (mut give, mut retry_us) = (0, 0);
        if bucket.level >= need {
            let ahead = want.saturating_sub(need).min((bucket.level - need) / 2);
            give = need + ahead;
            bucket.level -= give;
            bucket.lend_ahead(&marker, ahead);
        } else {
            retry_us = bucket.retry_after_us(&marker, need);
        }
        let answer = Answer {
            seq,
            give,
            level: bucket.level,
            real_us: marker.real_us,
        };
        bucket.holders.insert(call.arguments[1].clone(), answer);
        data.markers.insert(call.keys[0].clone(), marker);
        data.buckets.insert(call.keys[1].clone(), bucket);
        ok(&[give, answer.level, retry_us])
    }
}

fn read_bucket(stored: Option<&TokenBucket>, call: &FunctionCall, marker: &Marker) -> TokenBucket {
    let (generation, rate, interval, burst) = (
        number(call, 0),
        number(call, 5),
        number(call, 6),
        number(call, 7),
    );
    if let Some(stored) = stored.filter(|stored| stored.generation == generation) {
        let mut bucket = stored.clone();
        bucket.burst = burst;
        // What has flowed until now flowed at the rate that was in force.
        bucket.advance(marker);
        if bucket.interval != interval {
            bucket.credit = 0;
        }
        (bucket.rate, bucket.interval) = (rate, interval);
        return bucket;
    }
    let mut bucket = TokenBucket {
        generation,
        level: burst,
        credit: 0,
        rate,
        interval,
        burst,
        ledger_us: marker.ledger_us,
        real_us: marker.real_us,
        ahead: VecDeque::new(),
        holders: BTreeMap::new(),
    };
    if !marker.is_first {
        bucket.level = 0;
        bucket.refill(marker.ledger_us - marker.opened_us, burst);
    }
    bucket
}
