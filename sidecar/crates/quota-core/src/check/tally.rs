//! Counting what a decided call asked of its limits.

use crate::{
    bucket::{Bucket, window::Window},
    check::judge::{Charge, Verdict, refill_of},
    decision::Reason,
    engine::Engine,
    limit::LimitKind,
    request::{CheckRequest, Mode, Units},
    tally::UnitsAsked,
    tenants::Limit,
    time::Now,
};

impl Engine {
    /// Counts the units of a call by limit, before it takes them. Of a denied call only those limits count that denied it.
    pub(crate) fn tally(&mut self, now: Now, request: &CheckRequest, is_denied: bool) {
        if matches!(request.mode, Mode::Peek | Mode::GiveBack) {
            return;
        }
        for charge in &self.charges {
            let Some(limit) = self.catalog.limit(charge.limit) else {
                continue;
            };
            let bucket = charge.bucket.and_then(|key| self.buckets.get(key));
            let asked = asked_of(limit, bucket, charge, is_denied, now);
            let place = limit.tally;
            if let Some(asked) = asked {
                self.catalog.tallies.add(place, asked);
            }
        }
    }
}

/// What a call asked of one limit. Figures of other sidecars come late: where they and the verdict differ, that is right.
fn asked_of(
    limit: &Limit,
    bucket: Option<&Bucket>,
    charge: &Charge,
    is_denied: bool,
    now: Now,
) -> Option<UnitsAsked> {
    let cost = charge.units;
    let (most, used) = match limit.rule.kind {
        LimitKind::TokenBucket { burst, .. } => {
            let tokens = bucket.and_then(|bucket| bucket.tokens.as_deref());
            let left = refill_of(&limit.rule)
                .zip(tokens)
                .map(|(refill, tokens)| tokens.remaining(&refill, now));
            (burst, left.map_or(0, |left| burst.saturating_sub(left)))
        }
        _ => (limit.rule.amount?, used_of(bucket)),
    };
    let is_over = match charge.verdict {
        Verdict::Denied(Reason::AuthorityUnreachable, _) | Verdict::Short(_) => return None,
        Verdict::Denied(..) => true,
        _ if is_denied || cost == 0 => return None,
        verdict => matches!(verdict, Verdict::Over | Verdict::Uncovered),
    };
    let used_after = used.saturating_add(cost);
    match (is_over, used_after > most) {
        (true, false) => Some(UnitsAsked::all_over(cost)),
        (false, true) => Some(UnitsAsked::of(most, cost, most.max(cost))),
        _ => Some(UnitsAsked::of(most, cost, used_after)),
    }
}

fn used_of(bucket: Option<&Bucket>) -> Units {
    bucket.map_or(0, |bucket| {
        bucket
            .current
            .as_ref()
            .map_or(bucket.over_early, Window::used)
    })
}
