//! Why a call would be decided as it would be: what each limit has to say about it. Takes nothing.

use std::sync::Arc;

use crate::{
    bucket::window::Window,
    check::state::limit_state,
    decision::LimitState,
    effect::PoolFault,
    engine::Engine,
    limit::{FailurePolicy, LimitRule},
    matching::{Attributes, matches},
    request::{Cost, Units},
    tenants::Lookup,
    time::Now,
};

/// Why a limit does not count a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unmatched {
    /// The call asks for nothing of its meter.
    Meter,
    /// An attribute is missing or has another value.
    Attribute(Box<str>),
    /// It is not in force yet.
    NotYet,
    /// It is not in force any more.
    NoLonger,
}

/// A pool as last seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolView {
    /// timeline × 2^32 + n.
    pub generation: u64,
    /// Units moved to it.
    pub total: Units,
    /// Units that it could give.
    pub free: Units,
    /// Holders that lease from it.
    pub holders: u64,
    /// What went wrong there.
    pub fault: Option<PoolFault>,
}

/// Proof that too few units are left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProofView {
    /// The ledger's, else a pool's.
    pub by_ledger: bool,
    /// It covers calls that miss at least so much.
    pub need: Units,
    /// Real µs since the connection that would end it was last heard of.
    pub age_us: u64,
}

/// What one limit has to say about a call.
#[derive(Clone, PartialEq, Debug)]
pub struct Explanation {
    /// The limit.
    pub state: LimitState,
    /// Why it does not count the call; `None` = it does.
    pub unmatched: Option<Unmatched>,
    /// Units that the call would take of it.
    pub cost: Units,
    /// What it does while no authority answers.
    pub failure_policy: FailurePolicy,
    /// Units that this process may spend.
    pub free: Units,
    /// Units that reservations hold here.
    pub held: Units,
    /// Units consumed here in this window.
    pub consumed: Units,
    /// Units that settlements above their reserve owe.
    pub debt: Units,
    /// Units that left the limit, as last heard.
    pub allotted: Units,
    /// Resets of this window.
    pub round: u32,
    /// Its pool.
    pub pool: Option<PoolView>,
    /// What a denial would rest on.
    pub proof: Option<ProofView>,
}

impl Engine {
    /// Explains every limit of a tenant and its ancestors for a call; `None` where the tenant isn't known (yet).
    pub fn explain(
        &mut self,
        now: Now,
        tenant: &str,
        costs: &[Cost],
        attributes: &Attributes,
    ) -> Option<Vec<Explanation>> {
        let name: Arc<str> = Arc::from(tenant);
        let Lookup::Known(index) = self.catalog.look_up(now, &name, self.outbox.watch_list())
        else {
            return None;
        };
        let limits = self.catalog.all_limits(index).to_vec();
        let mut explanations = Vec::with_capacity(limits.len());
        for index in limits {
            let key = self.find_bucket_for(index, attributes);
            if let Some(key) = key {
                self.turn_if_over(now, key);
            }
            let Some(limit) = self.catalog.limit(index) else {
                continue;
            };
            let cost = costs.iter().find(|cost| cost.meter == limit.rule.meter);
            let bucket = key.and_then(|key| self.buckets.get(key));
            let state = limit_state(limit, bucket, tenant, attributes, now);
            let unmatched = unmatched(&limit.rule, cost, attributes, now);
            let window = bucket.and_then(|bucket| bucket.current.as_ref());
            // What is held here of an ancestor's limit, and what its pool has, are its figures as well.
            let window = window.filter(|_| !state.is_hidden);
            let units = cost.map_or(0, |cost| cost.units);
            explanations.push(self.explanation(now, state, unmatched, units, &limit.rule, window));
        }
        Some(explanations)
    }

    /// Real µs since ledger and Redis were last heard of; `None` = not connected.
    #[must_use]
    pub fn link_ages_us(&self, now: Now) -> (Option<u64>, Option<u64>) {
        let age = |heard_us: u64| (heard_us > 0).then(|| now.real_us.saturating_sub(heard_us));
        let is_watched = self.links.watch_epoch().is_some();
        (
            age(self.links.ledger_heard_us()).filter(|_| is_watched),
            age(self.links.redis_heard_us()),
        )
    }

    fn explanation(
        &self,
        now: Now,
        state: LimitState,
        unmatched: Option<Unmatched>,
        units: Units,
        rule: &LimitRule,
        window: Option<&Window>,
    ) -> Explanation {
        let cost = if unmatched.is_none() { units } else { 0 };
        let balance = window.map(|window| &window.balance);
        let (ledger_us, redis_us) = self.link_ages_us(now);
        Explanation {
            state,
            unmatched,
            cost,
            failure_policy: rule.failure_policy,
            free: balance.map_or(0, |balance| balance.free),
            held: balance.map_or(0, |balance| balance.held),
            consumed: balance.map_or(0, crate::bucket::balance::Balance::spent),
            debt: balance.map_or(0, |balance| balance.debt),
            allotted: window.map_or(0, |window| window.info.allotted),
            round: window.map_or(0, |window| window.info.round),
            pool: window.and_then(pool_view),
            proof: window
                .and_then(|window| window.proof.as_ref())
                .and_then(|proof| {
                    let by_ledger = proof.is_by_ledger();
                    let age_us = if by_ledger { ledger_us } else { redis_us };
                    age_us.map(|age_us| ProofView {
                        by_ledger,
                        need: proof.need(),
                        age_us,
                    })
                }),
        }
    }
}

fn pool_view(window: &Window) -> Option<PoolView> {
    window.pool.as_ref().map(|pool| PoolView {
        generation: pool.generation,
        total: pool.total,
        free: pool.free,
        holders: pool.holders,
        fault: window.fault,
    })
}

fn unmatched(
    rule: &LimitRule,
    cost: Option<&Cost>,
    attributes: &Attributes,
    now: Now,
) -> Option<Unmatched> {
    if rule.valid_from_us.is_some_and(|from| now.ledger_us < from) {
        return Some(Unmatched::NotYet);
    }
    if rule.valid_to_us.is_some_and(|to| to <= now.ledger_us) {
        return Some(Unmatched::NoLonger);
    }
    if cost.is_none() {
        return Some(Unmatched::Meter);
    }
    rule.matches
        .iter()
        .find(|wanted| !matches(wanted, attributes))
        .map(|wanted| Unmatched::Attribute(wanted.attribute.clone()))
}
