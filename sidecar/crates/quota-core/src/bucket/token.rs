//! A token bucket as this process knows it: slices that it holds and what the shard last said.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, VecDeque},
};

use crate::{
    bucket::{
        demand::Demand,
        saved::{MILLION, Saved},
    },
    id::ReservationId,
    mutant::{self, Mutant},
    proof::Sent,
    request::{UNITS_MAX, Units},
    time::Now,
};

/// A slice is over so long after it was asked for, real µs.
pub(crate) const SLICE_US: u64 = 200_000;

/// Figures older than this are asked for again before they are shown, real µs.
const FIGURES_US: u64 = 200_000;

/// A shard that was heard of within this time is not asked again for the sake of a better time alone, real µs.
const ROUGH_US: u64 = 50_000;

/// Slices held at once; where there are more, two end with the earlier of them.
const SLICES: usize = 4;
/// Calls of the shard whose units were spent and may yet be given back; older ones would have come again by now.
const RECENT: usize = 8;

/// Which call of a shard's generation took units; of several, the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Origin {
    /// The generation.
    pub(crate) generation: u64,
    /// The call's name there.
    pub(crate) op: u64,
}

impl Origin {
    /// The earlier of two. Units of an older generation have no place to go back to.
    fn with(self, other: Self) -> Self {
        match self.generation.cmp(&other.generation) {
            Ordering::Equal => Self {
                generation: self.generation,
                op: self.op.min(other.op),
            },
            Ordering::Greater => self,
            Ordering::Less => other,
        }
    }
}

/// Units and the call that took them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Lot {
    /// How many.
    pub(crate) units: Units,
    /// Who took them.
    pub(crate) origin: Origin,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    lot: Lot,
    ends_us: u64,
}

/// The shard said no.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Denial {
    need: Units,
    /// What was held here then, and that.
    cost: Units,
    until_us: i64,
}

/// What refills a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refill {
    /// Tokens that come in an interval.
    pub(crate) units: Units,
    /// Ledger µs.
    pub(crate) interval_us: i64,
    /// Most tokens held.
    pub(crate) burst: Units,
}

impl Refill {
    /// Ledger µs until so many tokens have come.
    pub(crate) fn time_for(&self, tokens: Units) -> i64 {
        let spans = i128::from(tokens).saturating_mul(i128::from(self.interval_us));
        let rate = i128::from(self.units);
        let time = spans
            .saturating_add(rate.saturating_sub(1))
            .checked_div(rate);
        time.map_or(i64::MAX, |time| i64::try_from(time).unwrap_or(i64::MAX))
    }

    /// Tokens that come in so many ledger µs.
    pub(crate) fn tokens_in(&self, span_us: i64) -> Units {
        let flow = i128::from(span_us.max(0)).saturating_mul(i128::from(self.units));
        let tokens = flow.checked_div(i128::from(self.interval_us)).unwrap_or(0);
        Units::try_from(tokens).unwrap_or(Units::MAX)
    }
}

/// A token bucket as this process knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    /// In the order of their ends.
    slices: [Slice; SLICES],
    /// Units that open reservations hold.
    held: BTreeMap<ReservationId, Lot>,
    /// Units on their way back, not sent yet, by the call that took them.
    returning: VecDeque<Lot>,
    /// Last return sent.
    pub(crate) give_seq: u64,
    /// The return that is under way.
    pub(crate) giving: Option<Lot>,
    /// What was saved up of the standing share since the shard was heard.
    standing: Option<Saved>,
    /// Policy `open`: what may be admitted without an authority; `None` = all that ever may.
    uncovered: Option<Saved>,
    /// Tokens in an interval, as the shard was last asked with.
    pub(crate) asked_rate: Units,
    /// Last request sent.
    pub(crate) request_seq: u64,
    /// Request under way.
    pub(crate) flight: Option<Sent>,
    /// (tokens in the shard, ledger time, real time) as last heard.
    level: Option<(Units, i64, u64)>,
    denial: Option<Denial>,
    /// Tokens that the shard had left for those who wait on, as just heard; `None` where asking again brings a refusal.
    pub(crate) line: Option<Units>,
    /// Sizes slices.
    pub(crate) demand: Demand,
    /// Units admitted beyond the limit and not given back.
    pub(crate) over: Units,
    /// Units spent and not given back.
    pub(crate) spent: Units,
    /// Units spent lately, by the call that took them, newest last.
    recent: [Lot; RECENT],
}

impl Tokens {
    /// Units in slices that are not over.
    pub(crate) fn free(&self, real_us: u64) -> Units {
        let live = self.slices.iter().filter(|slice| real_us < slice.ends_us);
        live.fold(0, |sum: Units, slice| sum.saturating_add(slice.lot.units))
    }

    /// Takes units out of the slices that end first; `None`, and nothing changed, where they are not there.
    pub(crate) fn draw(&mut self, units: Units, real_us: u64) -> Option<Lot> {
        if self.free(real_us) < units {
            return None;
        }
        let mut drawn = Lot::default();
        for slice in self
            .slices
            .iter_mut()
            .filter(|slice| real_us < slice.ends_us)
        {
            let part = units.saturating_sub(drawn.units).min(slice.lot.units);
            if part == 0 {
                continue;
            }
            slice.lot.units = slice.lot.units.saturating_sub(part);
            drawn = Lot {
                units: drawn.units.saturating_add(part),
                origin: drawn.origin.with(slice.lot.origin),
            };
        }
        Some(drawn)
    }

    /// Spends units; `false`, and nothing changed, where they are not there.
    pub(crate) fn take(&mut self, units: Units, real_us: u64) -> bool {
        let Some(lot) = self.draw(units, real_us) else {
            return false;
        };
        self.remember(lot);
        self.demand.taken = self.demand.taken.saturating_add(units);
        true
    }

    /// Holds units for a reservation; `false`, and nothing changed, where they are not there.
    pub(crate) fn hold(&mut self, units: Units, id: ReservationId, real_us: u64) -> bool {
        let Some(lot) = self.draw(units, real_us) else {
            return false;
        };
        self.demand.taken = self.demand.taken.saturating_add(units);
        self.held.insert(id, lot);
        true
    }

    /// Ends what a reservation holds at what it used; the rest is on its way back. Answers the rest.
    pub(crate) fn settle(&mut self, id: ReservationId, used: Units) -> Units {
        let Some(lot) = self.held.remove(&id) else {
            return 0;
        };
        let rest = lot.units.saturating_sub(used);
        if mutant::is(Mutant::TokensReturnedAndKept) {
            let [.., last] = &mut self.slices;
            last.lot.units = last.lot.units.saturating_add(rest);
        }
        self.send_back(Lot { units: rest, ..lot });
        self.remember(Lot {
            units: lot.units.saturating_sub(rest),
            ..lot
        });
        rest
    }

    /// Notes that units were spent.
    fn remember(&mut self, lot: Lot) {
        if lot.units == 0 {
            return;
        }
        self.spent = self.spent.saturating_add(lot.units);
        let [.., last] = &mut self.recent;
        if last.origin == lot.origin {
            last.units = last.units.saturating_add(lot.units);
            return;
        }
        self.recent.rotate_left(1);
        let [.., last] = &mut self.recent;
        *last = lot;
    }

    /// Units that calls used here and did not give back.
    pub(crate) const fn used(&self) -> Units {
        self.spent.saturating_add(self.over)
    }

    /// Takes back units that calls used here: first those beyond the limit, then spent ones, newest first, which are on
    /// their way back to the bucket. What is not remembered any more is worth nothing: it would have come again.
    pub(crate) fn unspend(&mut self, units: Units) {
        let beyond = units.min(self.over);
        self.over = self.over.saturating_sub(beyond);
        let mut rest = units.saturating_sub(beyond).min(self.spent);
        if !mutant::is(Mutant::UnspendsTwice) {
            self.spent = self.spent.saturating_sub(rest);
        }
        let [.., newest] = self.recent;
        for place in (0..RECENT).rev() {
            let lot = self.recent[place];
            let part = rest.min(lot.units);
            if part == 0 || lot.origin.generation != newest.origin.generation {
                continue;
            }
            rest = rest.saturating_sub(part);
            if !mutant::is(Mutant::UnspendsTwice) {
                self.recent[place].units = lot.units.saturating_sub(part);
            }
            self.send_back(Lot { units: part, ..lot });
        }
    }

    /// Puts units on their way back. Those of several calls go one after the other: together they would be worth what the
    /// first of them is.
    pub(crate) fn send_back(&mut self, lot: Lot) {
        if lot.units == 0 {
            return;
        }
        let is_full = self.returning.len() >= RECENT;
        match self.returning.back_mut() {
            Some(last) if last.origin == lot.origin || is_full => {
                let is_same = last.origin.generation == lot.origin.generation;
                let waiting = if is_same { last.units } else { 0 };
                *last = Lot {
                    units: waiting.saturating_add(lot.units),
                    origin: last.origin.with(lot.origin),
                };
            }
            _ => self.returning.push_back(lot),
        }
    }

    /// Takes the next units that are to be sent back.
    pub(crate) fn next_returning(&mut self) -> Option<Lot> {
        self.returning.pop_front()
    }

    /// Takes in a slice that was asked for at `sent`; one that is over by now goes back.
    pub(crate) fn credit(&mut self, sent: &Sent, lot: Lot, level: Units, now: Now) {
        let ends_us = sent.real_us.saturating_add(SLICE_US);
        self.heard(level, now);
        if lot.units == 0 {
            return;
        }
        self.denial = None;
        if now.real_us >= ends_us {
            self.send_back(lot);
            return;
        }
        for slice in &mut self.slices {
            if slice.ends_us <= now.real_us || slice.lot.units == 0 {
                *slice = Slice::default();
            }
        }
        self.slices.sort_unstable_by_key(|slice| slice.ends_us);
        let [first, second, ..] = &mut self.slices;
        if first.lot.units > 0 {
            // All are in use: two of them end together, with the one that ends first.
            second.lot = Lot {
                units: second.lot.units.saturating_add(first.lot.units),
                origin: second.lot.origin.with(first.lot.origin),
            };
            second.ends_us = first.ends_us;
        }
        self.slices[0] = Slice { lot, ends_us };
        self.slices.sort_unstable_by_key(|slice| slice.ends_us);
    }

    /// Takes in how many tokens the shard has now.
    pub(crate) fn heard(&mut self, level: Units, now: Now) {
        self.level = Some((level, now.ledger_us, now.real_us));
        self.standing = Some(Saved::nothing(now.ledger_us, self.asked_rate));
    }

    /// Spends units of the standing share, which saves up from the moment at which the shard was heard last, up to the
    /// same part of the burst (one token at least). `false`, and nothing changed, where they are not there.
    pub(crate) fn take_standing(
        &mut self,
        units: Units,
        refill: &Refill,
        share_ppm: u64,
        ledger_us: i64,
        is_look: bool,
    ) -> bool {
        let Some(saved) = self.standing.filter(|_| share_ppm > 0) else {
            return false;
        };
        let burst = u128::from(refill.burst).saturating_mul(u128::from(share_ppm));
        let most = if mutant::is(Mutant::ShareUnbounded) {
            refill.burst
        } else {
            let most = burst.checked_div(u128::from(MILLION)).unwrap_or(0);
            Units::try_from(most).unwrap_or(0).max(1)
        };
        let left = saved.draw((units, most), refill, share_ppm, ledger_us);
        if left.is_some() && !is_look {
            self.standing = left;
        }
        left.is_some()
    }

    /// Admits units without cover as policy `open` does, as much as a bucket of the same kind would that was full at
    /// first. `false`, and nothing changed, where that is used up.
    pub(crate) fn take_uncovered(
        &mut self,
        units: Units,
        refill: &Refill,
        ledger_us: i64,
        is_look: bool,
    ) -> bool {
        let saved = self.uncovered.unwrap_or(Saved::all(refill.units));
        let left = saved.draw((units, refill.burst), refill, MILLION, ledger_us);
        if left.is_some() && !is_look {
            self.uncovered = left;
        }
        left.is_some()
    }

    /// Whether something would be lost by forgetting it: units that reservations hold, or that are on their way back.
    pub(crate) fn is_needed(&self) -> bool {
        !self.held.is_empty() || !self.returning.is_empty() || self.giving.is_some()
    }

    /// Whether a refusal still stands: forgotten, the next one would name a time later by a way to the shard.
    pub(crate) fn is_denying(&self, ledger_us: i64) -> bool {
        self.denial
            .is_some_and(|denial| ledger_us < denial.until_us)
    }

    /// Takes in a refusal: it stands for so much ledger time from now on. Counted from the answer, not from the request:
    /// who then asks again is not too early at the shard.
    pub(crate) fn deny(&mut self, sent: &Sent, retry_after_us: i64, now: Now) {
        self.denial = Some(Denial {
            need: sent.need,
            cost: sent.need.saturating_add(self.free(now.real_us)),
            until_us: now.ledger_us.saturating_add(retry_after_us),
        });
    }

    /// Takes in how many tokens a shard that gave some has left. Where they come faster than its answers, it gives some each
    /// time and never refuses: who waits at the end of the line would hear that nobody answered.
    pub(crate) fn line_up(&mut self, sent: &Sent, level: Units, refill: &Refill, now: Now) {
        let next_us = now.ledger_us.saturating_add(refill.time_for(1));
        let answer_us = now.real_us.saturating_sub(sent.real_us);
        let is_faster = now
            .real_us_until(next_us)
            .is_some_and(|pause_us| pause_us <= answer_us);
        self.line = is_faster.then_some(level);
    }

    /// Refuses a call that lacks so many units, for this moment: what the shard has and gets is for those before it in the
    /// line. `forgive` ends it.
    pub(crate) const fn refuse(&mut self, missing: Units, retry_after_us: i64, now: Now) {
        self.denial = Some(Denial {
            need: missing,
            cost: UNITS_MAX,
            until_us: now.ledger_us.saturating_add(retry_after_us),
        });
    }

    /// Forgets a refusal: units came back.
    pub(crate) const fn forgive(&mut self) {
        self.denial = None;
    }

    /// Forgets what was proved and held, because rate or burst changed.
    pub(crate) fn forget(&mut self) {
        self.denial = None;
        self.slices = [Slice::default(); SLICES];
    }

    /// Whether a refusal of fewer tokens is all that is known of so many, and that for a while: what lies in slices
    /// elsewhere holds a bucket back, so only the shard can say when a larger need is met.
    pub(crate) fn is_denial_rough(&self, units: Units, real_us: u64) -> bool {
        let is_other = self.denial.is_some_and(|denial| units > denial.cost);
        let heard_us = self.level.map_or(0, |(_, _, heard_us)| heard_us);
        is_other && real_us.saturating_sub(heard_us) >= ROUGH_US
    }

    /// Ledger µs until a call of this cost would pass if nobody else asked, where that is proved to be later than now.
    pub(crate) fn denied_for(&self, units: Units, refill: &Refill, now: Now) -> Option<i64> {
        let missing = units.saturating_sub(self.free(now.real_us));
        let denial = self.denial.filter(|denial| missing >= denial.need)?;
        let wait_for = |missing: Units| {
            let more = missing.saturating_sub(denial.need);
            let extra = if more == 0 { 0 } else { refill.time_for(more) };
            denial
                .until_us
                .saturating_sub(now.ledger_us)
                .saturating_add(extra)
        };
        let mut wait_us = wait_for(missing);
        // Slices that are held now may be over by then: what they hold is missing as well.
        for _ in 0..SLICES {
            let at_us = now.ledger_us.saturating_add(wait_us);
            let pause_us = now.real_us_until(at_us).unwrap_or(u64::MAX);
            let free_then = self.free(now.real_us.saturating_add(pause_us));
            let longer_us = wait_for(units.saturating_sub(free_then));
            if longer_us <= wait_us {
                break;
            }
            wait_us = longer_us;
        }
        // For a larger need it stands longer: tokens come no faster than the rate.
        (wait_us > 0).then_some(wait_us)
    }

    /// Whether the shard was heard of and refused nothing since.
    pub(crate) const fn gave_last(&self) -> bool {
        self.level.is_some() && self.denial.is_none()
    }

    /// Tokens that a call could take now, as far as is known.
    pub(crate) fn remaining(&self, refill: &Refill, now: Now) -> Units {
        self.in_shard(refill, now.ledger_us)
            .saturating_add(self.free(now.real_us))
            .min(refill.burst)
    }

    /// Tokens in the shard at a moment if nobody asks until then, as far as is known.
    pub(crate) fn in_shard(&self, refill: &Refill, at_us: i64) -> Units {
        let level = self.level.map_or(refill.burst, |(level, heard_us, _)| {
            level.saturating_add(refill.tokens_in(at_us.saturating_sub(heard_us)))
        });
        level.min(refill.burst)
    }

    /// Whether its figures are too old to be shown.
    pub(crate) fn is_stale(&self, real_us: u64) -> bool {
        self.level
            .is_none_or(|(_, _, heard_us)| real_us.saturating_sub(heard_us) >= FIGURES_US)
    }

    /// Ledger time of its figures.
    pub(crate) fn as_of_us(&self) -> Option<i64> {
        self.level.map(|(_, at_us, _)| at_us)
    }
}
