//! Counters of the data plane. Cheap enough to be always on: relaxed atomics, no locks.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use quota_core::Reason;
use quota_proto::quota::{DecisionReason, ErrorReason};
use serde_json::{Map, Value, json};

const BUCKETS: usize = 24;
const DECISIONS: usize = 13;
const ERRORS: usize = 64;

/// Counts of one process.
pub(crate) struct Stats {
    decisions: [AtomicU64; DECISIONS],
    errors: [AtomicU64; ERRORS],
    /// Checks that took below 2^i µs.
    latency: [AtomicU64; BUCKETS],
    records: AtomicU64,
    bad_messages: AtomicU64,
    last_bad_message: Mutex<String>,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            decisions: std::array::from_fn(|_| AtomicU64::new(0)),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            latency: std::array::from_fn(|_| AtomicU64::new(0)),
            records: AtomicU64::new(0),
            bad_messages: AtomicU64::new(0),
            last_bad_message: Mutex::new(String::new()),
        }
    }
}

fn add(counter: Option<&AtomicU64>, count: u64) {
    if let Some(counter) = counter {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

impl Stats {
    /// Counts a decided check and how long it took.
    pub(crate) fn decided(&self, reason: Reason, took_us: u64) {
        add(self.decisions.get(slot(reason)), 1);
        let bucket =
            usize::try_from(u64::BITS.saturating_sub(took_us.leading_zeros())).unwrap_or(BUCKETS);
        add(self.latency.get(bucket.min(BUCKETS.saturating_sub(1))), 1);
    }

    /// Counts a call that failed.
    pub(crate) fn refused(&self, reason: ErrorReason) {
        add(
            usize::try_from(reason as i32)
                .ok()
                .and_then(|index| self.errors.get(index)),
            1,
        );
    }

    /// Counts usage records made durable.
    pub(crate) fn recorded(&self, count: u64) {
        self.records.fetch_add(count, Ordering::Relaxed);
    }

    /// Notes a message of the ledger or the control plane that could not be used.
    pub(crate) fn bad_message(&self, what: &str) {
        self.bad_messages.fetch_add(1, Ordering::Relaxed);
        what.clone_into(&mut self.last_bad_message.lock());
    }

    /// Tells everything counted here.
    pub(crate) fn json(&self) -> Map<String, Value> {
        let counts: Vec<u64> = self
            .decisions
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        let mut denied = Map::new();
        let (mut checks, mut admitted) = (0_u64, 0_u64);
        for (reason, count) in REASONS.into_iter().zip(counts) {
            checks = checks.saturating_add(count);
            if reason.allowed() {
                admitted = admitted.saturating_add(count);
            } else if count > 0 {
                denied.insert(short(reason).to_owned(), count.into());
            }
        }
        let mut told = Map::new();
        told.insert("checks".into(), checks.into());
        told.insert("admitted".into(), admitted.into());
        told.insert("denied".into(), denied.into());
        told.insert("errors".into(), self.errors_json().into());
        told.insert(
            "records".into(),
            self.records.load(Ordering::Relaxed).into(),
        );
        told.insert("latency_us".into(), self.latency_json());
        told.insert(
            "bad_messages".into(),
            self.bad_messages.load(Ordering::Relaxed).into(),
        );
        told.insert(
            "last_bad_message".into(),
            self.last_bad_message.lock().clone().into(),
        );
        told
    }

    fn errors_json(&self) -> Map<String, Value> {
        let mut errors = Map::new();
        for (index, count) in self.errors.iter().enumerate() {
            let reason = i32::try_from(index)
                .ok()
                .and_then(|value| ErrorReason::try_from(value).ok());
            if let (Some(reason), count @ 1..) = (reason, count.load(Ordering::Relaxed)) {
                errors.insert(quota_proto::reason_name(reason).to_owned(), count.into());
            }
        }
        errors
    }

    fn latency_json(&self) -> Value {
        let buckets: Vec<u64> = self
            .latency
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        let count: u64 = buckets
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count));
        json!({"count": count, "p50": quantile_us(&buckets, count, 50), "p99": quantile_us(&buckets, count, 99), "buckets": buckets})
    }
}

/// Upper bound in µs of the bucket in which the quantile lies; 0 where nothing was counted.
fn quantile_us(buckets: &[u64], count: u64, percent: u64) -> u64 {
    let wanted = count.saturating_mul(percent).div_ceil(100);
    let mut seen = 0_u64;
    for (index, in_bucket) in buckets.iter().enumerate() {
        seen = seen.saturating_add(*in_bucket);
        if seen >= wanted && wanted > 0 {
            return 1_u64
                .checked_shl(u32::try_from(index).unwrap_or(63))
                .unwrap_or(u64::MAX);
        }
    }
    0
}

const REASONS: [Reason; DECISIONS] = [
    Reason::Allowed,
    Reason::SoftLimitExceeded,
    Reason::ShadowLimitExceeded,
    Reason::Uncovered,
    Reason::QuotaExhausted,
    Reason::RateLimited,
    Reason::CostExceedsLimit,
    Reason::FeatureDisabled,
    Reason::TenantUnknown,
    Reason::TenantSuspended,
    Reason::MeterUnknown,
    Reason::AuthorityUnreachable,
    Reason::SidecarFull,
];

fn slot(reason: Reason) -> usize {
    REASONS
        .iter()
        .position(|known| *known == reason)
        .unwrap_or(DECISIONS)
}

/// A reason's wire name without its prefix.
fn short(reason: Reason) -> &'static str {
    let name = DecisionReason::as_str_name(&quota_proto::decision::reason(reason));
    name.strip_prefix("DECISION_REASON_").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Denials are told by name, admissions together, and quantiles are upper bounds of what was measured.
    #[test]
    fn counts_are_told() {
        let stats = Stats::default();
        for _ in 0..99 {
            stats.decided(Reason::Allowed, 40);
        }
        stats.decided(Reason::QuotaExhausted, 5_000);
        stats.refused(ErrorReason::FieldRequired);
        let told = Value::Object(stats.json());
        assert_eq!(json!(100), told["checks"]);
        assert_eq!(json!(99), told["admitted"]);
        assert_eq!(json!({"QUOTA_EXHAUSTED": 1}), told["denied"]);
        assert_eq!(json!({"FIELD_REQUIRED": 1}), told["errors"]);
        assert_eq!(
            (json!(64), json!(64)),
            (
                told["latency_us"]["p50"].clone(),
                told["latency_us"]["p99"].clone()
            )
        );
    }
}
