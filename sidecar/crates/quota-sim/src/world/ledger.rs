//! The ledger's rules for handing out units, as its own pure module has them.

use std::{collections::BTreeMap, sync::Arc};

use quota_core::{
    AllotAnswer, AllotAsk, Enforcement, FailurePolicy, Holder, KeyHash, LimitKind, LimitRule,
    PoolFault, WindowId, WindowInfo, WindowUse,
};

use super::redis::Redis;

/// A limit's windows.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Ledger µs.
    pub length_us: i64,
    /// Begins at first use instead of at multiples of its length.
    pub is_rolling: bool,
}

#[derive(Clone, Debug, Default)]
struct Lease {
    seq: u64,
    granted: u64,
    returned: u64,
    last: Option<AllotAnswer>,
    returned_lost: BTreeMap<u64, u64>,
    consumed: (u64, u64),
}

#[derive(Clone, Debug)]
struct Generation {
    number: u64,
    total: u64,
    credited: u64,
    is_live: bool,
}

type Identity = (Arc<str>, Arc<str>, KeyHash);

/// One window.
#[derive(Clone, Debug)]
pub struct Window {
    identity: Identity,
    /// Bounds.
    pub start_us: i64,
    /// Bounds.
    pub end_us: i64,
    id: WindowId,
    version: u64,
    amount: u64,
    /// The highest amount that was in force.
    pub ceiling: u64,
    /// Units out.
    pub allotted: u64,
    generations: Vec<Generation>,
    leases: BTreeMap<Holder, Lease>,
    wanted: u64,
}

/// A ledger.
#[derive(Debug, Default)]
pub struct Ledger {
    /// (tenant, limit) → rule and plan.
    pub limits: BTreeMap<(Arc<str>, Arc<str>), (LimitRule, Plan)>,
    /// All windows ever.
    pub windows: Vec<Window>,
    generations: u64,
    shards: BTreeMap<(Arc<str>, Arc<str>), u64>,
    shard_asks: BTreeMap<(Holder, Arc<str>, Arc<str>), u64>,
    /// Notices to be sent on all watch streams.
    pub notices: Vec<Identity>,
}

/// A hard window limit.
#[must_use]
pub fn window_rule(name: &str, meter: &str, amount: u64) -> LimitRule {
    LimitRule {
        name: name.into(),
        meter: meter.into(),
        kind: LimitKind::Window,
        amount: Some(amount),
        amount_version: 1,
        enforcement: Enforcement::Hard,
        failure_policy: FailurePolicy::Closed,
        matches: Box::default(),
        key: Box::default(),
        valid_from_us: None,
        valid_to_us: None,
        source: "plan".into(),
        is_rolling: false,
        nominal_us: 60_000_000,
    }
}

impl Ledger {
    fn window_at(&mut self, ask: &AllotAsk) -> Option<usize> {
        let identity = (ask.tenant.clone(), ask.limit.clone(), ask.key_hash);
        let (rule, plan) = self
            .limits
            .get(&(ask.tenant.clone(), ask.limit.clone()))?
            .clone();
        let holds = |window: &Window| {
            window.identity == identity && window.start_us <= ask.at_us && ask.at_us < window.end_us
        };
        if let Some(place) = self.windows.iter().rposition(holds) {
            self.follow_amount(place, &rule);
            return Some(place);
        }
        let start_us = if plan.is_rolling {
            ask.at_us
        } else {
            ask.at_us.div_euclid(plan.length_us) * plan.length_us
        };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(self.windows.len() as u64 + 1).to_be_bytes());
        let amount = rule.amount.unwrap_or(u64::MAX);
        self.windows.push(Window {
            identity,
            start_us,
            end_us: start_us + plan.length_us,
            id: WindowId(id),
            version: rule.amount_version,
            amount,
            ceiling: amount,
            allotted: 0,
            generations: Vec::new(),
            leases: BTreeMap::new(),
            wanted: 0,
        });
        Some(self.windows.len() - 1)
    }

    fn follow_amount(&mut self, place: usize, rule: &LimitRule) {
        let window = &mut self.windows[place];
        if rule.amount_version <= window.version {
            return;
        }
        window.version = rule.amount_version;
        window.amount = rule.amount.unwrap_or(u64::MAX);
        window.ceiling = window.ceiling.max(window.amount);
    }

    /// Changes an amount, closes and extends pools as it follows.
    pub fn set_amount(&mut self, tenant: &str, limit: &str, amount: u64, redis: &mut Redis) {
        let key: (Arc<str>, Arc<str>) = (tenant.into(), limit.into());
        let (rule, _) = self.limits.get_mut(&key).expect("a limit");
        rule.amount = Some(amount);
        rule.amount_version += 1;
        let rule = rule.clone();
        for place in 0..self.windows.len() {
            let identity = &self.windows[place].identity;
            if (&identity.0, &identity.1) != (&key.0, &key.1) {
                continue;
            }
            self.follow_amount(place, &rule);
            let window = &mut self.windows[place];
            let is_closing = window.allotted > amount;
            let key = pool_key(window);
            if let Some(generation) = window
                .generations
                .last_mut()
                .filter(|generation| generation.is_live)
            {
                if is_closing {
                    generation.is_live = false;
                    redis.pool_close(&key, generation.number, &key);
                } else {
                    let is_final = window.allotted >= amount;
                    redis.pool_extend(
                        &key,
                        generation.number,
                        generation.total,
                        rule.amount_version,
                        is_final,
                        &key,
                    );
                }
            }
            self.notice_if_due(place);
        }
    }

    fn notice_if_due(&mut self, place: usize) {
        let window = &mut self.windows[place];
        if window.wanted > 0 && window.amount.saturating_sub(window.allotted) >= window.wanted {
            window.wanted = 0;
            self.notices.push(window.identity.clone());
        }
    }

    /// Answers one ask. `reach` = whether Redis can be reached from here.
    pub fn allot(
        &mut self,
        holder: Holder,
        ask: &AllotAsk,
        redis: &mut Redis,
        reach: bool,
        now_us: i64,
    ) -> AllotAnswer {
        let key = (ask.tenant.clone(), ask.limit.clone());
        let Some((rule, _)) = self.limits.get(&key) else {
            return AllotAnswer::Refused {
                reason: "LIMIT_UNKNOWN".into(),
                last_request_seq: 0,
            };
        };
        if let LimitKind::TokenBucket { .. } = rule.kind {
            return self.shard(holder, ask, redis, now_us);
        }
        let Some(place) = self.window_at(ask) else {
            return AllotAnswer::Refused {
                reason: "LIMIT_UNKNOWN".into(),
                last_request_seq: 0,
            };
        };
        let lease = self.windows[place]
            .leases
            .entry(holder)
            .or_default()
            .clone();
        if ask.request_seq == lease.seq
            && let Some(answer @ AllotAnswer::Lease { .. }) = lease.last
        {
            return answer;
        }
        if ask.request_seq != lease.seq && ask.request_seq != lease.seq + 1 {
            return AllotAnswer::Refused {
                reason: "REQUEST_SEQ".into(),
                last_request_seq: lease.seq,
            };
        }
        let answer = self.decide(place, holder, ask, redis, reach);
        let window = &mut self.windows[place];
        assert!(window.allotted <= window.ceiling, "I1");
        if let AllotAnswer::Denied { .. } = answer {
            let need = ask.need.max(1);
            window.wanted = if window.wanted == 0 {
                need
            } else {
                window.wanted.min(need)
            };
        }
        if let AllotAnswer::Refused { .. } = answer {
            return answer;
        }
        let lease = window.leases.entry(holder).or_default();
        lease.seq = ask.request_seq;
        lease.last = Some(answer.clone());
        answer
    }

    fn shard(
        &mut self,
        holder: Holder,
        ask: &AllotAsk,
        redis: &mut Redis,
        now_us: i64,
    ) -> AllotAnswer {
        let seat = self
            .shard_asks
            .entry((holder, ask.tenant.clone(), ask.limit.clone()))
            .or_default();
        *seat = ask.request_seq;
        let marker = format!("{{{}/{}}}:marker", ask.tenant, ask.limit);
        let known = self
            .shards
            .get(&(ask.tenant.clone(), ask.limit.clone()))
            .copied();
        let mut generation = known.unwrap_or(0);
        if generation == 0 || (ask.fault.is_some() && ask.generation_seen == generation) {
            self.generations += 1;
            let is_first = generation == 0;
            generation = (1 << 32) + self.generations;
            self.shards
                .insert((ask.tenant.clone(), ask.limit.clone()), generation);
            redis.bucket_open(&marker, generation, now_us, is_first);
        }
        AllotAnswer::Bucket {
            generation,
            marker_key: marker.into(),
            bucket_prefix: format!("{{{}/{}}}:", ask.tenant, ask.limit).into(),
            channel: "tokens".into(),
        }
    }

    fn decide(
        &mut self,
        place: usize,
        holder: Holder,
        ask: &AllotAsk,
        redis: &mut Redis,
        reach: bool,
    ) -> AllotAnswer {
        let window = &mut self.windows[place];
        let is_lost = ask
            .fault
            .is_some_and(|fault| fault != PoolFault::Unreachable);
        if let Some(generation) = window.generations.last_mut()
            && is_lost
            && generation.number == ask.generation_seen
        {
            generation.is_live = false;
        }
        let left = window.amount.saturating_sub(window.allotted);
        if ask.ledger_only || ask.fault == Some(PoolFault::Unreachable) {
            let has_pool = window
                .generations
                .last()
                .is_some_and(|g| g.is_live && g.total > g.credited);
            return match lease(window, holder, ask) {
                Some(answer) => answer,
                None if has_pool => AllotAnswer::Refused {
                    reason: "AUTHORITY_UNREACHABLE".into(),
                    last_request_seq: 0,
                },
                None => AllotAnswer::Denied {
                    window: info(window),
                    left,
                },
            };
        }
        if window.generations.is_empty() && window.allotted == 0 && ask.need.max(ask.want) > 0 {
            return lease(window, holder, ask).unwrap_or_else(|| AllotAnswer::Denied {
                window: info(window),
                left,
            });
        }
        self.pool_answer(place, ask, redis, reach)
    }

    /// Opens, extends or names the pool of a window.
    fn pool_answer(
        &mut self,
        place: usize,
        ask: &AllotAsk,
        redis: &mut Redis,
        reach: bool,
    ) -> AllotAnswer {
        let next = (1 << 32) + self.generations + 1;
        let window = &mut self.windows[place];
        let left = window.amount.saturating_sub(window.allotted);
        let key = pool_key(window);
        let mut is_open = window
            .generations
            .last()
            .is_some_and(|generation| generation.is_live);
        if !is_open {
            if left < ask.need.max(1) {
                return AllotAnswer::Denied {
                    window: info(window),
                    left,
                };
            }
            if !reach {
                return AllotAnswer::Refused {
                    reason: "AUTHORITY_UNREACHABLE".into(),
                    last_request_seq: 0,
                };
            }
            self.generations += 1;
            window.generations.push(Generation {
                number: next,
                total: 0,
                credited: 0,
                is_live: true,
            });
            redis.pool_open(&key, next);
            is_open = false;
        }
        let generation = window.generations.last_mut().expect("opened");
        if !is_open
            || (ask.generation_seen == generation.number
                && ask.allotted_cum_seen >= generation.total)
        {
            let share = (window.amount / 16).max(16);
            let units = left.min(share.max(ask.need));
            window.allotted += units;
            generation.total += units;
        }
        let is_final = window.allotted >= window.amount;
        if reach {
            redis.pool_extend(
                &key,
                generation.number,
                generation.total,
                window.version,
                is_final,
                &key,
            );
        }
        let (number, total) = (generation.number, generation.total);
        AllotAnswer::Pool {
            window: info(window),
            generation: number,
            allotted_cum: total,
            last: is_final,
            pool_key: key.clone().into(),
            holders_key: format!("{key}:h").into(),
            values_key: format!("{key}:u").into(),
            channel: key.into(),
        }
    }

    /// Takes units back. A live pool is told that it isn't final any more.
    pub fn give_back(
        &mut self,
        holder: Holder,
        id: WindowId,
        generation: u64,
        returned_cum: u64,
        redis: &mut Redis,
    ) -> u64 {
        let Some(place) = self.windows.iter().position(|window| window.id == id) else {
            return 0;
        };
        let window = &mut self.windows[place];
        let lease = window.leases.entry(holder).or_default();
        if generation == 0 {
            assert!(
                returned_cum <= lease.granted,
                "returned {returned_cum} of {}",
                lease.granted
            );
            let units = returned_cum.saturating_sub(lease.returned);
            lease.returned += units;
            window.allotted -= units;
        } else if let Some(lost) = window
            .generations
            .iter_mut()
            .find(|g| g.number == generation && !g.is_live)
        {
            let before = lease.returned_lost.entry(generation).or_default();
            let units = returned_cum
                .saturating_sub(*before)
                .min(lost.total - lost.credited);
            *before += units;
            lost.credited += units;
            window.allotted -= units;
        }
        let is_final = window.allotted >= window.amount;
        let key = pool_key(window);
        if let Some(live) = window.generations.last().filter(|last| last.is_live) {
            redis.pool_extend(
                &key,
                live.number,
                live.total,
                window.version,
                is_final,
                &key,
            );
        }
        self.notice_if_due(place);
        returned_cum
    }

    /// Stores use and answers the fleet's.
    pub fn report(
        &mut self,
        holder: Holder,
        id: WindowId,
        consumed: u64,
        over: u64,
        now_us: i64,
    ) -> WindowUse {
        let window = self
            .windows
            .iter_mut()
            .find(|window| window.id == id)
            .expect("a known window");
        let lease = window.leases.entry(holder).or_default();
        lease.consumed = (lease.consumed.0.max(consumed), lease.consumed.1.max(over));
        let (consumed, over) = window.leases.values().fold((0, 0), |sum, lease| {
            (sum.0 + lease.consumed.0, sum.1 + lease.consumed.1)
        });
        WindowUse {
            consumed,
            over,
            allotted: window.allotted,
            amount: Some(window.amount),
            as_of_us: now_us,
            lease_epoch: 0,
        }
    }
}

fn pool_key(window: &Window) -> String {
    format!(
        "{{{}}}",
        u64::from_be_bytes(window.id.0[..8].try_into().expect("eight bytes"))
    )
}

fn info(window: &Window) -> WindowInfo {
    WindowInfo {
        id: window.id,
        start_us: window.start_us,
        end_us: window.end_us,
        round: 0,
        amount: Some(window.amount),
        amount_version: window.version,
        allotted: window.allotted,
    }
}

fn lease(window: &mut Window, holder: Holder, ask: &AllotAsk) -> Option<AllotAnswer> {
    let left = window.amount.saturating_sub(window.allotted);
    if left < ask.need.max(1) {
        return None;
    }
    let give = left.min(ask.need.max(ask.want.min((window.amount / 16).max(1))));
    window.allotted += give;
    let lease = window.leases.entry(holder).or_default();
    lease.granted += give;
    let granted_cum = lease.granted;
    Some(AllotAnswer::Lease {
        window: info(window),
        give,
        granted_cum,
        lease_epoch: 0,
        valid_for_us: 0,
    })
}
