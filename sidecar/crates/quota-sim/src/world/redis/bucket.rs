//! The functions of token buckets: `bucket_open`, `bucket_take`, `bucket_give`, `bucket_share`.

use std::collections::{BTreeMap, VecDeque};

use quota_core::{
    FunctionCall, FunctionReply, UNITS_MAX,
    mutant::{self, Mutant},
};

use super::{Redis, err, err_with, number, ok, pool::holder_of};
use crate::world::fact::Fact;

/// A slice is over this long after it was asked for, real µs.
const SLICE_US: u64 = 200_000;
/// Ends of slices are rounded up to this, µs.
const SLOT_US: u64 = 25_000;
/// So many low points of the room above a level are told apart.
const PEAKS_MAX: usize = 8;
/// A shard's clock may be this far ahead of a caller's, µs of either time.
const CLOCK_MARGIN_US: u64 = 1_000_000;
/// Of the rate, for all holders that are cut off.
const SHARES_PPM: u64 = 20_000;
/// After so long a share is given to others, µs.
const SHARE_FORGET_US: u64 = 660_000_000;
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
    shares: BTreeMap<String, Share>,
}

#[derive(Clone, Copy, Debug)]
struct Share {
    seq: u64,
    ppm: u64,
    real_us: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Taker {
    seq: u64,
    give: u64,
    level: u64,
    op: u64,
    open: u64,
    give_seq: u64,
    gave: u64,
    real_us: u64,
}

#[derive(Clone, Copy, Debug)]
struct Peak {
    op: u64,
    room: u64,
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
    op: u64,
    peaks: Vec<Peak>,
    holders: BTreeMap<String, Taker>,
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

    fn room(&self) -> u64 {
        self.cap()
            .saturating_sub(self.level)
            .saturating_sub(u64::from(self.credit > 0))
    }

    /// Notes the least room above the level since each of the last calls.
    fn note_room(&mut self) {
        let peak = Peak {
            op: self.op,
            room: self.room(),
        };
        push_peak(&mut self.peaks, peak);
        if self.peaks.len() > PEAKS_MAX {
            self.peaks[1].room = self.peaks[0].room;
            self.peaks.remove(0);
        }
    }

    /// What units taken at `op` are worth now: as many as would be left had they never been taken.
    fn regain(&mut self, op: u64, units: u64) -> u64 {
        let later = self.peaks.iter().filter(|peak| peak.op > op);
        let room = later.map(|peak| peak.room).min().unwrap_or(u64::MAX);
        let worth = if mutant::is(Mutant::ReturnOverflows) {
            units.min(self.room())
        } else {
            units.min(self.room()).min(room)
        };
        let mut peaks = Vec::new();
        for peak in &self.peaks {
            let used = if peak.op > op { worth } else { 0 };
            let room = peak.room.saturating_sub(used);
            push_peak(&mut peaks, Peak { room, ..*peak });
        }
        self.peaks = peaks;
        self.level += worth;
        self.note_room();
        worth
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
            self.note_room();
            flowed_us = flowed_us.max(until_us);
            self.ahead.pop_front();
        }
        let cap = self.cap();
        self.refill(span_ledger_us.saturating_sub(flowed_us), cap);
        self.note_room();
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

    /// Moves its clocks; a wall clock that goes back only moves the base, one that jumps ahead gets no further ahead of the
    /// caller's ledger time than a margin.
    fn advance(&mut self, now_us: i64, caller_us: u64) {
        let mut elapsed_us = u64::try_from(now_us - self.at_us).unwrap_or(0);
        if mutant::is(Mutant::BackwardClockMints) {
            elapsed_us = (now_us - self.at_us).unsigned_abs();
        }
        let is_unbounded =
            mutant::is(Mutant::ForwardClockMints) || mutant::is(Mutant::BackwardClockMints);
        if self.speed_milli > 0 && !is_unbounded {
            let margin_us = CLOCK_MARGIN_US + CLOCK_MARGIN_US * self.speed_milli / 1_000;
            let ahead_us = (caller_us + margin_us).saturating_sub(self.ledger_us);
            let (most_us, _) = muldiv(ahead_us, 1_000, self.speed_milli);
            if elapsed_us > most_us + CLOCK_MARGIN_US {
                (self.is_first, self.opened_us) = (false, self.ledger_us);
            }
            elapsed_us = elapsed_us.min(most_us);
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
            shares: BTreeMap::new(),
        };
        markers.insert(call.keys[0].clone(), marker);
        self.note(Fact::Began { real_us });
        self.publish(server, &call.arguments[4]);
        ok(&[])
    }

    /// The marker of a call with its clocks at now, or why there is none.
    fn live_marker(
        &self,
        server: usize,
        call: &FunctionCall,
        real_us: u64,
        caller_us: u64,
    ) -> Result<Marker, FunctionReply> {
        let generation = number(call, 0);
        let server_state = &self.servers[server];
        let Some(stored) = server_state.data.markers.get(&call.keys[0]) else {
            return Err(err("NO_POOL"));
        };
        if stored.generation != generation {
            return Err(err_with("GENERATION", stored.generation));
        }
        if stored.fence != server_state.fence() && !mutant::is(Mutant::FenceUnchecked) {
            return Err(err("FENCE"));
        }
        let mut marker = stored.clone();
        marker.advance(self.wall_us(server, real_us), caller_us);
        Ok(marker)
    }

    fn write_bucket(
        &mut self,
        server: usize,
        call: &FunctionCall,
        marker: Marker,
        bucket: TokenBucket,
    ) {
        let data = &mut self.servers[server].data;
        data.markers.insert(call.keys[0].clone(), marker);
        data.buckets.insert(call.keys[1].clone(), bucket);
    }

    pub(super) fn bucket_take(
        &mut self,
        server: usize,
        call: &FunctionCall,
        real_us: u64,
    ) -> FunctionReply {
        let (seq, need, want) = (number(call, 2), number(call, 3), number(call, 4));
        let marker = match self.live_marker(server, call, real_us, number(call, 8)) {
            Ok(marker) => marker,
            Err(refusal) => return refusal,
        };
        let stored = self.servers[server].data.buckets.get(&call.keys[1]);
        let mut bucket = read_bucket(stored, call, &marker);
        let holder = &call.arguments[1];
        let known = bucket.holders.get(holder).copied();
        if let Some(taker) = known {
            if seq < taker.seq {
                return err_with("SEQ", taker.seq);
            }
            let lasts = marker.real_us - taker.real_us < SLICE_US;
            let is_repeat = seq == taker.seq && taker.give != 0 && lasts;
            if is_repeat {
                return ok(&[taker.give, taker.level, 0, taker.op]);
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
        let taker = known.unwrap_or_default();
        let taker = Taker {
            seq,
            give,
            level: bucket.level,
            op: bucket.op,
            real_us: marker.real_us,
            open: UNITS_MAX.min(taker.open + give),
            ..taker
        };
        bucket.holders.insert(holder.clone(), taker);
        self.write_bucket(server, call, marker, bucket);
        self.note(Fact::Took {
            holder: holder_of(&call.arguments[1]),
            need,
            give,
            rate: number(call, 5),
            real_us,
        });
        ok(&[give, taker.level, retry_us, taker.op])
    }

    pub(super) fn bucket_give(
        &mut self,
        server: usize,
        call: &FunctionCall,
        real_us: u64,
    ) -> FunctionReply {
        let (give_seq, units, op) = (number(call, 2), number(call, 3), number(call, 4));
        let marker = match self.live_marker(server, call, real_us, number(call, 8)) {
            Ok(marker) => marker,
            Err(refusal) => return refusal,
        };
        let stored = self.servers[server].data.buckets.get(&call.keys[1]);
        let mut bucket = read_bucket(stored, call, &marker);
        let Some(mut taker) = bucket.holders.get(&call.arguments[1]).copied() else {
            return ok(&[0, bucket.level]);
        };
        if give_seq < taker.give_seq {
            return err_with("SEQ", taker.give_seq);
        }
        if give_seq > taker.give_seq {
            let most = units.min(taker.open);
            taker.give_seq = give_seq;
            taker.gave = bucket.regain(op, most);
            taker.open -= most;
            bucket.holders.insert(call.arguments[1].clone(), taker);
            let level = bucket.level;
            self.write_bucket(server, call, marker, bucket);
            self.note(Fact::Gave {
                holder: holder_of(&call.arguments[1]),
                units: most,
                rate: number(call, 5),
                real_us,
            });
            return ok(&[taker.gave, level]);
        }
        ok(&[taker.gave, bucket.level])
    }

    pub(super) fn bucket_share(
        &mut self,
        server: usize,
        call: &FunctionCall,
        real_us: u64,
    ) -> FunctionReply {
        let (seq, held) = (number(call, 2), number(call, 3));
        let holder = call.arguments[1].clone();
        let mut marker = match self.live_marker(server, call, real_us, number(call, 4)) {
            Ok(marker) => marker,
            Err(refusal) => return refusal,
        };
        let waits = !marker.is_first && marker.real_us < SHARE_FORGET_US;
        if waits {
            let data = &mut self.servers[server].data;
            data.markers.insert(call.keys[0].clone(), marker);
            return ok(&[0]);
        }
        let own = marker.shares.get(&holder).copied();
        if own.is_some_and(|own| seq <= own.seq) {
            let last = own.map_or(0, |own| own.seq);
            let data = &mut self.servers[server].data;
            data.markers.insert(call.keys[0].clone(), marker);
            return err_with("SEQ", last);
        }
        marker.shares.remove(&holder);
        let now_us = marker.real_us;
        marker
            .shares
            .retain(|_, share| now_us.saturating_sub(share.real_us) <= SHARE_FORGET_US);
        let others: u64 = marker.shares.values().map(|share| share.ppm).sum();
        let holders = marker.shares.len() as u64 + 1;
        let part = (SHARES_PPM / holders).min(SHARES_PPM.saturating_sub(others));
        let part = if mutant::is(Mutant::ShareOfEach) {
            SHARES_PPM
        } else {
            part
        };
        let share = Share {
            seq,
            ppm: part.max(held),
            real_us: now_us,
        };
        marker.shares.insert(holder, share);
        let data = &mut self.servers[server].data;
        data.markers.insert(call.keys[0].clone(), marker);
        ok(&[part])
    }
}

fn push_peak(peaks: &mut Vec<Peak>, peak: Peak) {
    while peaks.last().is_some_and(|last| last.room >= peak.room) {
        peaks.pop();
    }
    peaks.push(peak);
}

/// Reads a bucket and moves it to now.
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
        bucket.op = bucket.op.max(marker.real_us) + 1;
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
        op: marker.real_us + 1,
        peaks: Vec::new(),
        holders: BTreeMap::new(),
    };
    if !marker.is_first {
        bucket.level = 0;
        bucket.refill(marker.ledger_us - marker.opened_us, burst);
    }
    let op = bucket.op;
    bucket.peaks.push(Peak { op, room: 0 });
    bucket
}
