//! A limit as this process knows it, for people and headers.

use std::sync::Arc;

use crate::{
    bucket::Bucket,
    check::judge::refill_of,
    decision::LimitState,
    limit::LimitKind,
    matching::{Attributes, key_values},
    request::Units,
    tenants::Limit,
    time::Now,
};

struct Figures {
    used: Units,
    remaining: Option<Units>,
    reset_after_us: Option<i64>,
    window_us: Option<(i64, i64)>,
    as_of_us: i64,
}

/// Units that a call could still take, as last seen; `None` is unlimited.
pub(crate) fn remaining(limit: &Limit, bucket: Option<&Bucket>, now: Now) -> Option<Units> {
    let amount = limit.rule.amount?;
    let left = match limit.rule.kind {
        LimitKind::Window | LimitKind::Level | LimitKind::Concurrency => bucket
            .and_then(|bucket| bucket.current.as_ref())
            .map_or(amount, |window| window.remaining(amount)),
        LimitKind::TokenBucket { burst, .. } => {
            let refill = refill_of(&limit.rule)?;
            let tokens = bucket.and_then(|bucket| bucket.tokens.as_ref());
            let unknown = if amount == 0 { 0 } else { burst };
            tokens.map_or(unknown, |tokens| tokens.remaining(&refill, now))
        }
    };
    Some(left)
}

/// Whether a limit's figures are not for callers of this tenant: an ancestor's that is not shared.
pub(crate) fn is_hidden(limit: &Limit, viewer: &str) -> bool {
    !limit.rule.is_shared && *limit.tenant_name != *viewer
}

/// A limit as known here, as callers of the tenant `viewer` may see it.
pub(crate) fn limit_state(
    limit: &Limit,
    bucket: Option<&Bucket>,
    viewer: &str,
    attributes: &Attributes,
    now: Now,
) -> LimitState {
    let state = full_state(limit, bucket, attributes, now);
    if !is_hidden(limit, viewer) {
        return state;
    }
    let (kind, reset_after_us) = match state.kind {
        LimitKind::TokenBucket {
            refill_interval_us, ..
        } => {
            let kind = LimitKind::TokenBucket {
                refill_interval_us,
                burst: 0,
            };
            (kind, None)
        }
        kind => (kind, state.reset_after_us),
    };
    LimitState {
        kind,
        amount: None,
        used: 0,
        remaining: None,
        reset_after_us,
        source: Box::default(),
        is_hidden: true,
        ..state
    }
}

fn full_state(
    limit: &Limit,
    bucket: Option<&Bucket>,
    attributes: &Attributes,
    now: Now,
) -> LimitState {
    let rule = &limit.rule;
    let figures = match rule.kind {
        LimitKind::TokenBucket { .. } => token_figures(limit, bucket, now),
        _ => window_figures(limit, bucket, now),
    };
    let values = key_values(rule, attributes).map(Box::from);
    LimitState {
        tenant: Arc::clone(&limit.tenant_name),
        name: Arc::clone(&rule.name),
        meter: Arc::clone(&rule.meter),
        kind: rule.kind,
        enforcement: rule.enforcement,
        amount: rule.amount,
        used: figures.used,
        remaining: figures.remaining,
        reset_after_us: figures.reset_after_us,
        window_us: figures.window_us,
        key: rule.key.iter().cloned().zip(values).collect(),
        source: rule.source.clone(),
        as_of_us: figures.as_of_us,
        length_us: match rule.kind {
            LimitKind::Level | LimitKind::Concurrency => 0,
            _ => rule.nominal_us,
        },
        is_hidden: false,
    }
}

fn window_figures(limit: &Limit, bucket: Option<&Bucket>, now: Now) -> Figures {
    let Some(window) = bucket.and_then(|bucket| bucket.current.as_ref()) else {
        return Figures {
            used: 0,
            remaining: limit.rule.amount,
            reset_after_us: None,
            window_us: None,
            as_of_us: now.ledger_us,
        };
    };
    Figures {
        used: window.used(),
        remaining: limit.rule.amount.map(|amount| window.remaining(amount)),
        reset_after_us: (!window.info.is_standing())
            .then(|| window.info.end_us.saturating_sub(now.ledger_us)),
        window_us: (!window.info.is_standing())
            .then_some((window.info.start_us, window.info.end_us)),
        as_of_us: window
            .fleet
            .map_or(now.ledger_us, |(fleet, _)| fleet.as_of_us),
    }
}

fn token_figures(limit: &Limit, bucket: Option<&Bucket>, now: Now) -> Figures {
    let tokens = bucket.and_then(|bucket| bucket.tokens.as_ref());
    let left = remaining(limit, bucket, now);
    let refill = refill_of(&limit.rule);
    let used = refill
        .zip(left)
        .map_or(0, |(refill, left)| refill.burst.saturating_sub(left));
    let full_after_us = refill
        .filter(|refill| refill.units > 0)
        .map(|refill| refill.time_for(used));
    Figures {
        used,
        remaining: left,
        reset_after_us: full_after_us,
        window_us: None,
        as_of_us: tokens
            .and_then(|tokens| tokens.as_of_us())
            .unwrap_or(now.ledger_us),
    }
}
