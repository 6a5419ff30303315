//! How much to ask for: some real seconds of what is used, reached by doubling and doubling again.

use crate::request::Units;

/// A lease should last so long, real µs. More is asked for when a third of it is used, so that at any moment there is
/// enough for 10 s without Redis.
pub(crate) const AIM_US: u64 = 15_000_000;
/// Shortest time over which use is measured, real µs.
const SPAN_MIN_US: u64 = 1_000;
/// Asks nearer to each other than this are one: what was used between them says too little, real µs.
const SPAN_US: u64 = 20_000;
/// A want is at most so many times the one before.
const GROWTH: Units = 4;

/// units × part ÷ whole.
fn scaled(units: Units, part: u64, whole: u64) -> Units {
    let product = u128::from(units).saturating_mul(u128::from(part));
    let share = product.checked_div(u128::from(whole)).unwrap_or(0);
    Units::try_from(share).unwrap_or(Units::MAX)
}

/// Use since the last ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Demand {
    /// Units used since `since_us`.
    pub(crate) taken: Units,
    /// Real time since which use is counted.
    pub(crate) since_us: u64,
    /// Units used in a real second, as measured last.
    pub(crate) per_second: Units,
    /// Units wanted then.
    pub(crate) want: Units,
}

impl Demand {
    /// What to want in an ask that must bring `need`, for use over `aim_us`, and notes that it was asked.
    fn next(&mut self, now_us: u64, need: Units, aim_us: u64) -> Units {
        let span_us = now_us.saturating_sub(self.since_us).max(SPAN_MIN_US);
        let measured = scaled(self.taken, 1_000_000, span_us);
        if span_us >= SPAN_US {
            (self.per_second, self.taken, self.since_us) = (measured, 0, now_us);
        } else {
            self.per_second = self.per_second.max(measured);
        }
        self.want = scaled(self.per_second, aim_us, 1_000_000)
            .min(self.want.max(need).saturating_mul(GROWTH))
            .max(need);
        self.want
    }

    /// What to want of a window that is on for so many real µs more.
    pub(crate) fn window(&mut self, now_us: u64, need: Units, left_us: u64) -> Units {
        self.next(now_us, need, AIM_US.min(left_us.max(SPAN_MIN_US)))
    }

    /// What to want of a token bucket: a slice is over soon, so it asks for less time than that.
    pub(crate) fn slice(&mut self, now_us: u64, need: Units) -> Units {
        self.next(now_us, need, 150_000)
    }
}
