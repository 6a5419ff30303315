//! What to do next about a bucket that is short of units. Pure: looks, decides, changes nothing.

use crate::{
    bucket::{
        Bucket,
        shard::{ShardState, place_of},
        window::{Flight, Pool, Window},
    },
    effect::PoolFault,
    limit::LimitKind,
    links::Links,
    tenants::Limit,
    time::Now,
};

/// How long a check may wait for a step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Budget {
    /// As long as Redis may take.
    Redis,
    /// As long as the ledger may take.
    Ledger,
}

/// The next step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plan {
    /// Something is under way.
    Wait(Budget),
    /// Ask the ledger for the window.
    Open,
    /// Ask the ledger for more.
    Allot(Option<PoolFault>),
    /// Ask the pool.
    Grant(Budget),
    /// Follow the pool's channel first.
    Subscribe,
    /// Ask the ledger for the token bucket's shard.
    Shard,
    /// Ask the token bucket.
    Take,
    /// Renew the lease of units in flight, which is over.
    Renew,
    /// Nobody who could answer is there.
    Unreachable,
}

impl Plan {
    /// How long a check may wait for it; `None` where waiting is of no use.
    pub(crate) const fn budget(self) -> Option<Budget> {
        match self {
            Self::Wait(budget) | Self::Grant(budget) => Some(budget),
            Self::Open | Self::Allot(..) | Self::Subscribe | Self::Shard | Self::Renew => {
                Some(Budget::Ledger)
            }
            Self::Take => Some(Budget::Redis),
            Self::Unreachable => None,
        }
    }
}

/// The next step for a bucket.
pub(crate) fn plan(limit: &Limit, bucket: &Bucket, links: &Links, now: Now) -> Plan {
    match limit.rule.kind {
        LimitKind::TokenBucket { .. } => plan_tokens(limit, bucket, links, now),
        _ => plan_window(limit, bucket, links, now),
    }
}

fn plan_window(limit: &Limit, bucket: &Bucket, links: &Links, now: Now) -> Plan {
    if bucket
        .opening
        .is_some_and(|opening| opening.is_flying && opening.at_us <= now.ledger_us)
    {
        return Plan::Wait(Budget::Ledger);
    }
    let is_ledger_away = bucket.is_ledger_away(links, now);
    let Some(window) = bucket.current.as_ref() else {
        let is_opening_early = bucket.opening.is_some_and(|opening| opening.is_flying);
        return if is_opening_early {
            Plan::Wait(Budget::Ledger)
        } else if is_ledger_away {
            Plan::Unreachable
        } else {
            Plan::Open
        };
    };
    match window.flight {
        Some(Flight::Allot(_)) => return Plan::Wait(Budget::Ledger),
        Some(Flight::Grant(..)) => return Plan::Wait(budget_of(window)),
        None => {}
    }
    if window.is_fenced(now) {
        return match window.renewing {
            _ if is_ledger_away => Plan::Unreachable,
            true => Plan::Wait(Budget::Ledger),
            false => Plan::Renew,
        };
    }
    match &window.pool {
        Some(pool) if window.fault.is_none() && !window.extend => {
            let goes_on = limit.rule.goes_on_without_pools() && !bucket.counts_values;
            plan_pool(window, pool, links, now, goes_on && !is_ledger_away)
        }
        _ if is_ledger_away => Plan::Unreachable,
        _ => Plan::Allot(window.fault),
    }
}

/// Proof that has to be renewed is worth a longer wait than units.
const fn budget_of(window: &Window) -> Budget {
    if window.proof.is_some() || window.await_channel {
        Budget::Ledger
    } else {
        Budget::Redis
    }
}

fn plan_pool(window: &Window, pool: &Pool, links: &Links, now: Now, goes_on: bool) -> Plan {
    if links.redis.is_down(now.real_us) {
        return if goes_on {
            Plan::Allot(Some(PoolFault::Unreachable))
        } else {
            Plan::Unreachable
        };
    }
    if window.await_channel && links.confirmed(&pool.channel).is_none() {
        return Plan::Subscribe;
    }
    Plan::Grant(budget_of(window))
}

fn plan_tokens(limit: &Limit, bucket: &Bucket, links: &Links, now: Now) -> Plan {
    if bucket
        .tokens
        .as_ref()
        .is_some_and(|tokens| tokens.flight.is_some())
    {
        return Plan::Wait(Budget::Redis);
    }
    let place = place_of(bucket.key_hash);
    let state = limit.shards.get(place);
    if state.is_some_and(|state| state.is_flying) {
        return Plan::Wait(Budget::Ledger);
    }
    if state.is_some_and(ShardState::is_open) {
        return if links.redis.is_down(now.real_us) {
            Plan::Unreachable
        } else {
            Plan::Take
        };
    }
    let refused_until_us = state.map_or(0, |state| state.refused_until_us);
    if links.ledger.is_down(now.real_us) || now.real_us < refused_until_us {
        Plan::Unreachable
    } else {
        Plan::Shard
    }
}
