//! Headers for an HTTP front end: the IETF's `RateLimit` fields, the older `X-RateLimit-*`, and `Retry-After`.
//!
//! Source: draft-ietf-httpapi-ratelimit-headers-10 (structured fields: lists of items with parameters).

use std::fmt::Write as _;

use quota_core::{Decision, LimitKind, LimitState};
use quota_proto::quota::Header;

/// Says which headers a front end should send with its answer.
pub(crate) fn headers(decision: &Decision) -> Vec<Header> {
    let mut told = Vec::new();
    let shown: Vec<&LimitState> = if decision.limits.is_empty() {
        decision.binding.iter().collect()
    } else {
        decision.limits.iter().collect()
    };
    let bounded: Vec<&LimitState> = shown
        .into_iter()
        .filter(|state| state.amount.is_some())
        .collect();
    if !bounded.is_empty() {
        told.push(header("RateLimit-Policy", list(&bounded, policy)));
        told.push(header("RateLimit", list(&bounded, service_limit)));
    }
    if let Some(binding) = decision
        .binding
        .as_ref()
        .filter(|state| state.amount.is_some())
    {
        told.push(header("X-RateLimit-Limit", most(binding).to_string()));
        told.push(header(
            "X-RateLimit-Remaining",
            binding.remaining.unwrap_or(0).to_string(),
        ));
        told.push(header(
            "X-RateLimit-Reset",
            seconds_up(binding.reset_after_us.unwrap_or(0)).to_string(),
        ));
    }
    if !decision.reason.allowed() {
        if let Some(us) = decision.retry_after_us {
            told.push(header("Retry-After", seconds_up(us).to_string()));
        }
    }
    told
}

fn header(name: &str, value: String) -> Header {
    Header {
        name: name.to_owned(),
        value,
    }
}

fn list(states: &[&LimitState], item: impl Fn(&LimitState) -> String) -> String {
    states
        .iter()
        .map(|state| item(state))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `"name";q=quota;w=window`
fn policy(state: &LimitState) -> String {
    let mut text = format!("{};q={}", quoted(&state.name), most(state));
    let window_us = match state.kind {
        LimitKind::TokenBucket {
            refill_interval_us, ..
        } => Some(refill_interval_us),
        _ => state
            .window_us
            .map(|(start, end)| end.saturating_sub(start)),
    };
    if let Some(us) = window_us {
        // Writing to a string can't fail.
        let _ = write!(text, ";w={}", seconds_up(us));
    }
    text
}

/// `"name";r=remaining;t=reset`
fn service_limit(state: &LimitState) -> String {
    let mut text = format!("{};r={}", quoted(&state.name), state.remaining.unwrap_or(0));
    if let Some(us) = state.reset_after_us {
        let _ = write!(text, ";t={}", seconds_up(us));
    }
    text
}

/// The most units that the limit gives at once.
fn most(state: &LimitState) -> u64 {
    match state.kind {
        LimitKind::TokenBucket { burst, .. } => burst,
        _ => state.amount.unwrap_or(0),
    }
}

/// A structured field's string: printable ASCII, quotes and backslashes escaped, the rest left out.
fn quoted(name: &str) -> String {
    let mut text = String::with_capacity(name.len().saturating_add(2));
    text.push('"');
    for character in name
        .chars()
        .filter(|character| matches!(character, ' '..='~'))
    {
        if matches!(character, '"' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push('"');
    text
}

fn seconds_up(us: i64) -> i64 {
    us.max(0).saturating_add(999_999) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use quota_core::{Enforcement, Reason};

    fn state(name: &str, amount: Option<u64>) -> LimitState {
        LimitState {
            tenant: "t".into(),
            name: name.into(),
            meter: "m".into(),
            kind: LimitKind::Window,
            enforcement: Enforcement::Hard,
            amount,
            used: 0,
            remaining: Some(3),
            reset_after_us: Some(1_000_001),
            window_us: Some((0, 60_000_000)),
            key: Vec::new(),
            source: "plan".into(),
            length_us: 0,
            is_hidden: false,
            as_of_us: 0,
        }
    }

    fn told(decision: &Decision) -> Vec<(String, String)> {
        headers(decision)
            .into_iter()
            .map(|header| (header.name, header.value))
            .collect()
    }

    fn decision(reason: Reason, binding: Option<LimitState>) -> Decision {
        Decision {
            reason,
            binding,
            retry_after_us: Some(2_500_000),
            limits: Vec::new(),
            subject: None,
        }
    }

    /// A denial tells policy, what remains, when it resets and when to come again, rounded up to whole seconds.
    #[test]
    fn a_denial_tells_everything() {
        let expected = [
            ("RateLimit-Policy", "\"a\\\"b\";q=10;w=60"),
            ("RateLimit", "\"a\\\"b\";r=3;t=2"),
            ("X-RateLimit-Limit", "10"),
            ("X-RateLimit-Remaining", "3"),
            ("X-RateLimit-Reset", "2"),
            ("Retry-After", "3"),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(
            expected,
            told(&decision(
                Reason::QuotaExhausted,
                Some(state("a\"b\r\n", Some(10)))
            ))
        );
    }

    /// What is unlimited has nothing to tell, and an admitted call is not told to come again.
    #[test]
    fn unlimited_tells_nothing() {
        assert!(told(&decision(Reason::Allowed, Some(state("a", None)))).is_empty());
        assert!(told(&decision(Reason::Allowed, None)).is_empty());
    }
}
