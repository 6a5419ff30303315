//! When to look at the log again: seldom, and yet in time for whatever can be due.

use usage_log::Growth;

use super::{BYTES_DUE, Shipper};

/// Longest real time between looks.
const LOOK_US: u64 = 50_000;
/// Shortest wait for something that is due by time.
const WAIT_MIN_US: u64 = 1_000;

impl Shipper {
    /// Says when to poll again, in real time, if the log does not grow by then as [`Self::growth`] says.
    #[must_use]
    pub fn wait_us(&self, now_us: u64) -> u64 {
        let look_us = (self.interval_us / 4).clamp(WAIT_MIN_US, LOOK_US);
        let due_us = if now_us < self.not_before_us {
            Some(self.not_before_us)
        } else {
            let seen_us = self.samples.seen_us(self.next_seq);
            seen_us.map(|seen_us| seen_us.saturating_add(self.interval_us))
        };
        let left_us = due_us.map_or(look_us, |due_us| due_us.saturating_sub(now_us));
        left_us.clamp(WAIT_MIN_US, look_us)
    }

    /// Says how far the log must grow for polling to be worth while at once: to the first record that waits for its
    /// batch, then to a full batch. None while nothing may go.
    #[must_use]
    pub fn growth(&self, now_us: u64) -> Option<Growth> {
        if now_us < self.not_before_us {
            return None;
        }
        let is_new = self.samples.age_us(self.next_seq, now_us) < self.interval_us;
        let is_gathering = is_new
            && self.samples.seen_us(self.next_seq).is_some()
            && self.log.stats().durable_seq >= self.next_seq
            && !self.draining;
        let (records, bytes) = if is_gathering {
            let bytes = self.shipped_bytes.saturating_add(BYTES_DUE);
            (u64::try_from(self.records_max).unwrap_or(u64::MAX), bytes)
        } else {
            (1, u64::MAX)
        };
        Some(Growth {
            durable_seq: self.next_seq.saturating_add(records).saturating_sub(1),
            written_bytes: bytes,
        })
    }
}
