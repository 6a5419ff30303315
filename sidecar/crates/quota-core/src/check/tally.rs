//! Counting what a decided call asked of its limits.

use crate::{
    bucket::{Bucket, window::Window},
    check::judge::{Charge, Verdict, refill_of},
    decided::Said,
    decision::Reason,
    engine::Engine,
    limit::{DecisionLog, Enforcement, LimitKind, LimitRule},
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
        let mut is_said = false;
        for charge in &self.charges {
            let Some(limit) = self.catalog.limit(charge.limit) else {
                continue;
            };
            is_said |= reason_of(&limit.rule, charge.verdict, is_denied).is_some();
            let bucket = charge.bucket.and_then(|key| self.buckets.get(key));
            let asked = asked_of(limit, bucket, charge, is_denied, now);
            let place = limit.tally;
            if let Some(asked) = asked {
                self.catalog.tallies.add(place, asked);
            }
        }
        if is_said {
            self.note_decisions(now, request, is_denied);
        }
    }

    /// Notes what is worth telling of what limits say of a call.
    #[cold]
    fn note_decisions(&mut self, now: Now, request: &CheckRequest, is_denied: bool) {
        for charge in &self.charges {
            let Some(limit) = self.catalog.limit(charge.limit) else {
                continue;
            };
            let Some(reason) = reason_of(&limit.rule, charge.verdict, is_denied) else {
                continue;
            };
            let bucket = charge.bucket.and_then(|key| self.buckets.get(key));
            let most_used = most_and_used(limit, bucket, now);
            let said = Said {
                limit: charge.limit,
                reason,
                units: charge.units,
                amount: most_used.map(|(most, _)| most),
                used: most_used.map_or_else(|| used_of(bucket), |(_, used)| used),
            };
            let caller = (&request.tenant, now.ledger_us);
            (self.decided).note(&self.catalog, said, caller, &request.attributes);
        }
    }
}

/// What a limit said of a call that is worth telling. Of a denied call only those limits speak that denied it.
fn reason_of(rule: &LimitRule, verdict: Verdict, is_denied: bool) -> Option<Reason> {
    match verdict {
        Verdict::Denied(reason, _) => Some(reason),
        Verdict::Short(_) => None,
        _ if is_denied => None,
        Verdict::Uncovered => Some(Reason::Uncovered),
        Verdict::Over if rule.enforcement == Enforcement::Shadow => {
            Some(Reason::ShadowLimitExceeded)
        }
        Verdict::Over => Some(Reason::SoftLimitExceeded),
        Verdict::Fits | Verdict::Standing => {
            matches!(rule.log, DecisionLog::Sampled(_) | DecisionLog::All)
                .then_some(Reason::Allowed)
        }
    }
}

/// What a limit allows, of a token bucket its burst, and what of it is used as known here; `None` is unlimited.
fn most_and_used(limit: &Limit, bucket: Option<&Bucket>, now: Now) -> Option<(Units, Units)> {
    let LimitKind::TokenBucket { burst, .. } = limit.rule.kind else {
        return Some((limit.rule.amount?, used_of(bucket)));
    };
    let tokens = bucket.and_then(|bucket| bucket.tokens.as_deref());
    let left = refill_of(&limit.rule)
        .zip(tokens)
        .map(|(refill, tokens)| tokens.remaining(&refill, now));
    Some((burst, left.map_or(0, |left| burst.saturating_sub(left))))
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
    let (most, used) = most_and_used(limit, bucket, now)?;
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
