//! What one limit says to one call.

use crate::{
    bucket::{Bucket, shard::place_of, token::Refill, values::Told, window::Window},
    check::aside::{Aside, Turn},
    decision::Reason,
    engine::EngineConfig,
    hash::value_hash,
    lease::plan::{Budget, Plan, plan},
    limit::{Enforcement, FailurePolicy, LimitKind, LimitRule},
    links::Links,
    mutant::{self, Mutant},
    request::Units,
    slab::Key,
    tenants::Limit,
    time::Now,
};

/// What one limit says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It has the units.
    Fits,
    /// It has not, and admits the call all the same.
    Over,
    /// Nobody answers, and what this process may admit on its own has the units.
    Standing,
    /// Nobody knows, and it admits the call.
    Uncovered,
    /// No, and so many ledger µs until the same call would pass.
    Denied(Reason, Option<i64>),
    /// Units are missing, and may be had within this budget.
    Short(Budget),
}

/// One limit that one call must pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge {
    /// The limit.
    pub(crate) limit: u32,
    /// Its bucket, where there is one.
    pub(crate) bucket: Option<Key>,
    /// Units.
    pub(crate) units: Units,
    /// What it says.
    pub(crate) verdict: Verdict,
}

/// Everything else that a verdict depends on.
#[derive(Clone, Copy)]
pub(crate) struct Sight<'a> {
    /// The present.
    pub(crate) now: Now,
    /// Connections.
    pub(crate) links: &'a Links,
    /// Bounds.
    pub(crate) config: &'a EngineConfig,
    /// The call can't wait any longer.
    pub(crate) is_last: bool,
    /// When the call came.
    pub(crate) turn: Turn,
}

/// What refills a token bucket limit.
pub(crate) fn refill_of(rule: &LimitRule) -> Option<Refill> {
    match rule.kind {
        LimitKind::TokenBucket {
            refill_interval_us,
            burst,
        } => Some(Refill {
            units: rule.amount?,
            interval_us: refill_interval_us.max(1),
            burst,
        }),
        LimitKind::Window | LimitKind::Level | LimitKind::Concurrency => None,
    }
}

/// Whether a call of this cost needs no bucket: nothing is counted, or nothing can ever fit.
pub(crate) fn judge_without_bucket(rule: &LimitRule, units: Units) -> Option<Verdict> {
    let Some(amount) = rule.amount else {
        return Some(Verdict::Fits);
    };
    let most = match rule.kind {
        LimitKind::Window | LimitKind::Level | LimitKind::Concurrency => amount,
        LimitKind::TokenBucket { .. } if amount == 0 => 0,
        LimitKind::TokenBucket { burst, .. } => burst,
    };
    match (rule.kind, rule.enforcement) {
        (LimitKind::TokenBucket { .. }, _) if units == 0 && amount != 0 => None,
        _ if units == 0 => Some(Verdict::Fits),
        (_, Enforcement::Hard) if units > most => {
            Some(Verdict::Denied(Reason::CostExceedsLimit, None))
        }
        _ => None,
    }
}

/// What a limit says to a call of this cost.
pub(crate) fn judge(
    limit: &Limit,
    bucket: &mut Bucket,
    units: Units,
    sight: &Sight<'_>,
) -> Verdict {
    let proved = match refill_of(&limit.rule) {
        Some(refill) => judge_tokens(bucket, &refill, units, sight),
        None => judge_window(&limit.rule, bucket, units, sight),
    };
    match proved {
        Proved::Fits => Verdict::Fits,
        // Where nobody can be asked, whoever they are for won't get the rest.
        Proved::Aside => plan(limit, bucket, sight.links, sight.now)
            .budget()
            .map_or(Verdict::Fits, Verdict::Short),
        Proved::Roughly(_)
            if !sight.is_last && plan(limit, bucket, sight.links, sight.now) == Plan::Take =>
        {
            Verdict::Short(Budget::Redis)
        }
        Proved::Kept | Proved::Unsettled(_) if !sight.is_last => Verdict::Short(Budget::Ledger),
        Proved::Exhausted(retry_after_us)
        | Proved::Roughly(retry_after_us)
        | Proved::Unsettled(retry_after_us) => {
            match (limit.rule.enforcement, limit.rule.kind) {
                (Enforcement::Soft | Enforcement::Shadow, _) => Verdict::Over,
                (Enforcement::Hard, LimitKind::TokenBucket { .. }) => {
                    // The limit itself may end before the tokens have come.
                    let left_us = (limit.rule.valid_to_us)
                        .map(|to_us| to_us.saturating_sub(sight.now.ledger_us));
                    let retry_after_us = retry_after_us
                        .map(|after_us| left_us.map_or(after_us, |left_us| left_us.min(after_us)));
                    Verdict::Denied(Reason::RateLimited, retry_after_us)
                }
                (Enforcement::Hard, _) => Verdict::Denied(Reason::QuotaExhausted, retry_after_us),
            }
        }
        Proved::Nothing | Proved::Kept => judge_unproved(limit, bucket, units, sight),
    }
}

/// What a limit on distinct values says to one value. A peek asks nobody: it answers from what is known here.
pub(crate) fn judge_value(
    limit: &Limit,
    bucket: &mut Bucket,
    value: &str,
    is_peek: bool,
    sight: &Sight<'_>,
) -> Verdict {
    let Sight {
        now, links, config, ..
    } = *sight;
    let notices = bucket.notices;
    let told = bucket.current.as_ref().and_then(|window| {
        window.told(
            value_hash(window.info.id, value),
            notices,
            links,
            now,
            config,
        )
    });
    match told {
        Some(Told::Counted) => return Verdict::Fits,
        Some(Told::Over) if limit.rule.enforcement != Enforcement::Hard => return Verdict::Over,
        Some(Told::Denied { .. }) => {
            let end_us = bucket.current.as_ref().map(|window| window.info.end_us);
            let until_us = limit.rule.valid_to_us.into_iter().chain(end_us).min();
            let retry_after_us = until_us.map(|until_us| until_us.saturating_sub(now.ledger_us));
            return Verdict::Denied(Reason::QuotaExhausted, retry_after_us);
        }
        Some(Told::Over) | None if is_peek => return Verdict::Fits,
        Some(Told::Over) | None => {}
    }
    let budget = plan(limit, bucket, links, now).budget();
    match budget.filter(|_| !sight.is_last) {
        Some(budget) => Verdict::Short(budget),
        None => unreachable_verdict(&limit.rule, bucket, 1),
    }
}

/// What a limit says where the units are not here and nobody has proved that there are none.
fn judge_unproved(limit: &Limit, bucket: &mut Bucket, units: Units, sight: &Sight<'_>) -> Verdict {
    let budget = plan(limit, bucket, sight.links, sight.now)
        .budget()
        .filter(|_| !sight.is_last);
    if budget.is_none() || sight.links.redis.is_down(sight.now.real_us) {
        // What is kept apart is for this, and costs no wait.
        let is_covered = bucket
            .current
            .as_mut()
            .is_some_and(|window| !window.is_fenced(sight.now) && window.call_up(units));
        if is_covered {
            return Verdict::Fits;
        }
    }
    match budget {
        Some(budget) => Verdict::Short(budget),
        None if has_standing(limit, bucket, units, sight) => Verdict::Standing,
        None if is_uncovered_full(limit, bucket, units, sight.now) => {
            Verdict::Denied(Reason::AuthorityUnreachable, None)
        }
        None => unreachable_verdict(&limit.rule, bucket, units),
    }
}

/// Whether policy `open` has admitted as much of a token bucket as it may while nobody answers.
fn is_uncovered_full(limit: &Limit, bucket: &mut Bucket, units: Units, now: Now) -> bool {
    let is_open = limit.rule.enforcement == Enforcement::Hard
        && limit.rule.failure_policy == FailurePolicy::Open;
    let refill = refill_of(&limit.rule).filter(|_| is_open && units > 0);
    refill.is_some_and(|refill| {
        let tokens = bucket.tokens.get_or_insert_default();
        !tokens.take_uncovered(units, &refill, now.ledger_us, true)
    })
}

/// Whether the standing share of a token bucket covers a call, where the limit's policy is to go on without an authority.
fn has_standing(limit: &Limit, bucket: &mut Bucket, units: Units, sight: &Sight<'_>) -> bool {
    let goes_on = limit.rule.enforcement == Enforcement::Hard
        && matches!(
            limit.rule.failure_policy,
            FailurePolicy::Standby | FailurePolicy::Ledger
        );
    goes_on && units > 0 && spend_standing(limit, bucket, units, sight.now, true)
}

/// Spends units of a token bucket's standing share, or only looks whether they are there.
pub(crate) fn spend_standing(
    limit: &Limit,
    bucket: &mut Bucket,
    units: Units,
    now: Now,
    is_look: bool,
) -> bool {
    let state = limit.shards.get(place_of(bucket.key_hash));
    let (Some(refill), Some(state)) = (refill_of(&limit.rule), state) else {
        return false;
    };
    let share_ppm = state.share.ppm(now.real_us);
    bucket.tokens.as_deref_mut().is_some_and(|tokens| {
        tokens.take_standing(units, &refill, share_ppm, now.ledger_us, is_look)
    })
}

/// What a limit says when nobody answers in time.
///
/// Policy `open` admits as much again as the limit's amount, in each window of each key and in each process, and of a token
/// bucket what another one would: beyond that a lost authority would be no limit at all.
pub(crate) fn unreachable_verdict(rule: &LimitRule, bucket: &Bucket, units: Units) -> Verdict {
    let uncovered = bucket
        .current
        .as_ref()
        .map_or(bucket.over_early, |window| window.uncovered);
    let is_within = |amount: Units| uncovered.saturating_add(units) <= amount;
    match (rule.enforcement, rule.failure_policy) {
        _ if units == 0 => Verdict::Fits,
        (Enforcement::Soft | Enforcement::Shadow, _) => Verdict::Uncovered,
        (_, FailurePolicy::Open) if rule.amount.is_none_or(is_within) => Verdict::Uncovered,
        (Enforcement::Hard, _) => Verdict::Denied(Reason::AuthorityUnreachable, None),
    }
}

enum Proved {
    Fits,
    /// Units are there, set aside for calls that came before.
    Aside,
    /// Units are kept for a restart and are being set free.
    Kept,
    Exhausted(Option<i64>),
    /// The same, and units of this process are on their way back: whoever said so may not have had them yet.
    Unsettled(Option<i64>),
    /// The same, and the shard may know a better time.
    Roughly(Option<i64>),
    Nothing,
}

impl Proved {
    /// What is so where `free` units are here, enough for a call, of which some may be set aside for earlier ones.
    fn of(free: Units, units: Units, aside: Option<&Aside>, turn: Turn) -> Self {
        let spare = free.saturating_sub(units);
        let is_spare = aside.is_none_or(|aside| {
            aside.before(Turn::NEWCOMER) <= spare || aside.before(turn) <= spare
        });
        if is_spare || mutant::is(Mutant::AsideTaken) {
            Self::Fits
        } else {
            Self::Aside
        }
    }
}

fn judge_window(rule: &LimitRule, bucket: &mut Bucket, units: Units, sight: &Sight<'_>) -> Proved {
    let amount = rule.amount.unwrap_or(Units::MAX);
    let aside = bucket.aside.as_deref();
    let Some(window) = &mut bucket.current else {
        return Proved::Nothing;
    };
    let kind = rule.kind;
    // The limit itself may end before its window does; one without end only ends so.
    let until_us = rule
        .valid_to_us
        .map_or(window.info.end_us, |to_us| to_us.min(window.info.end_us));
    let retry_after_us = (!kind.is_standing() || rule.valid_to_us.is_some())
        .then(|| until_us.saturating_sub(sight.now.ledger_us));
    if window.is_fenced(sight.now) {
        return Proved::Nothing;
    }
    // The amount as last heard is the present one only while a raise or a reset would have been heard.
    let is_amount_current = sight
        .links
        .is_watch_current(sight.now.real_us, sight.config.proof_age_us);
    if kind != LimitKind::Level && is_amount_current && window.is_own_use_full(units, amount) {
        return Proved::Exhausted(retry_after_us);
    }
    let missing = window.balance.missing(units);
    if missing == 0 {
        return Proved::of(window.balance.free, units, aside, sight.turn);
    }
    if window.balance.kept > 0 {
        // They are there, and no proof of a pool says anything before they are free.
        return Proved::Kept;
    }
    if is_proved(window, missing, sight) {
        if window.call_up(units) {
            return Proved::Fits;
        }
        if window.returning {
            Proved::Unsettled(retry_after_us)
        } else {
            Proved::Exhausted(retry_after_us)
        }
    } else {
        Proved::Nothing
    }
}

fn is_proved(window: &Window, missing: Units, sight: &Sight<'_>) -> bool {
    window.proof.is_some_and(|proof| {
        let channel = window.pool.as_ref().map(|pool| &*pool.channel);
        proof.covers(missing)
            && proof.is_current(
                sight.links,
                channel,
                sight.now.real_us,
                sight.config.proof_age_us,
            )
    })
}

fn judge_tokens(bucket: &mut Bucket, refill: &Refill, units: Units, sight: &Sight<'_>) -> Proved {
    let aside = bucket.aside.as_deref();
    let tokens = bucket.tokens.get_or_insert_default();
    let now = sight.now;
    if units == 0 {
        return if tokens.is_stale(now.real_us) {
            Proved::Nothing
        } else {
            Proved::Fits
        };
    }
    if units > refill.burst || refill.units == 0 {
        return Proved::Exhausted(None);
    }
    let free = tokens.free(now.real_us);
    if free >= units {
        return Proved::of(free, units, aside, sight.turn);
    }
    let denied_for = tokens.denied_for(units, refill, now);
    match denied_for {
        None => Proved::Nothing,
        some if tokens.is_denial_rough(units, now.real_us) => Proved::Roughly(some),
        some => Proved::Exhausted(some),
    }
}
