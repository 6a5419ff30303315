//! Limits, meters, tenants and windows as the ledger sends them.

use std::sync::Arc;

use quota_core::{
    AttributeMatch, DecisionLog, Enforcement, FailurePolicy, KeyHash, LimitKind, LimitRule,
    MatchRule, Meter, TenantSnapshot, UNITS_MAX, Units, WindowId, WindowInfo,
};

use crate::{
    ledger::{self, TenantState, WindowAlignment, WindowUnit, attribute_match::Rule},
    quota,
};

const MINUTE_US: i64 = 60_000_000;
const DAY_US: i64 = 86_400_000_000;

/// A message of the ledger or the control plane that breaks the contract.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessageError {
    /// The bytes are no such message.
    #[error("{0} can't be decoded")]
    Undecodable(&'static str),
    /// A field is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field has a value that this version does not know or allow.
    #[error("{0} has value {1}, which this version does not take")]
    Unsupported(&'static str, i64),
}

/// Parses 16 bytes.
pub(crate) fn sixteen(field: &'static str, bytes: &[u8]) -> Result<[u8; 16], MessageError> {
    bytes.try_into().map_err(|_| MessageError::Missing(field))
}

/// Parses a key hash; empty where nothing splits the limit.
pub(crate) fn key_hash(bytes: &[u8]) -> Result<KeyHash, MessageError> {
    if bytes.is_empty() {
        Ok(KeyHash::default())
    } else {
        sixteen("key_hash", bytes).map(KeyHash)
    }
}

/// Parses units, 0 to 2^53 − 1.
pub(crate) fn units(field: &'static str, value: i64) -> Result<Units, MessageError> {
    Units::try_from(value)
        .ok()
        .filter(|units| *units <= UNITS_MAX)
        .ok_or(MessageError::Unsupported(field, value))
}

/// Parses an amount; −1 is unlimited.
pub(crate) fn amount(field: &'static str, value: i64) -> Result<Option<Units>, MessageError> {
    if value == -1 {
        Ok(None)
    } else {
        units(field, value).map(Some)
    }
}

/// Parses a tenant whole.
pub(crate) fn snapshot(from: ledger::TenantSnapshot) -> Result<TenantSnapshot, MessageError> {
    if from.tenant.is_empty() {
        return Err(MessageError::Missing("tenant"));
    }
    let suspended = match TenantState::try_from(from.state) {
        Ok(TenantState::Active) => false,
        Ok(TenantState::Suspended) => true,
        _ => return Err(MessageError::Unsupported("tenant.state", from.state.into())),
    };
    let mut features: Vec<Box<str>> = from
        .features
        .into_iter()
        .map(String::into_boxed_str)
        .collect();
    features.sort_unstable();
    Ok(TenantSnapshot {
        tenant: from.tenant.into(),
        tenant_id: sixteen("tenant_id", &from.tenant_id)?,
        suspended,
        parent: (!from.parent.is_empty()).then(|| Arc::from(from.parent)),
        plan: from.plan.into(),
        features: features.into_boxed_slice(),
        limits: from
            .limits
            .into_iter()
            .map(rule)
            .collect::<Result<_, _>>()?,
        change: from.change,
    })
}

/// Parses a meter.
pub(crate) fn meter(from: ledger::MeterInfo) -> Meter {
    Meter {
        name: from.name.into(),
        unit: from.unit.into_boxed_str(),
        scale: from.scale,
        attributes: from
            .attributes
            .into_iter()
            .map(String::into_boxed_str)
            .collect(),
        value_attribute: from.value_attribute.into_boxed_str(),
    }
}

/// Parses a window and where it stands.
pub(crate) fn window(from: Option<ledger::WindowInfo>) -> Result<WindowInfo, MessageError> {
    let from = from.ok_or(MessageError::Missing("window"))?;
    if from.end_us <= from.start_us {
        return Err(MessageError::Unsupported("window.end_us", from.end_us));
    }
    Ok(WindowInfo {
        id: WindowId(sixteen("window_id", &from.window_id)?),
        start_us: from.start_us,
        end_us: from.end_us,
        round: from.round,
        amount: amount("window.amount", from.amount)?,
        amount_version: from.amount_version,
        allotted: units("window.allotted", from.allotted)?,
        timeline: from.timeline,
    })
}

fn rule(from: ledger::LimitRule) -> Result<LimitRule, MessageError> {
    let kind = kind(&from)?;
    let log = decision_log(from.decision_log, from.decision_log_one_in)?;
    Ok(LimitRule {
        nominal_us: nominal_us(&from, kind)?,
        is_rolling: from.alignment == i32::from(WindowAlignment::Rolling),
        kind,
        name: from.name.into(),
        meter: from.meter.into(),
        amount: amount("limit.amount", from.amount)?,
        amount_version: from.amount_version,
        enforcement: enforcement(from.enforcement)?,
        failure_policy: failure_policy(from.failure_policy)?,
        matches: from
            .r#match
            .into_iter()
            .map(attribute_match)
            .collect::<Result<_, _>>()?,
        key: from.key.into_iter().map(String::into_boxed_str).collect(),
        valid_from_us: from.valid_from_us,
        valid_to_us: from.valid_to_us,
        source: from.source.into_boxed_str(),
        is_shared: from.shared,
        learns: kind == LimitKind::Window
            && from.after_restore == i32::from(ledger::AfterRestore::Learn),
        log,
    })
}

fn kind(from: &ledger::LimitRule) -> Result<LimitKind, MessageError> {
    match quota::LimitKind::try_from(from.kind) {
        Ok(quota::LimitKind::Window) => Ok(LimitKind::Window),
        Ok(quota::LimitKind::TokenBucket) if from.refill_interval_us <= 0 => Err(
            MessageError::Unsupported("limit.refill_interval_us", from.refill_interval_us),
        ),
        Ok(quota::LimitKind::TokenBucket) => Ok(LimitKind::TokenBucket {
            refill_interval_us: from.refill_interval_us,
            burst: units("limit.burst", from.burst)?,
        }),
        Ok(quota::LimitKind::Level) => Ok(LimitKind::Level),
        Ok(quota::LimitKind::Concurrency) => Ok(LimitKind::Concurrency),
        _ => Err(MessageError::Unsupported("limit.kind", from.kind.into())),
    }
}

/// Gives a limit's nominal length: a month and a billing period count 30 days, a year 365.
fn nominal_us(from: &ledger::LimitRule, kind: LimitKind) -> Result<i64, MessageError> {
    if let LimitKind::TokenBucket {
        refill_interval_us, ..
    } = kind
    {
        return Ok(refill_interval_us);
    }
    if matches!(kind, LimitKind::Level | LimitKind::Concurrency) {
        // Without end: it sizes nothing.
        return Ok(DAY_US);
    }
    let unit_us = match WindowUnit::try_from(from.window_unit) {
        Ok(WindowUnit::Minute) => MINUTE_US,
        Ok(WindowUnit::Hour) => MINUTE_US * 60,
        Ok(WindowUnit::Day) => DAY_US,
        Ok(WindowUnit::Week) => DAY_US * 7,
        Ok(WindowUnit::Month | WindowUnit::BillingPeriod) => DAY_US * 30,
        Ok(WindowUnit::Year) => DAY_US * 365,
        _ => {
            return Err(MessageError::Unsupported(
                "limit.window_unit",
                from.window_unit.into(),
            ));
        }
    };
    let count = i64::from(from.window_count.max(1));
    unit_us
        .checked_mul(count)
        .ok_or(MessageError::Unsupported("limit.window_count", count))
}

fn enforcement(value: i32) -> Result<Enforcement, MessageError> {
    match quota::Enforcement::try_from(value) {
        Ok(quota::Enforcement::Hard) => Ok(Enforcement::Hard),
        Ok(quota::Enforcement::Soft) => Ok(Enforcement::Soft),
        Ok(quota::Enforcement::Shadow) => Ok(Enforcement::Shadow),
        _ => Err(MessageError::Unsupported("limit.enforcement", value.into())),
    }
}

fn decision_log(value: i32, one_in: u32) -> Result<DecisionLog, MessageError> {
    match ledger::DecisionLog::try_from(value) {
        // The contract calls DENIED the default.
        Ok(ledger::DecisionLog::Denied | ledger::DecisionLog::Unspecified) => {
            Ok(DecisionLog::Denied)
        }
        Ok(ledger::DecisionLog::Off) => Ok(DecisionLog::Off),
        Ok(ledger::DecisionLog::Sampled) if one_in == 0 => {
            Err(MessageError::Unsupported("limit.decision_log_one_in", 0))
        }
        Ok(ledger::DecisionLog::Sampled) => Ok(DecisionLog::Sampled(one_in.into())),
        Ok(ledger::DecisionLog::All) => Ok(DecisionLog::All),
        Err(_) => Err(MessageError::Unsupported(
            "limit.decision_log",
            value.into(),
        )),
    }
}

fn failure_policy(value: i32) -> Result<FailurePolicy, MessageError> {
    match quota::FailurePolicy::try_from(value) {
        // The contract calls STANDBY the default.
        Ok(quota::FailurePolicy::Standby | quota::FailurePolicy::Unspecified) => {
            Ok(FailurePolicy::Standby)
        }
        Ok(quota::FailurePolicy::Ledger) => Ok(FailurePolicy::Ledger),
        Ok(quota::FailurePolicy::Closed) => Ok(FailurePolicy::Closed),
        Ok(quota::FailurePolicy::Open) => Ok(FailurePolicy::Open),
        Err(_) => Err(MessageError::Unsupported(
            "limit.failure_policy",
            value.into(),
        )),
    }
}

fn attribute_match(from: ledger::AttributeMatch) -> Result<AttributeMatch, MessageError> {
    let rule = match from.rule.ok_or(MessageError::Missing("match.rule"))? {
        Rule::Exact(value) => MatchRule::Exact(value.into_boxed_str()),
        Rule::Prefix(value) => MatchRule::Prefix(value.into_boxed_str()),
        Rule::Any(_) => MatchRule::Any,
        Rule::Set(set) => {
            let mut values: Vec<Box<str>> =
                set.values.into_iter().map(String::into_boxed_str).collect();
            values.sort_unstable();
            MatchRule::Set(values.into_boxed_slice())
        }
    };
    Ok(AttributeMatch {
        attribute: from.attribute.into_boxed_str(),
        rule,
    })
}
