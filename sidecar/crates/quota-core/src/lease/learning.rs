//! After Postgres was set back: saying once what is had of windows of an earlier timeline, and taking no more of them.
//!
//! What was said is the most that is ever spent of such a window here, so that the ledger can add it up over all holders
//! and issue the rest. Leases go on serving; the window of the new timeline takes this one's place at the first answer.

use crate::{
    bucket::{balance::Balance, window::Window},
    effect::{SourceLeases, WindowLeases},
    engine::Engine,
    event::CommandFailure,
    id::{Holder, KeyHash},
    request::Units,
    slab::Key,
    tenants::Limit,
    time::Now,
};

/// What is not told yet is said again after so long, real µs.
const AGAIN_US: u64 = 1_000_000;
/// In the first timeline nothing was ever set back.
const FIRST: u64 = 1;

/// What the ledger is to hear of windows of earlier timelines.
#[derive(Debug, Default)]
pub(crate) struct Telling {
    /// Times that Postgres was restored plus 1, as last heard; 0 = nothing was heard.
    timeline: u64,
    untold: Vec<WindowLeases>,
    /// Real time before which nothing is said again.
    again_us: u64,
}

impl Telling {
    /// Real time at which something is to be said; `None` where there is nothing to say.
    pub(crate) fn next_due_us(&self) -> Option<u64> {
        (!self.untold.is_empty()).then_some(self.again_us)
    }
}

impl Engine {
    /// Takes in the ledger's timeline; a later one than known means that Postgres was set back.
    pub(crate) fn on_timeline(&mut self, timeline: u64) {
        if timeline <= self.telling.timeline {
            return;
        }
        self.telling.timeline = timeline;
        if timeline == FIRST {
            return;
        }
        let catalog = &self.catalog;
        self.unclaimed.give_up_of_limits(|tenant, limit| {
            let mut found = catalog.limits_named(tenant, limit).peekable();
            found.peek().is_none() || found.any(|(_, limit)| limit.rule.learns)
        });
        for key in self.buckets.keys() {
            self.fall_behind(key);
        }
        let Self {
            resting,
            telling,
            catalog,
            ..
        } = self;
        for (index, key_hash, window) in resting.windows_mut() {
            let limit = catalog.limit(index).filter(|limit| limit.rule.learns);
            if let Some(limit) = limit {
                telling
                    .untold
                    .extend(fall(limit, key_hash, &[], window, timeline));
            }
        }
    }

    /// Notes what is had of a bucket's windows of earlier timelines, once nothing more is under way for them.
    pub(crate) fn fall_behind(&mut self, key: Key) {
        if self.telling.timeline <= FIRST {
            return;
        }
        let Self {
            buckets,
            catalog,
            telling,
            ..
        } = self;
        let Some(bucket) = buckets.get_mut(key) else {
            return;
        };
        let Some(limit) = catalog
            .limit(bucket.limit)
            .filter(|limit| limit.rule.learns)
        else {
            return;
        };
        let mut has_fallen = false;
        let windows = bucket.current.iter_mut().chain(bucket.next.as_deref_mut());
        for window in windows {
            let leases = fall(
                limit,
                bucket.key_hash,
                &bucket.key_values,
                window,
                telling.timeline,
            );
            has_fallen |= leases.is_some();
            telling.untold.extend(leases);
        }
        if has_fallen {
            // Whoever waited for the pool is to ask the ledger.
            self.stir(key);
        }
    }

    /// Says what is to be said, and says it until the ledger has heard.
    pub(crate) fn tell_leases(&mut self, now: Now) {
        let telling = &mut self.telling;
        if telling
            .next_due_us()
            .is_none_or(|due_us| due_us > now.real_us)
        {
            return;
        }
        telling.again_us = now.real_us.saturating_add(AGAIN_US);
        if self.links.ledger.is_down(now.real_us) {
            return;
        }
        for leases in std::mem::take(&mut telling.untold) {
            self.outbox.tell_leases(leases);
        }
    }

    /// Takes in whether the ledger has heard.
    pub(crate) fn on_told(
        &mut self,
        now: Now,
        leases: Vec<WindowLeases>,
        failure: Option<&CommandFailure>,
    ) {
        if failure.is_some() {
            self.telling.again_us = now.real_us.saturating_add(AGAIN_US);
            self.telling.untold.extend(leases);
        }
    }
}

/// Takes a window of an earlier timeline from its pool, for good; answers what is had of it, the first time.
fn fall(
    limit: &Limit,
    key_hash: KeyHash,
    key_values: &[Box<str>],
    window: &mut Window,
    timeline: u64,
) -> Option<WindowLeases> {
    let info = &window.info;
    if info.timeline >= timeline || window.flight.is_some() {
        return None;
    }
    let (window_timeline, allotted) = match info.timeline {
        // It was taken over, and nobody has heard of it since.
        0 => (0, 0),
        heard => (heard, info.allotted),
    };
    let pool = window.pool.as_ref();
    let pool = pool.map(|pool| (pool.generation, pool.total));
    window.leave_pool();
    if window.told_in >= timeline {
        return None;
    }
    window.told_in = timeline;
    Some(WindowLeases {
        tenant: limit.tenant_name.clone(),
        limit: limit.rule.name.clone(),
        key_hash,
        key_values: key_values.into(),
        window: window.info.id,
        start_us: window.info.start_us,
        end_us: window.info.end_us,
        timeline: window_timeline,
        allotted,
        sources: sources(&window.balance, pool),
    })
}

/// What is had of each source: given and not gone back, spent or not. Units of unknown source count as the ledger's.
fn sources(balance: &Balance, pool: Option<(u64, Units)>) -> Box<[SourceLeases]> {
    let mut found: Vec<SourceLeases> = Vec::with_capacity(balance.sources.len().saturating_add(1));
    for source in &balance.sources {
        let generation = if source.is_returnable() {
            source.generation
        } else {
            0
        };
        let units = source
            .granted
            .saturating_sub(source.returned_pool)
            .saturating_sub(source.returned_ledger);
        let had = had_of(&mut found, source.from, generation);
        had.units = had.units.saturating_add(units);
    }
    if let Some((generation, total)) = pool {
        had_of(&mut found, None, generation).total = total;
    }
    found.into_boxed_slice()
}

fn had_of(
    found: &mut Vec<SourceLeases>,
    holder: Option<Holder>,
    generation: u64,
) -> &mut SourceLeases {
    let place = found
        .iter()
        .position(|had| had.holder == holder && had.generation == generation);
    let place = place.unwrap_or_else(|| {
        found.push(SourceLeases {
            holder,
            generation,
            units: 0,
            total: 0,
        });
        found.len().saturating_sub(1)
    });
    &mut found[place]
}
