//! What somebody could have of the first limit: told by looking at ledger and pools, for whoever judges denials.

use super::{
    World,
    ledger::{Generation, Window},
};

impl World {
    /// The window of the only limit that is on, where the ledger knows one.
    #[must_use]
    pub fn window_now(&self) -> Option<&Window> {
        let now_us = self.now().ledger_us;
        let windows = self.ledger.rows.windows.iter().rev();
        windows
            .take(4)
            .find(|window| window.start_us <= now_us && now_us < window.end_us)
    }

    /// Units that somebody could get now of the first limit, from the ledger or from its pool.
    #[must_use]
    pub fn units_there(&self) -> u64 {
        let Some(window) = self.window_now() else {
            return 0;
        };
        // While the ledger doesn't reach Redis, a pool may call itself final that isn't, and until it is told again.
        if !self.is_line_up || !self.is_redis_up {
            return 0;
        }
        if self.ledger.is_stopped(window.id) {
            return 0;
        }
        let is_served = window.generation().is_some_and(Generation::is_live);
        let free = self.redis.pool_free(window.pool_key());
        window.left().max(if is_served { free } else { 0 })
    }

    /// Notes the least that was there since that was last taken.
    pub(super) fn note_least(&mut self) {
        if self.verdicts.is_some() {
            let units = self.units_there();
            self.least_there = Some(self.least_there.map_or(units, |least| least.min(units)));
        }
    }
}
