//! A token bucket as this process knows it: slices that it holds and what the shard last said.

use std::sync::Arc;

use crate::{bucket::demand::Demand, proof::Sent, request::Units, time::Now};

/// A slice is over so long after it was asked for, real µs.
pub(crate) const SLICE_US: u64 = 200_000;

/// Figures older than this are asked for again before they are shown, real µs.
const FIGURES_US: u64 = 200_000;

#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    units: Units,
    ends_us: u64,
}

/// The shard said no.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Denial {
    need: Units,
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
    fn tokens_in(&self, span_us: i64) -> Units {
        let flow = i128::from(span_us.max(0)).saturating_mul(i128::from(self.units));
        let tokens = flow.checked_div(i128::from(self.interval_us)).unwrap_or(0);
        Units::try_from(tokens).unwrap_or(Units::MAX)
    }
}

/// Where a limit's buckets live.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    /// Of the marker.
    pub(crate) generation: u64,
    /// Redis key of the marker.
    pub(crate) marker_key: Arc<str>,
    /// Prefix of the bucket keys.
    pub(crate) bucket_prefix: Arc<str>,
}

/// A token bucket as this process knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    slices: [Slice; 2],
    /// Last request sent.
    pub(crate) request_seq: u64,
    /// Request under way.
    pub(crate) flight: Option<Sent>,
    /// (tokens in the shard, ledger time, real time) as last heard.
    level: Option<(Units, i64, u64)>,
    denial: Option<Denial>,
    /// Sizes slices.
    pub(crate) demand: Demand,
    /// Units admitted beyond the limit.
    pub(crate) over: Units,
}

impl Tokens {
    /// Units in slices that are not over.
    pub(crate) fn free(&self, real_us: u64) -> Units {
        let live = self.slices.iter().filter(|slice| real_us < slice.ends_us);
        live.fold(0, |sum: Units, slice| sum.saturating_add(slice.units))
    }

    /// Spends units of the slice that ends first; the caller has seen that they are there.
    pub(crate) fn take(&mut self, units: Units, real_us: u64) -> bool {
        if self.free(real_us) < units {
            return false;
        }
        let mut rest = units;
        for slice in self
            .slices
            .iter_mut()
            .filter(|slice| real_us < slice.ends_us)
        {
            let part = rest.min(slice.units);
            slice.units = slice.units.saturating_sub(part);
            rest = rest.saturating_sub(part);
        }
        self.demand.taken = self.demand.taken.saturating_add(units);
        true
    }

    /// Takes in a slice that was asked for at `sent`.
    pub(crate) fn credit(&mut self, sent: &Sent, give: Units, level: Units, now: Now) {
        let ends_us = sent.real_us.saturating_add(SLICE_US);
        self.level = Some((level, now.ledger_us, now.real_us));
        if give == 0 {
            return;
        }
        self.denial = None;
        if now.real_us >= ends_us {
            return;
        }
        let [first, second] = self.slices;
        // The one that ends first stays in front; where both are alive the older is dropped, as a slice may always be.
        let kept = if now.real_us < second.ends_us && second.units > 0 {
            second
        } else {
            first
        };
        self.slices = [
            kept,
            Slice {
                units: give,
                ends_us,
            },
        ];
    }

    /// Takes in a refusal: it stands until so much ledger time after it was asked for.
    pub(crate) fn deny(&mut self, sent: &Sent, retry_after_us: i64) {
        self.denial = Some(Denial {
            need: sent.need,
            until_us: sent.ledger_us.saturating_add(retry_after_us),
        });
    }

    /// Forgets what was proved and held, because rate or burst changed.
    pub(crate) fn forget(&mut self) {
        self.denial = None;
        self.slices = [Slice::default(); 2];
    }

    /// Ledger µs until a call that lacks `missing` would pass, where that is proved to be later than now.
    pub(crate) fn denied_for(
        &self,
        missing: Units,
        refill: &Refill,
        ledger_us: i64,
    ) -> Option<i64> {
        let denial = self
            .denial
            .filter(|denial| missing >= denial.need && ledger_us < denial.until_us)?;
        let more = missing.saturating_sub(denial.need);
        let extra = if more == 0 { 0 } else { refill.time_for(more) };
        Some(
            denial
                .until_us
                .saturating_sub(ledger_us)
                .saturating_add(extra),
        )
    }

    /// Tokens that a call could take now, as far as is known.
    pub(crate) fn remaining(&self, refill: &Refill, now: Now) -> Units {
        let in_shard = self.level.map_or(refill.burst, |(level, at_us, _)| {
            level.saturating_add(refill.tokens_in(now.ledger_us.saturating_sub(at_us)))
        });
        in_shard
            .saturating_add(self.free(now.real_us))
            .min(refill.burst)
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
