//! Bounded memory: at the cap keys that nobody asks for give way to others, and what they counted is kept at rest.

use std::collections::VecDeque;

use foldhash::fast::FixedState;

use crate::{
    bucket::{Bucket, window::Window},
    check::judge::{Charge, Verdict},
    decision::Reason,
    engine::Engine,
    hash::Map,
    id::KeyHash,
    limit::{Enforcement, FailurePolicy, LimitKind},
    slab::Key,
    time::Now,
    upkeep::IDLE_US,
};

/// Slots looked at for each new key while there is little room, and once there is none.
const LOOK_AHEAD: u32 = 8;
const LOOK_MAX: u32 = 256;

/// Windows of keys that gave way, while they last: without their counters a key that comes back would look to its pool
/// like a holder of another history, and cost it its generation.
#[derive(Debug)]
pub(crate) struct Resting {
    windows: Map<(u32, KeyHash), Box<Window>>,
    order: VecDeque<(u32, KeyHash)>,
    /// Slot at which the search for idle keys goes on.
    hand: u32,
    /// Calls that found no room.
    refused: u64,
}

impl Resting {
    /// None.
    pub(crate) const fn new(state: FixedState) -> Self {
        Self {
            windows: Map::with_hasher(state),
            order: VecDeque::new(),
            hand: 0,
            refused: 0,
        }
    }

    /// How many rest.
    pub(crate) fn len(&self) -> usize {
        self.windows.len()
    }

    /// Calls that found no room.
    pub(crate) const fn refused(&self) -> u64 {
        self.refused
    }

    /// Lays a window to rest. Windows that are over go, and beyond `most` the ones that rest longest.
    fn lay(&mut self, limit: u32, key: KeyHash, window: Window, most: usize, ledger_us: i64) {
        self.windows.insert((limit, key), Box::new(window));
        self.order.push_back((limit, key));
        while let Some(oldest) = self.order.front() {
            let is_over = self
                .windows
                .get(oldest)
                .is_none_or(|window| window.has_ended(ledger_us));
            if !is_over && self.order.len() <= most {
                return;
            }
            self.windows.remove(oldest);
            self.order.pop_front();
        }
    }

    /// All of them, with limit and key.
    pub(crate) fn windows_mut(&mut self) -> impl Iterator<Item = (u32, KeyHash, &mut Window)> {
        let windows = self.windows.iter_mut();
        windows.map(|((limit, key), window)| (*limit, *key, window.as_mut()))
    }

    /// Forgets all of them.
    pub(crate) fn forget(&mut self) {
        self.windows.clear();
        self.order.clear();
    }

    /// The window of a key that comes back, where it is still on.
    pub(crate) fn take_back(&mut self, limit: u32, key: KeyHash, ledger_us: i64) -> Option<Window> {
        if self.windows.is_empty() {
            return None;
        }
        let mut window = self.windows.remove(&(limit, key))?;
        // The ledger and the pool may have said things since that nobody heard.
        window.proof = None;
        window.extend = window.pool.is_some();
        (!window.has_ended(ledger_us)).then_some(*window)
    }
}

/// What may be done with a bucket to make room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fit {
    /// Nothing: it lives.
    Lives,
    /// Its units may go back.
    Lends,
    /// It may go.
    Goes,
}

fn fit(bucket: &Bucket, kind: Option<LimitKind>, now: Now) -> Fit {
    let is_counted_in_windows = matches!(
        kind,
        Some(LimitKind::Window | LimitKind::TokenBucket { .. })
    );
    let heard_us = bucket.asked_us.max(bucket.used_us);
    let is_busy = !bucket.waiters.is_empty() || bucket.is_dirty || bucket.has_flight();
    let has_tokens = bucket
        .tokens
        .as_ref()
        .is_some_and(|tokens| tokens.is_needed() || tokens.free(now.real_us) > 0);
    if !is_counted_in_windows
        || is_busy
        || has_tokens
        || now.real_us.saturating_sub(heard_us) < IDLE_US
    {
        return Fit::Lives;
    }
    let windows = bucket.current.iter().chain(bucket.next.as_deref());
    let mut fit = Fit::Goes;
    for window in windows {
        let balance = &window.balance;
        if balance.held > 0 || balance.debt > 0 || balance.kept > 0 {
            return Fit::Lives;
        }
        let owes = balance.sources.iter().any(|source| {
            source.told_pool < source.returned_pool || source.told_ledger < source.returned_ledger
        });
        let is_told = window.reported == balance.use_cum();
        if balance.free > 0 || balance.standby > 0 || owes || !is_told {
            fit = Fit::Lends;
        }
    }
    fit
}

impl Engine {
    /// Makes room for one key more; answers whether there is any.
    pub(crate) fn make_room(&mut self, now: Now) -> bool {
        let most = self.config.keys_max;
        let count = self.buckets.len();
        if count < most.saturating_sub(most / 8) {
            return true;
        }
        let is_full = count >= most;
        let looks = if is_full { LOOK_MAX } else { LOOK_AHEAD };
        for _ in 0..looks {
            if self.look_at_next(now) && is_full {
                return true;
            }
        }
        if is_full {
            self.resting.refused = self.resting.refused.saturating_add(1);
        }
        !is_full
    }

    /// Looks at one slot: lets an idle key go, or has its units returned first. Answers whether one went.
    fn look_at_next(&mut self, now: Now) -> bool {
        let (found, slots) = self.buckets.at(self.resting.hand);
        let next = self.resting.hand.saturating_add(1);
        self.resting.hand = if next < slots { next } else { 0 };
        let Some((key, bucket)) = found.and_then(|key| Some((key, self.buckets.get(key)?))) else {
            return false;
        };
        let kind = self
            .catalog
            .limit(bucket.limit)
            .map(|limit| limit.rule.kind);
        match fit(bucket, kind, now) {
            Fit::Lives => false,
            Fit::Lends => {
                self.give_back(now, key, 0);
                self.give_back_next(now, key);
                self.mark_moved(key);
                false
            }
            Fit::Goes => {
                self.lay_to_rest(now, key);
                true
            }
        }
    }

    fn lay_to_rest(&mut self, now: Now, key: Key) {
        let most = self.config.keys_max;
        if let Some(bucket) = self.buckets.get_mut(key)
            && let Some(window) = bucket.current.take()
        {
            let (limit, name) = (bucket.limit, bucket.key_hash);
            self.resting.lay(limit, name, window, most, now.ledger_us);
        }
        self.forget(key);
    }

    /// What a limit says where there is no room to count: the failure policy answers.
    pub(crate) fn judge_without_room(&self, charge: &Charge) -> Verdict {
        let rule = self.catalog.limit(charge.limit).map(|limit| &limit.rule);
        let admits = rule.is_none_or(|rule| {
            rule.enforcement != Enforcement::Hard || rule.failure_policy == FailurePolicy::Open
        });
        if admits {
            Verdict::Uncovered
        } else {
            Verdict::Denied(Reason::SidecarFull, None)
        }
    }
}
