//! How much to ask for: about one real second of what is used, reached by doubling and doubling again.

use crate::request::Units;

/// A lease should last so long, real µs.
const AIM_US: u64 = 1_000_000;
/// Shortest time over which use is measured, real µs.
const SPAN_MIN_US: u64 = 1_000;
/// A want is at most so many times the one before.
const GROWTH: Units = 4;

/// Use since the last ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Demand {
    /// Units used since `asked_us`.
    pub(crate) taken: Units,
    /// Real time of the last ask.
    pub(crate) asked_us: u64,
    /// Units wanted then.
    pub(crate) want: Units,
}

impl Demand {
    /// What to want in an ask that must bring `need`, for use over `aim_us`, and notes that it was asked.
    fn next(&mut self, now_us: u64, need: Units, aim_us: u64) -> Units {
        let span_us = now_us.saturating_sub(self.asked_us).max(SPAN_MIN_US);
        let used = u128::from(self.taken)
            .saturating_mul(u128::from(aim_us))
            .checked_div(u128::from(span_us));
        let target = Units::try_from(used.unwrap_or(0)).unwrap_or(Units::MAX);
        self.want = target
            .min(self.want.max(need).saturating_mul(GROWTH))
            .max(need);
        self.taken = 0;
        self.asked_us = now_us;
        self.want
    }

    /// What to want of a window.
    pub(crate) fn window(&mut self, now_us: u64, need: Units) -> Units {
        self.next(now_us, need, AIM_US)
    }

    /// What to want of a token bucket: a slice is over soon, so it asks for less time than that.
    pub(crate) fn slice(&mut self, now_us: u64, need: Units) -> Units {
        self.next(now_us, need, 150_000)
    }
}
