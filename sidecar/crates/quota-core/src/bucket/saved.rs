//! What a token bucket saves up to be spent while no authority answers.

use crate::{bucket::token::Refill, request::Units};

/// Parts of a whole, in which shares are counted.
pub(crate) const MILLION: u64 = 1_000_000;

/// Tokens that a share of a rate brought since a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Saved {
    /// Ledger time at which there was nothing.
    bare_us: i64,
    /// Tokens in an interval from then on; 0 = nobody knew.
    rate: Units,
}

impl Saved {
    /// Nothing yet, at a rate.
    pub(crate) const fn nothing(ledger_us: i64, rate: Units) -> Self {
        Self {
            bare_us: ledger_us,
            rate,
        }
    }

    /// As much as can be.
    pub(crate) const fn all(rate: Units) -> Self {
        Self {
            bare_us: i64::MIN,
            rate,
        }
    }

    /// Takes `units` of what a share of the rate brought, `most` at most: what is left then, or `None` where there is less
    /// than that. A rate that was raised counts from now on: what came before it came no faster for that.
    pub(crate) fn draw(
        self,
        (units, most): (Units, Units),
        refill: &Refill,
        share_ppm: u64,
        ledger_us: i64,
    ) -> Option<Self> {
        let bare_us = self.bare_at(refill.units, ledger_us);
        let fills_us = time_for(refill, most, share_ppm);
        let since_us = bare_us.max(ledger_us.saturating_sub(fills_us));
        let bare_us = since_us.saturating_add(time_for(refill, units, share_ppm));
        (units <= most && bare_us <= ledger_us).then_some(Self {
            bare_us,
            rate: refill.units,
        })
    }

    /// When there would have been nothing, had this rate been in force all the time.
    fn bare_at(self, rate: Units, ledger_us: i64) -> i64 {
        if self.rate == 0 || self.rate >= rate {
            return self.bare_us;
        }
        let span_us = i128::from(ledger_us).saturating_sub(i128::from(self.bare_us));
        let span_us = span_us
            .max(0)
            .saturating_mul(i128::from(self.rate))
            .checked_div(i128::from(rate))
            .unwrap_or(0);
        ledger_us.saturating_sub(i64::try_from(span_us).unwrap_or(i64::MAX))
    }
}

/// Ledger µs in which a share of the rate brings so many tokens.
fn time_for(refill: &Refill, tokens: Units, share_ppm: u64) -> i64 {
    let spans = u128::from(tokens)
        .saturating_mul(u128::try_from(refill.interval_us).unwrap_or(0))
        .saturating_mul(u128::from(MILLION));
    let rate = u128::from(refill.units).saturating_mul(u128::from(share_ppm));
    let time = spans
        .saturating_add(rate.saturating_sub(1))
        .checked_div(rate);
    time.map_or(i64::MAX, |time| i64::try_from(time).unwrap_or(i64::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    const SECOND_US: i64 = 1_000_000;

    fn refill(units: Units) -> Refill {
        Refill {
            units,
            interval_us: SECOND_US,
            burst: 10_000,
        }
    }

    /// Most tokens that can be drawn.
    fn there(saved: Saved, rate: Units, share_ppm: u64, at_us: i64) -> Units {
        let can = |units: &Units| {
            let drawn = saved.draw((*units, 1_000), &refill(rate), share_ppm, at_us);
            drawn.is_some()
        };
        (0..=1_000).rev().find(can).unwrap()
    }

    /// A share of the rate is saved up to the most there may be, and what is drawn is gone.
    #[test]
    fn a_share_of_the_rate_is_saved() {
        let saved = Saved::nothing(0, 1_000);
        assert_eq!(0, there(saved, 1_000, 20_000, 0));
        assert_eq!(20, there(saved, 1_000, 20_000, SECOND_US));
        assert_eq!(1_000, there(saved, 1_000, 20_000, 1_000 * SECOND_US));
        let left = saved.draw((15, 1_000), &refill(1_000), 20_000, SECOND_US);
        assert_eq!(5, there(left.unwrap(), 1_000, 20_000, SECOND_US));
    }

    /// What was saved before a raise is not worth more after it, and a rate that was lowered brings what it brings.
    #[test]
    fn a_raise_does_not_raise_what_was_saved() {
        let saved = Saved::nothing(0, 1_000);
        assert_eq!(20, there(saved, 2_000, 20_000, SECOND_US));
        assert_eq!(10, there(saved, 500, 20_000, SECOND_US));
        let left = saved.draw((5, 1_000), &refill(2_000), 20_000, SECOND_US);
        assert_eq!(15, there(left.unwrap(), 2_000, 20_000, SECOND_US));
        assert_eq!(55, there(left.unwrap(), 2_000, 20_000, 2 * SECOND_US));
    }

    /// What was full stays full at any rate.
    #[test]
    fn all_is_all_at_any_rate() {
        for rate in [1, 1_000, 1_000_000] {
            assert_eq!(1_000, there(Saved::all(500), rate, MILLION, SECOND_US));
        }
    }
}
