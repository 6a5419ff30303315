//! The state machine.

use std::{collections::VecDeque, sync::Arc};

use foldhash::fast::FixedState;

use crate::{
    book::Book,
    bucket::Buckets,
    check::{Outcome, aside::Turn, judge::Charge, state::limit_state},
    decided::{Decided, Decisions},
    decision::LimitState,
    effect::{Effect, Kept},
    event::Event,
    hash::{Map, hex, keyed},
    id::{Holder, ReservationId},
    lease::{keeping::Marking, learning::Telling, plan::Budget, unclaimed::Unclaimed},
    links::Links,
    outbox::Outbox,
    report::Reporter,
    request::{CheckRequest, Checked, Cost, Mode, Units},
    reservation::{Reservation, SettleRefusal, Settled},
    room::Resting,
    slab::Key,
    tenants::{Catalog, Lookup},
    time::Now,
    timers::Timers,
    waiting::{Waiter, Waiting},
};

/// Redis has fallen silent when neither an answer nor a heartbeat (every 40 ms, some of them late) came for so many real µs.
const REDIS_SILENT_US: u64 = 65_000;

/// Names a waiting check for its owner.
pub type Ticket = u64;

/// Bounds and budgets. The zero-risk defaults are in `Default`.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Real µs to wait for a Redis that has fallen silent.
    pub redis_budget_us: u64,
    /// Real µs to wait for the ledger for something of which nothing is held yet.
    pub ledger_budget_us: u64,
    /// Checks that may wait at once.
    pub waiting_max: usize,
    /// Proof is current while its connection was heard of within so many real µs.
    pub proof_age_us: u64,
    /// Keys of limits kept in memory at most, and as many windows of keys that gave way.
    pub keys_max: usize,
    /// Units are kept for a restart: whoever carries effects out has a log.
    pub keeps: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            redis_budget_us: 5_000,
            ledger_budget_us: 100_000,
            waiting_max: 10_000,
            proof_age_us: 100_000,
            keys_max: 1_000_000,
            keeps: false,
        }
    }
}

/// Every bucket, lease and reservation of one sidecar process.
#[derive(Debug)]
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) holder: Holder,
    pub(crate) holder_hex: String,
    pub(crate) hasher: FixedState,
    pub(crate) catalog: Catalog,
    pub(crate) buckets: Buckets,
    pub(crate) links: Links,
    pub(crate) outbox: Outbox,
    pub(crate) waiting: Waiting,
    pub(crate) meter_waiters: Vec<Key>,
    pub(crate) timers: Timers,
    pub(crate) reporter: Reporter,
    pub(crate) book: Book,
    /// Limits that the check being decided must pass; kept for its memory.
    pub(crate) charges: Vec<Charge>,
    /// Buckets whose waiters want to look again.
    pub(crate) dirty: VecDeque<Key>,
    /// Buckets for which the next step is to be taken.
    pub(crate) hunts: VecDeque<Key>,
    pub(crate) is_draining: bool,
    pub(crate) resting: Resting,
    /// Units that were admitted without cover, in all.
    pub(crate) uncovered_units: Units,
    /// Buckets whose marks are to be looked at again.
    pub(crate) keeps_due: Vec<Key>,
    /// Marks on their way to the disk.
    pub(crate) markings: Map<u64, Marking>,
    /// What a dead process of this volume kept and nobody has asked for yet.
    pub(crate) unclaimed: Unclaimed,
    /// What the ledger is to hear after Postgres was set back.
    pub(crate) telling: Telling,
    /// What limits decided and nobody has taken yet.
    pub(crate) decided: Decided,
}

/// How much the engine keeps, and what should alarm somebody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EngineFigures {
    /// Keys of limits that are kept.
    pub keys: usize,
    /// Keys that gave way to others and whose counters are kept.
    pub keys_resting: usize,
    /// Calls that found no room for their key, in all.
    pub keys_refused: u64,
    /// Checks that wait.
    pub waiting: usize,
    /// Units admitted without cover, in all.
    pub uncovered_units: Units,
}

impl Engine {
    /// Makes an engine that knows no tenant.
    #[must_use]
    pub fn new(config: EngineConfig, holder: Holder) -> Self {
        let hasher = keyed(holder);
        Self {
            config,
            holder,
            holder_hex: hex(&holder.0),
            hasher: hasher.clone(),
            catalog: Catalog::new(hasher.clone()),
            buckets: Buckets::new(hasher.clone()),
            links: Links::new(hasher.clone()),
            outbox: Outbox::new(holder, hasher.clone()),
            waiting: Waiting::new(hasher.clone()),
            meter_waiters: Vec::new(),
            timers: Timers::default(),
            reporter: Reporter::default(),
            book: Book::new(hasher.clone()),
            charges: Vec::with_capacity(16),
            dirty: VecDeque::with_capacity(16),
            hunts: VecDeque::with_capacity(16),
            is_draining: false,
            resting: Resting::new(hasher.clone()),
            uncovered_units: 0,
            keeps_due: Vec::new(),
            markings: Map::with_hasher(hasher.clone()),
            decided: Decided::new(hasher.clone()),
            unclaimed: Unclaimed::new(hasher),
            telling: Telling::default(),
        }
    }

    /// Decides, or begins to fetch what is missing. All limits are charged or none.
    pub fn check(&mut self, now: Now, ticket: Ticket, request: &CheckRequest) -> Checked {
        let is_full = self.waiting.len() >= self.config.waiting_max;
        let turn = if is_full { Turn::FIRST } else { Turn::NEWCOMER };
        let outcome = self.evaluate(now, request, turn);
        let checked = match outcome {
            Outcome::Decided(decision) => Checked::Decided(decision),
            _ if is_full => Checked::Full,
            outcome => {
                let waiter = Waiter {
                    ticket,
                    request: request.clone(),
                    turn: Turn::NEWCOMER,
                    since_us: now.real_us,
                    deadline_us: now.real_us.saturating_add(self.config.redis_budget_us),
                    queues: Vec::new(),
                    lent: Vec::new(),
                    brought: Vec::new(),
                    aside: Vec::new(),
                };
                let key = self.waiting.insert(waiter);
                self.enlist(now, key, &outcome);
                Checked::Waiting
            }
        };
        self.work_off(now);
        checked
    }

    /// Forgets a waiting check whose caller went away; its units are not taken. No effect if it was decided.
    pub fn cancel(&mut self, ticket: Ticket) {
        let key = self.waiting.by_ticket(ticket);
        if let Some(waiter) = key.and_then(|key| self.waiting.remove(key)) {
            self.let_go(waiter.turn, &waiter.aside);
            self.withdraw_values(&waiter.request, &waiter.brought);
        }
    }

    /// The open reservation made by a decided `Mode::Reserve` (to be logged before the caller hears of it).
    #[must_use]
    pub fn reservation(&self, id: ReservationId) -> Option<&Reservation> {
        self.book.get(id)
    }

    /// Undoes a charge whose log entry failed: consumed or held units go back to the balance.
    pub fn undo_reservation(&mut self, now: Now, id: ReservationId) {
        self.undo(now, id);
        self.work_off(now);
    }

    /// Takes in a reservation found in the log at start; `holder` in it is the dead process', so nothing is held here.
    pub fn restore_reservation(&mut self, reservation: Reservation) {
        self.book.open(reservation, Vec::new());
    }

    /// Takes over units that a dead process of this volume kept. Only after their mark is removed for good, and only on
    /// the boot, volume and directory that it was made on: else they are spent twice.
    pub fn adopt(&mut self, kept: Kept) {
        self.unclaimed.add(kept);
    }

    /// Ends a reservation at `actual` (zero units of every meter = release). Call after its record is durable.
    ///
    /// # Errors
    /// `Unknown` where the engine has no such open reservation.
    pub fn settle(
        &mut self,
        now: Now,
        id: ReservationId,
        actual: &[Cost],
    ) -> Result<Settled, SettleRefusal> {
        let settled = self.settle_reservation(now, id, actual);
        self.work_off(now);
        settled
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, event: Event) {
        self.on_event(now, event);
        self.work_off(now);
    }

    /// Does what is due by time: expiries of waits, early leases, idle returns, reports, reservation expiry.
    pub fn advance(&mut self, now: Now) {
        self.upkeep_due(now);
        self.work_off(now);
        while let Some(key) = self.waiting.pop_due(now.real_us) {
            self.reconsider(now, key, true);
        }
        self.expire_reservations(now);
        self.return_unclaimed(now);
        self.tell_leases(now);
        self.report(now, false);
        self.work_off(now);
    }

    /// Real µs until `advance` must be called next.
    #[must_use]
    pub fn next_due(&self, now: Now) -> u64 {
        if self.outbox.has_news() || !self.dirty.is_empty() {
            return 0;
        }
        let mut due_us = now.real_us.saturating_add(1_000_000);
        let others = [
            self.waiting.next_due_us(),
            self.timers.next_due_us(),
            self.reporter.next_due_us(),
            self.unclaimed.next_due_us(),
            self.telling.next_due_us(),
        ];
        for other in others.into_iter().flatten() {
            due_us = due_us.min(other);
        }
        let expiry = self
            .book
            .next_expiry_us()
            .and_then(|at_us| now.real_us_until(at_us));
        due_us
            .saturating_sub(now.real_us)
            .min(expiry.unwrap_or(u64::MAX))
    }

    /// Moves what the engine wants done into `out`, in order.
    pub fn drain_effects(&mut self, out: &mut Vec<Effect>) {
        self.outbox.flush(out);
    }

    /// Every limit of a tenant as known here; `None` where the tenant isn't known (yet).
    pub fn quota(
        &mut self,
        now: Now,
        tenant: &str,
        attributes: &[(Box<str>, Box<str>)],
    ) -> Option<Vec<LimitState>> {
        let name: Arc<str> = Arc::from(tenant);
        let Lookup::Known(index) = self.catalog.look_up(now, &name, self.outbox.watch_list())
        else {
            return None;
        };
        let limits = self.catalog.all_limits(index).to_vec();
        let mut states = Vec::with_capacity(limits.len());
        for index in limits {
            let key = self.find_bucket_for(index, attributes);
            if let Some(key) = key {
                self.turn_if_over(now, key);
                self.mark_moved(key);
            }
            let Some(limit) = self.catalog.limit(index) else {
                continue;
            };
            if crate::matching::is_in_force(&limit.rule, now.ledger_us) {
                let bucket = key.and_then(|key| self.buckets.get(key));
                states.push(limit_state(limit, bucket, tenant, attributes, now));
            }
        }
        Some(states)
    }

    /// Whether a tenant is known, unknown for sure, or not known yet (then it is being fetched).
    pub fn tenant_known(&mut self, now: Now, tenant: &Arc<str>) -> Option<bool> {
        match self.catalog.look_up(now, tenant, self.outbox.watch_list()) {
            Lookup::Known(_) => Some(true),
            Lookup::Unknown => Some(false),
            Lookup::Fetching(_) => None,
        }
    }

    /// Lowers every balance and returns everything, for a clean stop. Done when no command is outstanding.
    pub fn drain(&mut self, now: Now) {
        self.is_draining = true;
        for key in self.buckets.keys() {
            self.turn_if_over(now, key);
            self.plan_keeping(key, true);
            self.give_back(now, key, 0);
            self.give_back_next(now, key);
            self.return_tokens(now, key, crate::request::UNITS_MAX);
            let is_moved = self
                .buckets
                .get(key)
                .and_then(|bucket| bucket.current.as_ref())
                .is_some_and(|window| window.reported != window.balance.use_cum());
            if is_moved {
                self.mark_moved(key);
            }
        }
        self.drain_unclaimed(now);
        self.report(now, true);
        self.work_off(now);
    }

    /// Tells how much is kept, and what should alarm somebody.
    #[must_use]
    pub fn figures(&self) -> EngineFigures {
        EngineFigures {
            keys: self.buckets.len(),
            keys_resting: self.resting.len(),
            keys_refused: self.resting.refused(),
            waiting: self.waiting.len(),
            uncovered_units: self.uncovered_units,
        }
    }

    /// Units asked of limits so far, by the limit's name; of more than 1,000 names the rest under an empty one.
    #[must_use]
    pub fn units_by_limit(&self) -> Vec<(std::sync::Arc<str>, crate::tally::UnitsAsked)> {
        self.catalog.tallies.sums()
    }

    /// Moves what limits decided since the last take into `into`, at most so many counts; false where there was nothing.
    /// The memory of what stood in `into` is used from then on.
    pub fn take_decisions(&mut self, counts_max: usize, into: &mut Decisions) -> bool {
        self.decided.take(&self.catalog, counts_max, into)
    }

    /// Commands without an answer yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outbox
            .outstanding()
            .saturating_add(self.markings.len())
    }
}

impl Engine {
    /// Real µs that a check may wait. The short budget is for a Redis that has fallen silent: one that answered a moment
    /// ago is merely slow, and waiting for it beats a denial that nobody can prove.
    fn budget_us(&self, now: Now, budget: Budget) -> u64 {
        let is_silent = self.links.is_redis_silent(now.real_us, REDIS_SILENT_US);
        if budget == Budget::Redis && is_silent {
            self.config.redis_budget_us
        } else {
            self.config.ledger_budget_us
        }
    }

    /// Queues a check where what it lacks will arrive.
    fn enlist(&mut self, now: Now, key: Key, outcome: &Outcome) {
        let budget = if let Outcome::Short(budget) = outcome {
            *budget
        } else {
            Budget::Ledger
        };
        let budget_us = self.budget_us(now, budget);
        self.set_aside(key, matches!(outcome, Outcome::Short(_)));
        let turn = self.first_short_tokens();
        let waits_for_others = self.is_short_of_units();
        let Some(waiter) = self.waiting.get_mut(key) else {
            return;
        };
        let deadline_us = waiter.since_us.saturating_add(budget_us);
        match outcome {
            Outcome::Decided(_) => return,
            Outcome::Tenant(tenant) => self.catalog.wait_for(*tenant, key),
            Outcome::Meters => self.meter_waiters.push(key),
            Outcome::Short(_) => {
                for charge in &self.charges {
                    let crate::check::judge::Verdict::Short(_) = charge.verdict else {
                        continue;
                    };
                    let Some(bucket) = charge.bucket else {
                        continue;
                    };
                    let counts_values = self
                        .buckets
                        .get(bucket)
                        .is_some_and(|bucket| bucket.counts_values);
                    if waits_for_others && counts_values {
                        // A value is marked last, when every other limit has its units.
                        continue;
                    }
                    if counts_values && !waiter.brought.contains(&bucket) {
                        waiter.brought.push(bucket);
                    }
                    if let Some(first) = turn
                        && self.catalog.is_token_bucket(charge.limit)
                    {
                        if bucket != first {
                            continue;
                        }
                        if !waiter.lent.contains(&bucket) {
                            waiter.lent.push(bucket);
                        }
                    }
                    if !waiter.queues.contains(&bucket)
                        && let Some(state) = self.buckets.get_mut(bucket)
                    {
                        waiter.queues.push(bucket);
                        // Before its units come: what it waits for is not to be kept from it for a restart.
                        state.note_size(charge.units);
                        state.waiters.push_back((key, charge.units));
                    }
                    self.hunts.push_back(bucket);
                }
            }
        }
        self.waiting.extend(key, deadline_us);
    }

    /// Whether a limit is short that does not count values.
    fn is_short_of_units(&self) -> bool {
        self.charges.iter().any(|charge| {
            matches!(charge.verdict, crate::check::judge::Verdict::Short(_))
                && charge
                    .bucket
                    .and_then(|bucket| self.buckets.get(bucket))
                    .is_some_and(|bucket| !bucket.counts_values)
        })
    }

    /// The token bucket whose turn it is among those that are short: the first in name order. Each is asked when those
    /// before it have given, so that a denial at one has taken nothing from those after it.
    fn first_short_tokens(&self) -> Option<Key> {
        let short = self.charges.iter().filter(|charge| {
            matches!(charge.verdict, crate::check::judge::Verdict::Short(_))
                && self.catalog.is_token_bucket(charge.limit)
        });
        let first = short.min_by_key(|charge| {
            let limit = self.catalog.limit(charge.limit);
            limit.map(|limit| (&*limit.rule.name, &*limit.tenant_name))
        });
        first.and_then(|charge| charge.bucket)
    }

    /// Gives back what token buckets lent for a check that another limit denied, or that only looked.
    fn return_lent(&mut self, now: Now, lent: &[Key]) {
        for place in 0..self.charges.len() {
            let Some(charge) = self.charges.get(place).copied() else {
                continue;
            };
            if let (crate::check::judge::Verdict::Fits, Some(key)) = (charge.verdict, charge.bucket)
                && lent.contains(&key)
            {
                self.return_tokens(now, key, charge.units);
            }
        }
    }

    /// Looks at a waiting check again.
    pub(crate) fn reconsider(&mut self, now: Now, key: Key, is_last: bool) {
        let Some(waiter) = self.waiting.get_mut(key) else {
            return;
        };
        let request = std::mem::replace(&mut waiter.request, CheckRequest::nothing());
        let is_last = is_last || waiter.deadline_us <= now.real_us;
        let turn = if is_last { Turn::LAST } else { waiter.turn };
        let outcome = self.evaluate(now, &request, turn);
        if let Some(waiter) = self.waiting.get_mut(key) {
            waiter.request = request;
        }
        if let Outcome::Decided(decision) = outcome {
            if let Some(waiter) = self.waiting.remove(key) {
                self.let_go(waiter.turn, &waiter.aside);
                let is_taken = decision.reason.allowed() && waiter.request.mode != Mode::Peek;
                if !is_taken && !waiter.lent.is_empty() {
                    self.return_lent(now, &waiter.lent);
                }
                if !is_taken {
                    self.withdraw_values(&waiter.request, &waiter.brought);
                }
                self.outbox.tell(Effect::Decide {
                    ticket: waiter.ticket,
                    decision,
                });
            }
        } else {
            self.enlist(now, key, &outcome);
        }
    }

    /// Lets those who wait look again, and takes next steps, until nothing changes any more.
    pub(crate) fn work_off(&mut self, now: Now) {
        self.outbox.set_time(now.real_us);
        loop {
            if !self.dirty.is_empty() {
                self.wake_all(now);
            } else if let Some(key) = self.hunts.pop_front() {
                self.pursue(now, key);
            } else if !self.keeps_due.is_empty() {
                self.keep_on();
            } else {
                return;
            }
        }
    }

    /// Lets all who wait at stirred buckets look again, whoever came first before the others: answers come several at once,
    /// and who waited at one of them is not to pass those who wait at another.
    fn wake_all(&mut self, now: Now) {
        let keys: Vec<Key> = self.dirty.drain(..).collect();
        let mut lines = vec![(None, 0); keys.len()];
        let mut queue = Vec::new();
        for (place, (key, line)) in keys.iter().zip(&mut lines).enumerate() {
            let Some(bucket) = self.buckets.get_mut(*key) else {
                continue;
            };
            bucket.is_dirty = false;
            let tokens = bucket.tokens.as_deref_mut();
            line.0 = tokens.and_then(|tokens| tokens.line.take());
            for (waiter, cost) in std::mem::take(&mut bucket.waiters) {
                if let Some(state) = self.waiting.get(waiter) {
                    queue.push((state.turn, place, waiter, cost));
                }
            }
        }
        queue.sort_unstable();
        for (_, place, waiter, cost) in queue {
            let Some(key) = keys.get(place).copied() else {
                continue;
            };
            if let Some(state) = self.waiting.get_mut(waiter) {
                state.queues.retain(|bucket| *bucket != key);
                self.reconsider(now, waiter, false);
            }
            if let Some((Some(level), ahead)) = lines.get_mut(place) {
                *ahead = self.pass_line(now, key, (waiter, cost), (*level, *ahead));
            }
        }
        for key in keys {
            self.end_wake(now, key);
        }
    }

    fn end_wake(&mut self, now: Now, key: Key) {
        let current = (self.buckets.get(key)).and_then(|bucket| bucket.current.as_ref());
        if let Some(id) = current.map(|window| window.info.id) {
            self.take_marks_back(now, key, id);
        }
        if self.is_draining
            && self
                .buckets
                .get(key)
                .is_some_and(|bucket| bucket.waiters.is_empty())
        {
            self.give_back(now, key, 0);
            self.give_back_next(now, key);
        }
    }
}
