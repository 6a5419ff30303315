//! Time as the engine is told it.

/// The present, on both clocks that matter.
///
/// Windows, refills, expiries and event times follow `ledger_us`; budgets, heartbeats, idle times and slices follow
/// `real_us`. Outside the embedded setup both run at one speed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Ledger time, microseconds since the Unix epoch, UTC.
    pub ledger_us: i64,
    /// Monotone real time (`CLOCK_BOOTTIME`), microseconds.
    pub real_us: u64,
    /// Ledger microseconds per 1,000 real microseconds: 1,000 is real time, 0 stands still.
    pub speed_milli: i64,
}

impl Now {
    /// Ledger µs that pass in so many real µs.
    pub(crate) fn ledger_us_of(&self, real_us: u64) -> i64 {
        let scaled = i128::from(real_us).saturating_mul(i128::from(self.speed_milli));
        i64::try_from(scaled / 1_000).unwrap_or(i64::MAX)
    }

    /// Real µs until ledger time `at_us`; `None` while the clock stands still, 0 when it is past.
    pub(crate) fn real_us_until(&self, at_us: i64) -> Option<u64> {
        let left = at_us.saturating_sub(self.ledger_us);
        if left <= 0 {
            return Some(0);
        }
        let scaled = i128::from(left).saturating_mul(1_000);
        let real = scaled
            .checked_div(i128::from(self.speed_milli))
            .filter(|real| *real >= 0)?;
        Some(u64::try_from(real).unwrap_or(u64::MAX).saturating_add(1))
    }
}
