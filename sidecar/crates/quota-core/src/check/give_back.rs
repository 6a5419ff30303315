//! Giving back what calls used here and did not need after all: all limits or none.
//!
//! Only the process that used the units may give them back, and no more than it used of the window that is open: so no
//! unit ever comes back that did not leave. Tokens go to their bucket, which takes what it would hold had they never
//! been taken. Levels fall by records instead; what is in flight ends with its reservation; counted values stay.

use crate::{
    bucket::Bucket,
    check::judge::{Charge, Verdict},
    decision::Reason,
    engine::Engine,
    limit::LimitKind,
    mutant::{self, Mutant},
    request::{CheckRequest, Units},
    tenants::Limit,
    time::Now,
};

impl Engine {
    /// Lets every limit say whether this process used so much of it.
    pub(crate) fn judge_give_back(&mut self, now: Now, request: &CheckRequest) {
        let mut charges = std::mem::take(&mut self.charges);
        for charge in &mut charges {
            charge.bucket = self.find_bucket(charge.limit, request);
            self.bring_bucket(now, charge, request);
            if let Some(key) = charge.bucket {
                self.turn_if_over(now, key);
            }
            let Some(limit) = self.catalog.limit(charge.limit) else {
                continue;
            };
            let bucket = charge.bucket.and_then(|key| self.buckets.get(key));
            let is_there = bucket.is_some_and(|bucket| charge.units <= used_here(limit, bucket));
            let is_counted = charge.units > 0 && limit.rule.amount.is_some();
            if is_counted && !is_there {
                charge.verdict = Verdict::Denied(Reason::NotConsumedHere, None);
            }
        }
        self.charges = charges;
    }

    /// Gives the units of one charge back; its limit has said that they were used here.
    pub(crate) fn unspend(&mut self, now: Now, charge: &Charge) {
        let (Some(key), Some(limit)) = (charge.bucket, self.catalog.limit(charge.limit)) else {
            return;
        };
        if charge.units == 0 || limit.rule.amount.is_none() {
            return;
        }
        let kind = limit.rule.kind;
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        if let LimitKind::TokenBucket { .. } = kind {
            if let Some(tokens) = bucket.tokens.as_deref_mut() {
                tokens.unspend(charge.units);
            }
            self.give_tokens(now, key);
            return;
        }
        let early = charge.units.min(bucket.over_early);
        if bucket.current.is_none() {
            bucket.over_early = bucket.over_early.saturating_sub(early);
        }
        if let Some(window) = bucket.current.as_mut() {
            let is_back = window.balance.unspend(charge.units);
            debug_assert!(is_back, "a verdict said that the units were used here");
        }
        self.keep_sound(key);
        self.mark_moved(key);
        self.stir(key);
    }
}

/// Units of a limit that this process used and may give back.
fn used_here(limit: &Limit, bucket: &Bucket) -> Units {
    if mutant::is(Mutant::GivesBackUnused) {
        return Units::MAX;
    }
    match limit.rule.kind {
        LimitKind::TokenBucket { .. } => bucket.tokens.as_ref().map_or(0, |tokens| tokens.used()),
        LimitKind::Window => bucket
            .current
            .as_ref()
            .map_or(bucket.over_early, |window| window.balance.used()),
        LimitKind::Level | LimitKind::Concurrency => 0,
    }
}
