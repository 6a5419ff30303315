//! When how much was appended: for watermarks, for the age of what is unshipped.

use std::collections::VecDeque;

/// Real time between samples among unshipped entries.
const STRIDE_US: u64 = 50_000;
/// Samples kept; at that stride they reach back for longer than anything stays unshipped in good times.
const SAMPLES_MAX: usize = 1_024;

/// A moment and the last number that was appended by then.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Sample {
    real_us: u64,
    /// Ledger time; 0 while it isn't known.
    ledger_us: i64,
    appended_seq: u64,
}

/// Samples in the order of time.
#[derive(Default)]
pub(super) struct Samples(VecDeque<Sample>);

impl Samples {
    /// Notes that everything received until now is in the log at or below the last appended number.
    pub(super) fn note(
        &mut self,
        real_us: u64,
        ledger_us: Option<i64>,
        appended_seq: u64,
        next_seq: u64,
    ) {
        let ledger_us = ledger_us.unwrap_or(0);
        match self.0.back_mut() {
            // Nothing was appended since: the later moment says more.
            Some(last) if last.appended_seq == appended_seq => {
                last.ledger_us = last.ledger_us.max(ledger_us);
            }
            // Samples among unshipped entries are for watermarks only and may be coarse.
            Some(last)
                if last.appended_seq >= next_seq
                    && real_us.saturating_sub(last.real_us) < STRIDE_US => {}
            _ => self.0.push_back(Sample {
                real_us,
                ledger_us,
                appended_seq,
            }),
        }
        if self.0.len() > SAMPLES_MAX {
            // Every other one: watermarks get coarser, not wrong.
            let mut keep = false;
            self.0.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// Tells when an entry was first seen to be there; none while it was not.
    pub(super) fn seen_us(&self, seq: u64) -> Option<u64> {
        let first = self.0.iter().find(|sample| sample.appended_seq >= seq);
        first.map(|sample| sample.real_us)
    }

    /// Tells for how long an entry has been seen to be there.
    pub(super) fn age_us(&self, seq: u64, now_us: u64) -> u64 {
        let seen_us = self.seen_us(seq);
        seen_us.map_or(0, |seen_us| now_us.saturating_sub(seen_us))
    }

    /// Finds the latest moment before which everything received is at or below a number; 0 = none is known.
    pub(super) fn watermark_us(&self, last_seq: u64) -> i64 {
        let covered = self
            .0
            .iter()
            .rev()
            .find(|sample| sample.appended_seq <= last_seq);
        covered.map_or(0, |sample| sample.ledger_us)
    }

    /// Forgets what is no longer needed once everything up to a number is committed.
    pub(super) fn forget(&mut self, committed_seq: u64) {
        while self
            .0
            .get(1)
            .is_some_and(|next| next.appended_seq <= committed_seq)
        {
            self.0.pop_front();
        }
    }

    /// Forgets everything: numbers begin anew.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
