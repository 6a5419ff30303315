//! When a call that was denied passes: at every limit that it must pass, those included that would have let it pass now.

use crate::{
    check::judge::{Verdict, refill_of},
    decision::Reason,
    engine::Engine,
    request::{UNITS_MAX, Units},
    slab::Key,
    time::Now,
};

impl Engine {
    /// When every limit that denied would let the call pass; `None` where one never would or doesn't know.
    pub(crate) fn retry_after_us(&self) -> Option<i64> {
        let mut longest = None;
        for charge in &self.charges {
            if let Verdict::Denied(_, retry_after_us) = charge.verdict {
                longest = longest.max(Some(retry_after_us?));
            }
        }
        longest
    }

    /// Whether the time at which a denied call passes hangs on a token bucket that has to be asked first: every limit
    /// that denied knows its time, and of another bucket too few tokens are known, or only what was there a while ago.
    pub(crate) fn is_unsure_when(&self, now: Now) -> bool {
        let is_known = self.charges.iter().all(|charge| match charge.verdict {
            Verdict::Denied(reason, retry_after_us) => {
                reason == Reason::RateLimited && retry_after_us.is_some()
            }
            _ => true,
        });
        is_known
            && self.charges.iter().any(|charge| {
                matches!(charge.verdict, Verdict::Short(_))
                    && self.catalog.is_token_bucket(charge.limit)
                    && !self.will_hold(now, charge.bucket, charge.units, 0)
            })
    }

    /// Gives tokens that lie here back to buckets that would have too few when the call is made again: slices are over by
    /// then.
    pub(crate) fn leave_tokens(&mut self, now: Now, retry_after_us: i64) {
        for place in 0..self.charges.len() {
            let Some(charge) = self.charges.get(place).copied() else {
                continue;
            };
            if charge.verdict == Verdict::Fits
                && charge.units > 0
                && self.catalog.is_token_bucket(charge.limit)
                && !self.will_hold(now, charge.bucket, charge.units, retry_after_us)
                && let Some(key) = charge.bucket
            {
                self.return_tokens(now, key, UNITS_MAX);
            }
        }
    }

    /// Whether a token bucket's shard is known to hold so many tokens after a while.
    fn will_hold(&self, now: Now, key: Option<Key>, units: Units, after_us: i64) -> bool {
        let Some(bucket) = key.and_then(|key| self.buckets.get(key)) else {
            return false;
        };
        let limit = self.catalog.limit(bucket.limit);
        let refill = limit.and_then(|limit| refill_of(&limit.rule));
        let (Some(tokens), Some(refill)) = (&bucket.tokens, refill) else {
            return false;
        };
        !tokens.is_stale(now.real_us)
            && units <= tokens.in_shard(&refill, now.ledger_us.saturating_add(after_us))
    }
}
