//! Decisions as callers read them.

use prost_types::{Duration, Timestamp};
use quota_core::{
    Cost, Decision, Enforcement, Explanation, FailurePolicy, LimitKind, LimitState, PoolFault,
    Reason, Units, Unmatched,
};

use crate::quota::{self, DecisionReason, Detail};

/// Gives a reason's wire value.
#[must_use]
pub const fn reason(reason: Reason) -> DecisionReason {
    match reason {
        Reason::Allowed => DecisionReason::Allowed,
        Reason::SoftLimitExceeded => DecisionReason::SoftLimitExceeded,
        Reason::ShadowLimitExceeded => DecisionReason::ShadowLimitExceeded,
        Reason::Uncovered => DecisionReason::Uncovered,
        Reason::QuotaExhausted => DecisionReason::QuotaExhausted,
        Reason::RateLimited => DecisionReason::RateLimited,
        Reason::CostExceedsLimit => DecisionReason::CostExceedsLimit,
        Reason::FeatureDisabled => DecisionReason::FeatureDisabled,
        Reason::TenantUnknown => DecisionReason::TenantUnknown,
        Reason::TenantSuspended => DecisionReason::TenantSuspended,
        Reason::MeterUnknown => DecisionReason::MeterUnknown,
        Reason::AuthorityUnreachable => DecisionReason::AuthorityUnreachable,
        Reason::SidecarFull => DecisionReason::SidecarFull,
        // Never told: whoever asked makes the call anew in the mode that it needs.
        Reason::NeedsRecord
        | Reason::NeedsReservation
        | Reason::NeedsValue
        | Reason::NeedsOneUnit
        | Reason::NotConsumedHere
        | Reason::ValuesStay => DecisionReason::Unspecified,
    }
}

/// Who is told: a tenant, and the plan that it is on.
#[derive(Clone, Copy, Debug)]
pub struct Viewer<'a> {
    /// Wire id.
    pub tenant: &'a str,
    /// Plan name; empty = none.
    pub plan: &'a str,
}

/// Tells a decision in as much detail as was asked for, without headers.
#[must_use]
pub fn decision(from: &Decision, detail: Detail, viewer: Viewer<'_>) -> quota::Decision {
    let told = |state: &LimitState| limit_state(state, viewer);
    let binding = from.binding.as_ref();
    let none = detail == Detail::None;
    quota::Decision {
        allowed: from.reason.allowed(),
        reason: reason(from.reason).into(),
        binding: binding.filter(|_| !none).map(told),
        remaining: binding
            .filter(|state| !none && !state.is_hidden)
            .and_then(|state| state.remaining)
            .map(signed),
        reset_after: binding.and_then(|state| state.reset_after_us).map(duration),
        retry_after: from.retry_after_us.map(duration),
        limits: if detail == Detail::All {
            from.limits.iter().map(told).collect()
        } else {
            Vec::new()
        },
        headers: Vec::new(),
        subject: from.subject.as_deref().unwrap_or_default().to_owned(),
    }
}

/// Tells one limit; the plan belongs to the viewer's own only.
#[must_use]
pub fn limit_state(from: &LimitState, viewer: Viewer<'_>) -> quota::LimitState {
    let unlimited = if from.is_hidden { 0 } else { -1 };
    let is_own = *from.tenant == *viewer.tenant;
    let (kind, burst) = match from.kind {
        LimitKind::TokenBucket { burst, .. } => (quota::LimitKind::TokenBucket, signed(burst)),
        LimitKind::Window => (quota::LimitKind::Window, 0),
        LimitKind::Level => (quota::LimitKind::Level, 0),
        LimitKind::Concurrency => (quota::LimitKind::Concurrency, 0),
    };
    quota::LimitState {
        name: from.name.as_ref().to_owned(),
        meter: from.meter.as_ref().to_owned(),
        kind: kind.into(),
        enforcement: enforcement(from.enforcement).into(),
        amount: from.amount.map_or(unlimited, signed),
        burst,
        used: signed(from.used),
        used_percent: from
            .amount
            .map_or(0, |amount| used_percent(from.used, amount)),
        remaining: from.remaining.map_or(unlimited, signed),
        reset_after: from.reset_after_us.map(duration),
        window_start: from.window_us.map(|(start, _)| timestamp(start)),
        window_end: from.window_us.map(|(_, end)| timestamp(end)),
        key: from
            .key
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        source: from.source.to_string(),
        plan: if is_own { viewer.plan } else { "" }.to_owned(),
        as_of: Some(timestamp(from.as_of_us)),
        tenant: from.tenant.as_ref().to_owned(),
        length: (from.length_us > 0).then(|| duration(from.length_us)),
        hidden: from.is_hidden,
    }
}

/// Tells what one limit has to say about a call.
#[must_use]
pub fn explanation(from: &Explanation, viewer: Viewer<'_>) -> quota::LimitExplanation {
    quota::LimitExplanation {
        state: Some(limit_state(&from.state, viewer)),
        matched: from.unmatched.is_none(),
        unmatched: match &from.unmatched {
            None => String::new(),
            Some(Unmatched::Meter) => "meter".to_owned(),
            Some(Unmatched::Attribute(name)) => format!("attribute {name}"),
            Some(Unmatched::NotYet) => "not yet valid".to_owned(),
            Some(Unmatched::NoLonger) => "no longer valid".to_owned(),
        },
        cost: signed(from.cost),
        failure_policy: failure_policy(from.failure_policy).into(),
        balance: signed(from.free),
        held: signed(from.held),
        consumed: signed(from.consumed),
        debt: signed(from.debt),
        allotted: signed(from.allotted),
        round: from.round,
        pool: from.pool.map(|pool| quota::PoolExplanation {
            generation: pool.generation,
            total: signed(pool.total),
            free: signed(pool.free),
            holders: pool.holders,
            fault: pool.fault.map_or_else(String::new, fault_name),
        }),
        proof: from.proof.map(|proof| quota::ProofExplanation {
            source: if proof.by_ledger { "ledger" } else { "pool" }.to_owned(),
            need: signed(proof.need),
            age: Some(duration_of(proof.age_us)),
        }),
        denies: false,
    }
}

fn fault_name(fault: PoolFault) -> String {
    match fault {
        PoolFault::NoPool => "NO_POOL",
        PoolFault::Fence => "FENCE",
        PoolFault::Generation => "GENERATION",
        PoolFault::Closed => "CLOSED",
        PoolFault::Rollback => "ROLLBACK",
        PoolFault::Seq => "SEQ",
        PoolFault::ReturnRange => "RETURN_RANGE",
        PoolFault::Unreachable => "UNREACHABLE",
    }
    .to_owned()
}

/// Tells (meter, units) pairs as quantities.
#[must_use]
pub fn quantities(from: &[Cost]) -> Vec<quota::Quantity> {
    from.iter()
        .map(|cost| quota::Quantity {
            meter: cost.meter.as_ref().to_owned(),
            units: signed(cost.units),
        })
        .collect()
}

/// Tells a span of microseconds.
#[must_use]
pub fn duration(us: i64) -> Duration {
    Duration {
        seconds: us / 1_000_000,
        nanos: i32::try_from(us % 1_000_000)
            .unwrap_or(0)
            .saturating_mul(1_000),
    }
}

/// Tells a span of microseconds that is never negative.
#[must_use]
pub fn duration_of(us: u64) -> Duration {
    duration(i64::try_from(us).unwrap_or(i64::MAX))
}

/// Tells an instant.
#[must_use]
pub fn timestamp(us: i64) -> Timestamp {
    let nanos = i32::try_from(us.rem_euclid(1_000_000))
        .unwrap_or(0)
        .saturating_mul(1_000);
    Timestamp {
        seconds: us.div_euclid(1_000_000),
        nanos,
    }
}

/// Tells units; those above the wire's bound (there are none) as the bound.
#[must_use]
pub fn signed(units: Units) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

const fn failure_policy(from: FailurePolicy) -> quota::FailurePolicy {
    match from {
        FailurePolicy::Standby => quota::FailurePolicy::Standby,
        FailurePolicy::Ledger => quota::FailurePolicy::Ledger,
        FailurePolicy::Closed => quota::FailurePolicy::Closed,
        FailurePolicy::Open => quota::FailurePolicy::Open,
    }
}

const fn enforcement(from: Enforcement) -> quota::Enforcement {
    match from {
        Enforcement::Hard => quota::Enforcement::Hard,
        Enforcement::Soft => quota::Enforcement::Soft,
        Enforcement::Shadow => quota::Enforcement::Shadow,
    }
}

/// Whole percent, rounded down; a limit of 0 counts as used up.
fn used_percent(used: Units, amount: Units) -> i64 {
    let percent = u128::from(used)
        .saturating_mul(100)
        .checked_div(u128::from(amount))
        .unwrap_or(100);
    i64::try_from(percent).unwrap_or(i64::MAX)
}
