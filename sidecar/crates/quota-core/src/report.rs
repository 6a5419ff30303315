//! Reporting use, and hearing what the fleet used.

use crate::{
    engine::Engine,
    event::{CommandFailure, WindowUse},
    outbox::Report,
    slab::Key,
    time::Now,
};

/// Use is reported this often, real µs.
const EVERY_US: u64 = 1_000_000;
/// Last figures of windows that are over, kept until the ledger has them.
const ENDED_MAX: usize = 100_000;

/// What is to be reported.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    /// Buckets whose use changed.
    pub(crate) moved: Vec<Key>,
    ended: Vec<Report>,
    reported_us: u64,
}

impl Reporter {
    /// Keeps the last figures of a window that is over. Beyond the bound the oldest are dropped: they serve reports only.
    pub(crate) fn keep(&mut self, entry: Report) {
        if self.ended.len() >= ENDED_MAX {
            self.ended.swap_remove(0);
        }
        self.ended.push(entry);
    }

    /// Real time of the next report; `None` where there is nothing to say.
    pub(crate) fn next_due_us(&self) -> Option<u64> {
        let is_empty = self.moved.is_empty() && self.ended.is_empty();
        (!is_empty).then(|| self.reported_us.saturating_add(EVERY_US))
    }
}

impl Engine {
    /// Reports what moved, once a second or at once.
    pub(crate) fn report(&mut self, now: Now, at_once: bool) {
        let is_due = self
            .reporter
            .next_due_us()
            .is_some_and(|due_us| due_us <= now.real_us);
        if !is_due && !at_once {
            return;
        }
        self.reporter.reported_us = now.real_us;
        for entry in std::mem::take(&mut self.reporter.ended) {
            self.outbox.report(entry);
        }
        for key in std::mem::take(&mut self.reporter.moved) {
            let Some(bucket) = self.buckets.get_mut(key) else {
                continue;
            };
            bucket.has_moved = false;
            let Some(window) = bucket.current.as_mut() else {
                continue;
            };
            self.outbox.report(Report {
                bucket: Some(key),
                window: window.info.id,
                used: window.balance.use_cum(),
                own_use: window.own_use_now(),
                lease_epoch: window.lease_epoch,
                in_flight: window.in_flight(),
                sent_us: now.real_us,
            });
            if window.lease_epoch != 0 {
                (window.renewing, window.renewal_sent_us) = (true, now.real_us);
            }
            window.fallen_told = window.fallen;
        }
    }

    /// Marks a bucket whose use is to be reported.
    pub(crate) fn mark_moved(&mut self, key: Key) {
        if let Some(bucket) = self.buckets.get_mut(key)
            && !bucket.has_moved
        {
            bucket.has_moved = true;
            self.reporter.moved.push(key);
        }
    }

    /// Takes in what the fleet used, or tries again in a second.
    pub(crate) fn on_reported(
        &mut self,
        now: Now,
        entries: Vec<Report>,
        result: Result<Vec<WindowUse>, CommandFailure>,
    ) {
        let Ok(uses) = result else {
            for entry in entries {
                self.on_no_renewal(&entry);
                match entry.bucket {
                    Some(key) if self.is_current(key, &entry) => self.mark_moved(key),
                    _ => self.reporter.keep(Report {
                        bucket: None,
                        ..entry
                    }),
                }
            }
            return;
        };
        for (entry, fleet) in entries.iter().zip(uses) {
            let bucket = entry.bucket.and_then(|key| self.buckets.get_mut(key));
            let Some(window) = bucket.and_then(|bucket| bucket.window_mut(entry.window)) else {
                continue;
            };
            window.reported = entry.used;
            window.fleet = Some((fleet, entry.own_use));
            window.fallen_then = window.fallen_told;
            let was_fenced = window.is_fenced(now);
            window.on_renewal(entry, fleet.lease_epoch);
            if window.flight.is_none() {
                // Else it may count what is on its way here and not known yet.
                window.info.allotted = fleet.allotted;
            }
            if was_fenced && let Some(key) = entry.bucket {
                self.stir(key);
            }
        }
    }

    fn is_current(&self, key: Key, entry: &Report) -> bool {
        let window = self
            .buckets
            .get(key)
            .and_then(|bucket| bucket.current.as_ref());
        window.is_some_and(|window| window.info.id == entry.window)
    }
}
