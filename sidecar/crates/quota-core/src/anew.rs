//! Beginning anew: the ledger belongs to another installation than before.

use crate::{engine::Engine, lease::learning::Telling, time::Now};

impl Engine {
    /// Forgets every unit, window, limit and tenant: they are another installation's, and nobody here may spend them.
    /// Reservations stay, so that they end; what they hold is nobody's. Answers that are on their way find nothing.
    pub fn begin_anew(&mut self, now: Now) {
        for window in self.unclaimed.forget() {
            self.remove_mark(window);
        }
        self.resting.forget();
        self.telling = Telling::default();
        self.catalog.forget_all();
        for key in self.buckets.keys() {
            let Some(bucket) = self.buckets.get_mut(key) else {
                continue;
            };
            let windows = [bucket.current.take(), bucket.next.take().map(|next| *next)];
            (bucket.opening, bucket.tokens) = (None, None);
            (bucket.over_early, bucket.ahead_steps) = (0, 0);
            for window in windows.iter().flatten() {
                self.forget_mark(window);
            }
            self.stir(key);
        }
        self.work_off(now);
    }
}
