//! Decisions as callers read them.

use prost_types::{Duration, Timestamp};
use quota_core::{Cost, Decision, Enforcement, LimitKind, LimitState, Reason, Units};

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
    }
}

/// Tells a decision in as much detail as was asked for, without headers.
#[must_use]
pub fn decision(from: &Decision, detail: Detail, plan: &str) -> quota::Decision {
    let told = |state: &LimitState| limit_state(state, plan);
    let binding = from.binding.as_ref();
    let none = detail == Detail::None;
    quota::Decision {
        allowed: from.reason.allowed(),
        reason: reason(from.reason).into(),
        binding: binding.filter(|_| !none).map(told),
        remaining: binding
            .filter(|_| !none)
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

/// Tells one limit.
#[must_use]
pub fn limit_state(from: &LimitState, plan: &str) -> quota::LimitState {
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
        amount: from.amount.map_or(-1, signed),
        burst,
        used: signed(from.used),
        used_percent: from
            .amount
            .map_or(0, |amount| used_percent(from.used, amount)),
        remaining: from.remaining.map_or(-1, signed),
        reset_after: from.reset_after_us.map(duration),
        window_start: from.window_us.map(|(start, _)| timestamp(start)),
        window_end: from.window_us.map(|(_, end)| timestamp(end)),
        key: from
            .key
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        source: from.source.to_string(),
        plan: plan.to_owned(),
        as_of: Some(timestamp(from.as_of_us)),
        tenant: from.tenant.as_ref().to_owned(),
    }
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
