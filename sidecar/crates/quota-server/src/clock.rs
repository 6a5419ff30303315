//! Ledger time in this process: what the ledger last said, run on `CLOCK_BOOTTIME`.

use quota_core::Now;
use quota_proto::ledger::ClockState;
use rustix::time::{ClockId, clock_gettime};

/// A heartbeat that is ahead of us by more real µs than this moves the clock forward.
const AHEAD_US: i64 = 5_000;
/// The clock is moved back only when every heartbeat of a period was late by more real µs than this.
const BEHIND_US: i64 = 20_000;
/// Heartbeats in that period: about 5 s.
const PERIOD: u32 = 128;
/// Speeds that a scaled clock may have.
const SPEED_MILLI_MAX: i64 = 1_000_000;
/// Real time.
const REAL_MILLI: i64 = 1_000;

/// Monotone real time that also runs while the machine sleeps.
pub trait Monotonic: Send + Sync {
    /// Microseconds since some fixed instant.
    fn now_us(&self) -> u64;
}

/// `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Monotonic for BootClock {
    fn now_us(&self) -> u64 {
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        seconds
            .saturating_mul(1_000_000)
            .saturating_add(nanos / 1_000)
    }
}

/// What the ledger said of its clock.
#[derive(Clone, Copy, Debug)]
struct Setting {
    real_us: u64,
    ledger_us: i64,
    speed_milli: i64,
    version: u64,
}

/// Ledger time with a monotone floor.
#[derive(Debug)]
pub(crate) struct LedgerClock {
    scaled: bool,
    setting: Option<Setting>,
    floor_us: i64,
    least_lag_us: i64,
    heartbeats: u32,
}

impl LedgerClock {
    /// Makes a clock that doesn't know the time; `scaled` says whether another speed than real time is believed.
    pub(crate) const fn new(scaled: bool) -> Self {
        Self {
            scaled,
            setting: None,
            floor_us: i64::MIN,
            least_lag_us: i64::MAX,
            heartbeats: 0,
        }
    }

    /// Tells the time; `None` before the ledger has.
    pub(crate) fn now(&mut self, real_us: u64) -> Option<Now> {
        let setting = self.setting?;
        self.floor_us = self.floor_us.max(setting.at(real_us));
        Some(Now {
            ledger_us: self.floor_us,
            real_us,
            speed_milli: setting.speed_milli,
        })
    }

    /// Version of the setting in force; 0 before the first.
    pub(crate) fn version(&self) -> u64 {
        self.setting.map_or(0, |setting| setting.version)
    }

    /// Takes in a setting. An older version is ignored, a speed that is not allowed as well (the answer is then false).
    pub(crate) fn set(&mut self, real_us: u64, state: &ClockState) -> bool {
        if self
            .setting
            .is_some_and(|known| state.version < known.version)
        {
            return true;
        }
        let speed_allowed = state.speed_milli == REAL_MILLI
            || (self.scaled && (0..=SPEED_MILLI_MAX).contains(&state.speed_milli));
        if !speed_allowed {
            return false;
        }
        if self.setting.is_some_and(|known| {
            known.version == state.version && known.speed_milli == state.speed_milli
        }) {
            self.heartbeat(real_us, state.now_us);
            return true;
        }
        self.rebase(real_us, state.now_us, state.speed_milli, state.version);
        true
    }

    /// Takes in a heartbeat's time: small differences are the network's and are ignored. Answers the real time at which
    /// it was sent, as far as this clock can tell: late by the shortest way from the ledger at most.
    pub(crate) fn heartbeat(&mut self, real_us: u64, ledger_us: i64) -> u64 {
        let Some(setting) = self.setting else {
            return real_us;
        };
        let lag_us = setting.real_span(setting.at(real_us).saturating_sub(ledger_us));
        if lag_us < AHEAD_US.saturating_neg() {
            self.rebase(real_us, ledger_us, setting.speed_milli, setting.version);
            return real_us;
        }
        let sent_us = real_us.saturating_sub(u64::try_from(lag_us).unwrap_or(0));
        self.least_lag_us = self.least_lag_us.min(lag_us);
        self.heartbeats = self.heartbeats.saturating_add(1);
        if self.heartbeats < PERIOD {
            return sent_us;
        }
        if self.least_lag_us > BEHIND_US {
            self.rebase(real_us, ledger_us, setting.speed_milli, setting.version);
        }
        self.least_lag_us = i64::MAX;
        self.heartbeats = 0;
        sent_us
    }

    fn rebase(&mut self, real_us: u64, ledger_us: i64, speed_milli: i64, version: u64) {
        self.setting = Some(Setting {
            real_us,
            ledger_us,
            speed_milli,
            version,
        });
        self.least_lag_us = i64::MAX;
        self.heartbeats = 0;
    }
}

impl Setting {
    fn at(&self, real_us: u64) -> i64 {
        let elapsed = i64::try_from(real_us.saturating_sub(self.real_us)).unwrap_or(i64::MAX);
        let scaled = i128::from(elapsed).saturating_mul(i128::from(self.speed_milli)) / 1_000;
        self.ledger_us
            .saturating_add(i64::try_from(scaled).unwrap_or(i64::MAX))
    }

    /// Turns a span of ledger time into real time; a clock that stands still counts as one of real speed.
    fn real_span(&self, ledger_us: i64) -> i64 {
        let scaled = i128::from(ledger_us)
            .saturating_mul(1_000)
            .checked_div(i128::from(self.speed_milli));
        scaled.map_or(ledger_us, |us| i64::try_from(us).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn state(now_us: i64, speed_milli: i64, version: u64) -> ClockState {
        ClockState {
            now_us,
            speed_milli,
            version,
        }
    }

    fn ledger_us(clock: &mut LedgerClock, real_us: u64) -> i64 {
        clock.now(real_us).unwrap().ledger_us
    }

    /// Before the ledger has said what time it is there is none.
    #[test]
    fn unknown_until_told() {
        assert_eq!(None, LedgerClock::new(true).now(5));
    }

    /// Ledger time is what was said plus elapsed real time times speed.
    #[test]
    fn runs_at_the_speed_it_was_told() {
        let mut clock = LedgerClock::new(true);
        assert!(clock.set(1_000, &state(50_000, 120_000, 1)));
        assert_eq!(50_000 + 120 * 2_000, ledger_us(&mut clock, 3_000));
    }

    /// Outside the embedded setup a scaled clock is refused and changes nothing.
    #[test]
    fn scaled_clock_is_refused_outside_the_embedded_setup() {
        let mut clock = LedgerClock::new(false);
        assert!(!clock.set(0, &state(50_000, 120_000, 1)));
        assert_eq!(None, clock.now(1));
        assert!(clock.set(0, &state(50_000, 1_000, 1)));
    }

    /// Time never goes back, whatever the ledger says, and an old setting that comes late is ignored.
    #[test]
    fn never_goes_back() {
        let mut clock = LedgerClock::new(true);
        clock.set(0, &state(1_000_000, 1_000, 2));
        assert_eq!(1_000_500, ledger_us(&mut clock, 500));
        clock.set(600, &state(10, 1_000, 1));
        assert_eq!(1_000_700, ledger_us(&mut clock, 700));
        clock.set(800, &state(10, 1_000, 3));
        assert_eq!(1_000_700, ledger_us(&mut clock, 900));
    }

    /// A heartbeat that was under way for long speaks of the time at which it was sent, never of its arrival.
    #[test]
    fn a_heartbeat_speaks_of_when_it_was_sent() {
        let mut clock = LedgerClock::new(true);
        clock.set(0, &state(0, 2_000, 1));
        assert_eq!(70_000, clock.heartbeat(100_000, 140_000));
        assert_eq!(100_000, clock.heartbeat(100_000, 201_000));
    }

    /// A late heartbeat changes nothing, one from the future does, and a period of late ones sets the clock back.
    #[test]
    fn heartbeats_correct_only_what_is_no_delay() {
        let mut clock = LedgerClock::new(false);
        clock.set(0, &state(0, 1_000, 1));
        clock.heartbeat(100_000, 60_000);
        assert_eq!(100_000, ledger_us(&mut clock, 100_000));
        clock.heartbeat(100_000, 104_000);
        assert_eq!(100_000, ledger_us(&mut clock, 100_000));
        clock.heartbeat(100_000, 110_000);
        assert_eq!(110_000, ledger_us(&mut clock, 100_000));
        for _ in 0..PERIOD {
            clock.heartbeat(100_000, 80_000);
        }
        assert_eq!(110_000, ledger_us(&mut clock, 120_000));
        assert_eq!(120_000, ledger_us(&mut clock, 140_000));
    }
}
