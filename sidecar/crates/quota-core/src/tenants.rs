//! Tenants, their limits and ancestors, and the meters.

use std::{collections::VecDeque, sync::Arc};

use foldhash::fast::FixedState;

use crate::{
    bucket::shard::Shards,
    hash::Map,
    limit::{LimitKind, LimitRule, Meter, TenantSnapshot},
    request::Units,
    slab::Key,
    tally::Tallies,
    time::Now,
};

/// An unknown tenant is remembered for so long, real µs.
const UNKNOWN_US: u64 = 5_000_000;
/// A fetch that brought nothing is repeated after so long, real µs.
const FETCH_AGAIN_US: u64 = 1_000_000;
/// Names of tenants that never were known, remembered at most.
const STRANGERS_MAX: usize = 16_384;
/// A tenant and this many ancestors.
const DEPTH_MAX: usize = 5;

/// One limit of one tenant, in one kind and split by one key; keeps its place while the process lives, so that windows
/// and sequences are never begun anew.
#[derive(Debug)]
pub(crate) struct Limit {
    /// Its tenant's wire id.
    pub(crate) tenant_name: Arc<str>,
    /// As declared last.
    pub(crate) rule: LimitRule,
    /// Still declared.
    pub(crate) is_live: bool,
    /// The bucket where nothing splits it.
    pub(crate) unsplit: Option<Key>,
    /// All its buckets.
    pub(crate) buckets: Vec<Key>,
    /// Token buckets only.
    pub(crate) shards: Shards,
    /// Where its units are counted.
    pub(crate) tally: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Knowledge {
    Fetching { since_us: u64 },
    Known,
    Unknown { until_us: u64 },
}

/// What a check of a tenant needs, own and inherited.
#[derive(Debug, Default)]
struct View {
    suspended: bool,
    /// (meter, limits) by meter; own limits first, then the parent's, and so on.
    groups: Vec<(Arc<str>, Vec<u32>)>,
    all: Vec<u32>,
}

/// One tenant.
#[derive(Debug)]
struct Tenant {
    name: Arc<str>,
    knowledge: Knowledge,
    suspended: bool,
    parent: Option<u32>,
    features: Box<[Box<str>]>,
    limits: Vec<u32>,
    children: Vec<u32>,
    view: Option<View>,
    waiters: Vec<Key>,
}

impl Tenant {
    /// Whether nothing would be lost by forgetting it. Who waits for it hears at its deadline that nobody knows.
    fn is_stranger(&self) -> bool {
        let is_alone = self.parent.is_none() && self.children.is_empty();
        self.knowledge != Knowledge::Known && is_alone && self.limits.is_empty()
    }
}

/// What the catalog says of a tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lookup {
    /// All that a check needs is known.
    Known(u32),
    /// This tenant (it or an ancestor) is being fetched.
    Fetching(u32),
    /// It does not exist.
    Unknown,
}

/// A change of one limit that matters to units already leased.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Changed {
    /// More than before.
    Raised,
    /// Less than before: the new amount.
    Lowered(Units),
    /// Rate or burst, or the amount of what has no window.
    Shape,
    /// Not declared any more.
    Removed,
}

/// Tenants, limits and meters.
#[derive(Debug)]
pub(crate) struct Catalog {
    tenants: Vec<Tenant>,
    by_name: Map<Arc<str>, u32>,
    limits: Vec<Limit>,
    /// By name, with the attribute whose distinct values are counted; empty = units are.
    meters: Option<Map<Arc<str>, Arc<str>>>,
    /// There is a meter that counts distinct values.
    has_values: bool,
    /// Tenants that were asked for before they were known, oldest first.
    strangers: VecDeque<u32>,
    /// Units asked of limits, by their names.
    pub(crate) tallies: Tallies,
    state: FixedState,
}

impl Catalog {
    /// Knows nothing.
    pub(crate) fn new(state: FixedState) -> Self {
        Self {
            tenants: Vec::new(),
            by_name: Map::with_capacity_and_hasher(256, state.clone()),
            limits: Vec::new(),
            meters: None,
            has_values: false,
            strangers: VecDeque::new(),
            tallies: Tallies::new(state.clone()),
            state,
        }
    }

    /// Takes in all meters.
    pub(crate) fn set_meters(&mut self, meters: &[Meter]) {
        let mut known = Map::with_capacity_and_hasher(meters.len(), self.state.clone());
        for meter in meters {
            known.insert(Arc::clone(&meter.name), Arc::from(&*meter.value_attribute));
        }
        self.has_values = meters.iter().any(|meter| !meter.value_attribute.is_empty());
        self.meters = Some(known);
    }

    /// Whether a meter exists; `None` while no meters are known.
    pub(crate) fn has_meter(&self, name: &str) -> Option<bool> {
        self.meters.as_ref().map(|meters| meters.contains_key(name))
    }

    /// The attribute whose distinct values a meter counts; `None` where it counts units.
    pub(crate) fn value_attribute(&self, meter: &str) -> Option<&str> {
        let meters = self.meters.as_ref().filter(|_| self.has_values)?;
        meters
            .get(meter)
            .map(|name| &**name)
            .filter(|name| !name.is_empty())
    }

    /// A limit.
    pub(crate) fn limit(&self, index: u32) -> Option<&Limit> {
        self.limits.get(index as usize)
    }

    /// A limit.
    pub(crate) fn limit_mut(&mut self, index: u32) -> Option<&mut Limit> {
        self.limits.get_mut(index as usize)
    }

    /// Whether a limit is a token bucket.
    pub(crate) fn is_token_bucket(&self, index: u32) -> bool {
        self.limit(index)
            .is_some_and(|limit| matches!(limit.rule.kind, LimitKind::TokenBucket { .. }))
    }

    /// Limits by their tenant's wire id and their name, declared now or before: one for each kind and key that the name
    /// ever had. Until a change of those comes into force two may be declared at once, one after the other.
    pub(crate) fn limits_named<'a>(
        &'a self,
        tenant: &str,
        name: &'a str,
    ) -> impl Iterator<Item = (u32, &'a Limit)> {
        let place = self.by_name.get(tenant).copied();
        let tenant = place.and_then(|place| self.tenants.get(place as usize));
        let limits = tenant.map_or(&[][..], |tenant| &tenant.limits);
        limits.iter().filter_map(move |index| {
            let limit = self.limit(*index)?;
            (&*limit.rule.name == name).then_some((*index, limit))
        })
    }

    fn tenant_index(&mut self, name: &Arc<str>) -> (u32, bool) {
        if let Some(index) = self.by_name.get(name) {
            return (*index, false);
        }
        let index = u32::try_from(self.tenants.len()).unwrap_or(u32::MAX);
        self.tenants.push(Tenant {
            name: Arc::clone(name),
            knowledge: Knowledge::Unknown { until_us: 0 },
            suspended: false,
            parent: None,
            features: Box::default(),
            limits: Vec::new(),
            children: Vec::new(),
            view: None,
            waiters: Vec::new(),
        });
        self.by_name.insert(Arc::clone(name), index);
        (index, true)
    }

    /// Finds a tenant with all its ancestors. Names the tenants that must be fetched now in `fetch`, each once.
    pub(crate) fn look_up(
        &mut self,
        now: Now,
        name: &Arc<str>,
        fetch: &mut Vec<Arc<str>>,
    ) -> Lookup {
        let known = self.by_name.get(name).copied();
        let index = known.unwrap_or_else(|| self.stranger_index(name));
        if self
            .tenants
            .get(index as usize)
            .is_some_and(|tenant| tenant.view.is_some())
        {
            return Lookup::Known(index);
        }
        self.look_up_slowly(now, index, fetch)
    }

    /// Makes room for a name that may be anybody's invention: the oldest such name is forgotten for it.
    fn stranger_index(&mut self, name: &Arc<str>) -> u32 {
        if self.strangers.len() >= STRANGERS_MAX
            && let Some(oldest) = self.strangers.pop_front()
            && let Some(tenant) = self.tenants.get_mut(oldest as usize)
            && tenant.is_stranger()
        {
            self.by_name.remove(&tenant.name);
            tenant.name = Arc::clone(name);
            tenant.knowledge = Knowledge::Unknown { until_us: 0 };
            tenant.waiters.clear();
            self.by_name.insert(Arc::clone(name), oldest);
            self.strangers.push_back(oldest);
            return oldest;
        }
        let (index, _) = self.tenant_index(name);
        self.strangers.push_back(index);
        index
    }

    fn look_up_slowly(&mut self, now: Now, index: u32, fetch: &mut Vec<Arc<str>>) -> Lookup {
        let mut at = Some(index);
        for _ in 0..DEPTH_MAX {
            let Some(place) = at else { break };
            let Some(tenant) = self.tenants.get_mut(place as usize) else {
                return Lookup::Unknown;
            };
            let again = match tenant.knowledge {
                Knowledge::Known => {
                    at = tenant.parent;
                    continue;
                }
                Knowledge::Unknown { until_us } if now.real_us < until_us => {
                    return Lookup::Unknown;
                }
                Knowledge::Unknown { .. } => true,
                Knowledge::Fetching { since_us } => {
                    now.real_us.saturating_sub(since_us) >= FETCH_AGAIN_US
                }
            };
            if again {
                tenant.knowledge = Knowledge::Fetching {
                    since_us: now.real_us,
                };
                fetch.push(Arc::clone(&tenant.name));
            }
            return Lookup::Fetching(place);
        }
        self.build_view(index);
        Lookup::Known(index)
    }

    fn build_view(&mut self, index: u32) {
        let mut view = View::default();
        let mut at = Some(index);
        for _ in 0..DEPTH_MAX {
            let Some(tenant) = at.and_then(|place| self.tenants.get(place as usize)) else {
                break;
            };
            view.suspended |= tenant.suspended;
            for limit in &tenant.limits {
                let Some(Limit {
                    rule,
                    is_live: true,
                    ..
                }) = self.limits.get(*limit as usize)
                else {
                    continue;
                };
                view.all.push(*limit);
                let found = view
                    .groups
                    .binary_search_by(|(meter, _)| meter.cmp(&rule.meter));
                match found {
                    Ok(place) => view.groups[place].1.push(*limit),
                    Err(place) => view
                        .groups
                        .insert(place, (Arc::clone(&rule.meter), vec![*limit])),
                }
            }
            at = tenant.parent;
        }
        if let Some(tenant) = self.tenants.get_mut(index as usize) {
            tenant.view = Some(view);
        }
    }

    /// Whether the tenant or one of its ancestors is suspended.
    pub(crate) fn is_suspended(&self, tenant: u32) -> bool {
        self.view(tenant).is_some_and(|view| view.suspended)
    }

    fn view(&self, tenant: u32) -> Option<&View> {
        self.tenants.get(tenant as usize)?.view.as_ref()
    }

    /// The first of these features that the tenant lacks.
    pub(crate) fn lacks<'a>(&self, tenant: u32, features: &'a [Box<str>]) -> Option<&'a str> {
        let has = self
            .tenants
            .get(tenant as usize)
            .map(|tenant| &tenant.features);
        let lacks = |feature: &str| {
            has.is_none_or(|has| {
                has.binary_search_by(|other| (**other).cmp(feature))
                    .is_err()
            })
        };
        features
            .iter()
            .map(|feature| &**feature)
            .find(|feature| lacks(feature))
    }

    /// Limits of a tenant on a meter, own first; empty where it has none.
    pub(crate) fn limits_on(&self, tenant: u32, meter: &str) -> &[u32] {
        let Some(view) = self.view(tenant) else {
            return &[];
        };
        let found = view
            .groups
            .binary_search_by(|(name, _)| (**name).cmp(meter));
        found
            .ok()
            .and_then(|place| view.groups.get(place))
            .map_or(&[], |(_, limits)| limits)
    }

    /// Every limit of a tenant, own first.
    pub(crate) fn all_limits(&self, tenant: u32) -> &[u32] {
        self.view(tenant).map_or(&[], |view| &view.all)
    }

    /// Every limit that was ever declared.
    pub(crate) fn every_limit(&self) -> Vec<u32> {
        (0..u32::try_from(self.limits.len()).unwrap_or(u32::MAX)).collect()
    }

    /// Names kept, of tenants that exist and of such as may not.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.tenants.len()
    }

    /// Notes that a check waits for a tenant.
    pub(crate) fn wait_for(&mut self, tenant: u32, waiter: Key) {
        if let Some(tenant) = self.tenants.get_mut(tenant as usize) {
            tenant.waiters.push(waiter);
        }
    }

    /// The checks that wait for a tenant, which forgets them.
    pub(crate) fn take_waiters(&mut self, name: &str) -> Vec<Key> {
        let Some(index) = self.by_name.get(name) else {
            return Vec::new();
        };
        self.tenants
            .get_mut(*index as usize)
            .map(|tenant| std::mem::take(&mut tenant.waiters))
            .unwrap_or_default()
    }

    /// Remembers that a tenant does not exist; one that is forgotten already stays so.
    pub(crate) fn set_unknown(&mut self, now: Now, name: &Arc<str>) -> Vec<(u32, Changed)> {
        let Some(index) = self.by_name.get(name).copied() else {
            return Vec::new();
        };
        let until_us = now.real_us.saturating_add(UNKNOWN_US);
        let Some(tenant) = self.tenants.get_mut(index as usize) else {
            return Vec::new();
        };
        tenant.knowledge = Knowledge::Unknown { until_us };
        let limits = tenant.limits.clone();
        self.forget_views(index);
        let removed = |limit: u32| {
            self.limits
                .get_mut(limit as usize)
                .filter(|limit| limit.is_live)
                .map(|_| limit)
        };
        let gone: Vec<u32> = limits.into_iter().filter_map(removed).collect();
        for limit in &gone {
            self.limits[*limit as usize].is_live = false;
        }
        gone.into_iter()
            .map(|limit| (limit, Changed::Removed))
            .collect()
    }

    /// Forgets all that was said of tenants; their limits keep their places.
    pub(crate) fn forget_all(&mut self) {
        self.meters = None;
        for tenant in &mut self.tenants {
            tenant.knowledge = Knowledge::Unknown { until_us: 0 };
            tenant.view = None;
        }
        for limit in &mut self.limits {
            limit.is_live = false;
        }
    }

    /// Asks again for whatever is being fetched, because the connection is new.
    pub(crate) fn fetch_again(&mut self, now: Now, fetch: &mut Vec<Arc<str>>) {
        for tenant in &mut self.tenants {
            if let Knowledge::Fetching { .. } = tenant.knowledge {
                tenant.knowledge = Knowledge::Fetching {
                    since_us: now.real_us,
                };
                fetch.push(Arc::clone(&tenant.name));
            }
        }
    }

    /// Notes that fetches of these tenants failed, so that the next check tries again.
    pub(crate) fn fetch_failed(&mut self, names: &[Arc<str>]) {
        for name in names {
            let Some(index) = self.by_name.get(name) else {
                continue;
            };
            let Some(tenant) = self.tenants.get_mut(*index as usize) else {
                continue;
            };
            if let Knowledge::Fetching { .. } = tenant.knowledge {
                tenant.knowledge = Knowledge::Unknown { until_us: 0 };
            }
        }
    }

    fn forget_views(&mut self, index: u32) {
        let mut pending = vec![index];
        let mut depth_left = self.tenants.len();
        while let Some(place) = pending.pop() {
            let Some(tenant) = self.tenants.get_mut(place as usize) else {
                continue;
            };
            tenant.view = None;
            if depth_left == 0 {
                break;
            }
            depth_left = depth_left.saturating_sub(1);
            pending.extend_from_slice(&tenant.children);
        }
    }

    /// Takes in a tenant whole; answers what changed of limits known before.
    pub(crate) fn set_tenant(&mut self, now: Now, snapshot: TenantSnapshot) -> Vec<(u32, Changed)> {
        let (index, _) = self.tenant_index(&snapshot.tenant);
        let parent = snapshot
            .parent
            .as_ref()
            .map(|parent| self.tenant_index(parent).0);
        self.adopt(now, index, parent);
        let Some(tenant) = self.tenants.get_mut(index as usize) else {
            return Vec::new();
        };
        tenant.knowledge = Knowledge::Known;
        tenant.suspended = snapshot.suspended;
        tenant.features = snapshot.features;
        tenant.features.sort_unstable();
        let before = tenant.limits.clone();
        let mut changes = Vec::new();
        for index in before {
            let Some(limit) = self.limits.get_mut(index as usize) else {
                continue;
            };
            if limit.is_live
                && !snapshot
                    .limits
                    .iter()
                    .any(|rule| rule.is_same_limit(&limit.rule))
            {
                limit.is_live = false;
                changes.push((index, Changed::Removed));
            }
        }
        for rule in snapshot.limits {
            if let Some(change) = self.set_limit(index, &snapshot.tenant, rule) {
                changes.push(change);
            }
        }
        self.forget_views(index);
        changes
    }

    fn adopt(&mut self, now: Now, index: u32, parent: Option<u32>) {
        let Some(tenant) = self.tenants.get_mut(index as usize) else {
            return;
        };
        let before = std::mem::replace(&mut tenant.parent, parent);
        if before == parent {
            return;
        }
        if let Some(before) = before.and_then(|place| self.tenants.get_mut(place as usize)) {
            before.children.retain(|child| *child != index);
        }
        let Some(parent) = parent.and_then(|place| self.tenants.get_mut(place as usize)) else {
            return;
        };
        parent.children.push(index);
        if let Knowledge::Unknown { until_us: 0 } = parent.knowledge {
            // Ancestors come along without being asked for.
            parent.knowledge = Knowledge::Fetching {
                since_us: now.real_us,
            };
        }
    }

    fn set_limit(
        &mut self,
        tenant: u32,
        tenant_name: &Arc<str>,
        rule: LimitRule,
    ) -> Option<(u32, Changed)> {
        let known = self
            .limits_named(tenant_name, &rule.name)
            .find(|(_, limit)| limit.rule.is_same_limit(&rule))
            .map(|(index, _)| index);
        if let Some(index) = known {
            let limit = self.limits.get_mut(index as usize)?;
            let before = std::mem::replace(&mut limit.rule, rule);
            let was_live = std::mem::replace(&mut limit.is_live, true);
            return change_of(&before, &limit.rule, was_live).map(|change| (index, change));
        }
        let index = u32::try_from(self.limits.len()).unwrap_or(u32::MAX);
        let tally = self.tallies.place_of(&rule.name);
        self.limits.push(Limit {
            tenant_name: Arc::clone(tenant_name),
            rule,
            is_live: true,
            unsplit: None,
            buckets: Vec::new(),
            shards: Shards::default(),
            tally,
        });
        self.tenants.get_mut(tenant as usize)?.limits.push(index);
        None
    }
}

fn change_of(before: &LimitRule, after: &LimitRule, was_live: bool) -> Option<Changed> {
    let windows = (before.kind, after.kind) == (LimitKind::Window, LimitKind::Window);
    if !windows && (before.kind, before.amount) != (after.kind, after.amount) {
        return Some(Changed::Shape);
    }
    let (old, new) = (
        before.amount.unwrap_or(Units::MAX),
        after.amount.unwrap_or(Units::MAX),
    );
    match old.cmp(&new) {
        std::cmp::Ordering::Less => Some(Changed::Raised),
        std::cmp::Ordering::Greater => Some(Changed::Lowered(new)),
        std::cmp::Ordering::Equal if !was_live => Some(Changed::Raised),
        std::cmp::Ordering::Equal => None,
    }
}

#[cfg(test)]
mod tests;
