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
