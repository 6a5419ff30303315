//! When a call that was denied passes: at every limit that it must pass, those included that would have let it pass now,
//! and those that are in force by then.

use crate::{
    bucket::{
        Bucket,
        token::{SLICE_US, Tokens},
    },
    check::judge::{Charge, Verdict, judge_without_bucket, refill_of},
    decision::Reason,
    engine::Engine,
    limit::LimitRule,
    matching,
    request::{CheckRequest, UNITS_MAX, Units},
    time::Now,
};

impl Engine {
    /// When every limit would let the call pass, ledger µs from now; `None` where one never would or doesn't know.
    pub(crate) fn retry_after_us(
        &self,
        now: Now,
        tenant: u32,
        request: &CheckRequest,
    ) -> Option<i64> {
        let after_us = self.denied_for_us()?;
        let at_us = now.ledger_us.saturating_add(after_us);
        let is_denied_then = request.costs.iter().any(|cost| {
            let limits = self.catalog.limits_on(tenant, &cost.meter);
            limits.iter().any(|index| {
                self.catalog.limit(*index).is_some_and(|limit| {
                    is_coming(&limit.rule, request, now.ledger_us, at_us)
                        && may_deny_when_fresh(&limit.rule, cost.units)
                })
            })
        });
        (!is_denied_then).then_some(after_us)
    }

    /// When every limit that denied would let the call pass; `None` where none did, or one never would or doesn't know.
    fn denied_for_us(&self) -> Option<i64> {
        let mut longest = None;
        for charge in &self.charges {
            if let Verdict::Denied(_, retry_after_us) = charge.verdict {
                longest = longest.max(Some(retry_after_us?));
            }
        }
        longest
    }

    /// Whether the time at which a denied call passes hangs on a limit that has to be asked first: every limit that
    /// denied knows its time, and another one lacks units and may lack them then.
    ///
    /// A limit on distinct values is not asked for that: it would count the value of a call that is denied.
    pub(crate) fn is_unsure_when(&self, now: Now) -> bool {
        let Some(after_us) = self.denied_for_us() else {
            return false;
        };
        self.charges.iter().any(|charge| {
            matches!(charge.verdict, Verdict::Short(_)) && !self.will_pass(now, charge, after_us)
        })
    }

    /// Whether a limit that lacks units here is sure to have them after a while, as far as is known.
    fn will_pass(&self, now: Now, charge: &Charge, after_us: i64) -> bool {
        if charge.units == 0 {
            return true;
        }
        let at_us = now.ledger_us.saturating_add(after_us);
        let limit = self.catalog.limit(charge.limit);
        let ends_us = limit.and_then(|limit| limit.rule.valid_to_us);
        if ends_us.is_some_and(|ends_us| ends_us <= at_us) {
            return true;
        }
        if self.catalog.is_token_bucket(charge.limit) {
            return self.holds(now, charge, 0) || self.will_fill(now, charge, after_us);
        }
        let Some(bucket) = charge.bucket.and_then(|key| self.buckets.get(key)) else {
            return false;
        };
        let window = bucket.current.as_ref();
        bucket.counts_values || window.is_some_and(|window| window.info.end_us <= at_us)
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
                && !self.holds(now, &charge, retry_after_us)
                && !self.will_fill(now, &charge, retry_after_us)
                && let Some(key) = charge.bucket
            {
                self.return_tokens(now, key, UNITS_MAX);
            }
        }
    }

    /// Whether a token bucket's shard is known to hold what a call takes after a while.
    fn holds(&self, now: Now, charge: &Charge, after_us: i64) -> bool {
        let at_us = now.ledger_us.saturating_add(after_us);
        self.tokens_of(charge).is_some_and(|(limit, tokens)| {
            refill_of(limit).is_some_and(|refill| {
                !tokens.is_stale(now.real_us) && charge.units <= tokens.in_shard(&refill, at_us)
            })
        })
    }

    /// Whether a token bucket that was heard of once fills with what a call takes within a while, if it is empty now, and
    /// slices that others hold keep it from filling before they are over.
    fn will_fill(&self, now: Now, charge: &Charge, after_us: i64) -> bool {
        let span_us = after_us.saturating_sub(now.ledger_us_of(SLICE_US));
        self.tokens_of(charge).is_some_and(|(limit, tokens)| {
            refill_of(limit).is_some_and(|refill| {
                tokens.as_of_us().is_some() && refill.time_for(charge.units) <= span_us
            })
        })
    }

    fn tokens_of(&self, charge: &Charge) -> Option<(&LimitRule, &Tokens)> {
        let bucket: &Bucket = charge.bucket.and_then(|key| self.buckets.get(key))?;
        let limit = self.catalog.limit(bucket.limit)?;
        Some((&limit.rule, bucket.tokens.as_deref()?))
    }
}

/// Whether a limit that does not apply to a call now does so at a later moment.
fn is_coming(rule: &LimitRule, request: &CheckRequest, now_us: i64, at_us: i64) -> bool {
    let begins_us = rule.valid_from_us.filter(|from_us| now_us < *from_us);
    begins_us.is_some() && matching::applies(rule, &request.attributes, at_us)
}

/// Whether a limit may deny the first call that it meets: the call costs more than there ever is, or what is stored or in
/// flight already is nobody's to know.
fn may_deny_when_fresh(rule: &LimitRule, units: Units) -> bool {
    let is_counted = rule.amount.is_some();
    let is_too_much = matches!(
        judge_without_bucket(rule, units),
        Some(Verdict::Denied(Reason::CostExceedsLimit, _))
    );
    is_counted && (rule.kind.is_standing() || is_too_much)
}
