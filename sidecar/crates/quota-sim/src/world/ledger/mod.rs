//! The ledger: who gets which units of which window, in transactions; what Redis is told after them; restores.

mod cursor;
mod learning;
mod opening;
mod publish;
mod standing;
mod window;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use quota_core::{
    AllotAnswer, AllotAsk, DecisionLog, Enforcement, FailurePolicy, Holder, KeyHash, LimitKind,
    LimitRule, STANDING_END_US, UseCum, WindowId, WindowUse,
    mutant::{self, Mutant},
};

use self::{cursor::Cursor, learning::Learning, window::Answer};
pub use self::{
    publish::Line,
    standing::{LEASE_US, Record, Standing},
    window::{Generation, Lease, Window},
};
use super::fact::{Fact, Log};

/// Windows may have been asked for so much before they began, ledger µs: 5 s, or 250 ms of real time of a fast clock.
const AHEAD_US: i64 = 20_000_000;
/// What a holder hears of a window that a restore stopped.
const RESTORED: &str = "RESTORE_UNCONFIRMED";
const DAY_US: i64 = 86_400_000_000;

/// A limit's windows.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Ledger µs.
    pub length_us: i64,
    /// Begins at first use instead of at multiples of its length.
    pub is_rolling: bool,
}

impl Plan {
    /// Each minute.
    pub const MINUTE: Self = Self::each(60_000_000);
    /// Each hour.
    pub const HOUR: Self = Self::each(3_600_000_000);
    /// Each day.
    pub const DAY: Self = Self::each(DAY_US);

    const fn each(length_us: i64) -> Self {
        Self {
            length_us,
            is_rolling: false,
        }
    }
}

/// (tenant, limit, key).
pub type Identity = (Arc<str>, Arc<str>, KeyHash);

/// What Postgres holds.
#[derive(Clone, Debug)]
pub struct Rows {
    /// All windows.
    pub windows: Vec<Window>,
    ids: BTreeMap<WindowId, usize>,
    cursors: BTreeMap<Identity, Cursor>,
    shards: BTreeMap<(Arc<str>, Arc<str>, u8), u64>,
    /// 1 + restores.
    pub timeline: u64,
    /// Records of levels that were counted.
    pub recorded: BTreeSet<u64>,
}

/// A ledger.
#[derive(Debug)]
pub struct Ledger {
    /// (tenant, limit) → rule and plan.
    pub limits: BTreeMap<(Arc<str>, Arc<str>), (LimitRule, Plan)>,
    /// Instants at which windows of (tenant, limit) turn, ledger µs, in order, where they are not all of one length.
    pub turns: BTreeMap<(Arc<str>, Arc<str>), Vec<i64>>,
    /// Meters that count distinct values.
    pub value_meters: BTreeSet<Arc<str>>,
    /// What it knows.
    pub rows: Rows,
    kept: Option<Rows>,
    restored_at_us: i64,
    names: u64,
    untold: Vec<WindowId>,
    /// Windows whose pools were found to be gone: nobody whom they had refused was told yet.
    gone: Vec<WindowId>,
    /// Who lacks units of a level or in flight, and how many: others are to give back what lies idle.
    pub lacking: Vec<(Identity, Holder, u64)>,
    looks: standing::Looks,
    learning: Learning,
    /// Of the bucket's shard that was opened last: whether it never was before. For traces.
    pub(super) opened: Option<bool>,
    /// Notices to be sent on all watch streams.
    pub notices: Vec<Identity>,
    /// Leases that are to come back.
    pub recalls: Vec<Identity>,
    /// What was done, in order; `None` where nobody recomputes it.
    pub facts: Option<Log>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            limits: BTreeMap::new(),
            turns: BTreeMap::new(),
            value_meters: BTreeSet::new(),
            rows: Rows {
                windows: Vec::new(),
                ids: BTreeMap::new(),
                cursors: BTreeMap::new(),
                shards: BTreeMap::new(),
                timeline: 1,
                recorded: BTreeSet::new(),
            },
            kept: None,
            restored_at_us: i64::MIN,
            names: 0,
            untold: Vec::new(),
            gone: Vec::new(),
            lacking: Vec::new(),
            looks: BTreeMap::new(),
            learning: Learning::default(),
            opened: None,
            notices: Vec::new(),
            recalls: Vec::new(),
            facts: None,
        }
    }
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
        is_shared: false,
        learns: false,
        log: DecisionLog::Denied,
        nominal_us: 60_000_000,
    }
}

fn refused(reason: &str, last_request_seq: u64) -> AllotAnswer {
    AllotAnswer::Refused {
        reason: reason.into(),
        last_request_seq,
    }
}

impl Ledger {
    fn note(&mut self, fact: Fact) {
        if let Some(facts) = &self.facts {
            facts.borrow_mut().push(fact);
        }
    }

    /// The span that holds an ask's time, of a limit whose windows are not all of one length.
    fn uneven_window(&self, ask: &AllotAsk) -> Option<(i64, i64)> {
        let turns = self.turns.get(&(ask.tenant.clone(), ask.limit.clone()))?;
        let next = turns.partition_point(|turn_us| *turn_us <= ask.at_us);
        let start_us = turns.get(next.checked_sub(1)?)?;
        Some((*start_us, *turns.get(next)?))
    }

    /// The window that holds an ask's time, opened where there is none.
    fn window_at(&mut self, ask: &AllotAsk, plan: Plan) -> Result<usize, &'static str> {
        let identity = (ask.tenant.clone(), ask.limit.clone(), ask.key_hash);
        let frozen_before_us = self.frozen_before_us();
        let uneven = self.uneven_window(ask);
        let (has_learned, learns) = (self.has_learned(), self.learns(&identity));
        let cursor = self.rows.cursors.entry(identity.clone()).or_default();
        let is_known = !(mutant::is(Mutant::TwoFirstWindows) && ask.request_seq == 1);
        if let Some(place) = cursor.find(ask.at_us).filter(|_| is_known) {
            return Ok(place);
        }
        let standing = (self.limits)
            .get(&(ask.tenant.clone(), ask.limit.clone()))
            .and_then(|(rule, _)| Standing::of(rule.kind));
        let even_us = ask.at_us.div_euclid(plan.length_us) * plan.length_us;
        let (start_us, end_us) = match standing {
            Some(_) => (0, STANDING_END_US),
            None if plan.is_rolling => (ask.at_us, ask.at_us + plan.length_us),
            None => uneven.unwrap_or((even_us, even_us + plan.length_us)),
        };
        // A rolling window that Postgres has lost may reach a whole length beyond the restore.
        let lost_us = start_us - if plan.is_rolling { plan.length_us } else { 0 };
        let is_learned = has_learned && learns;
        if lost_us < frozen_before_us && !is_learned && !mutant::is(Mutant::RestoreNotFrozen) {
            return Err(RESTORED);
        }
        let place = self.rows.windows.len();
        let span = cursor.open(ask.at_us, (start_us, end_us), place);
        let (start_us, end_us) = match span {
            Some(span) => span,
            None if !is_known => (start_us, start_us + plan.length_us),
            None => return Err("FIELD_OUT_OF_RANGE"),
        };
        let id = self.name(end_us);
        self.add_window(identity, (start_us, end_us), id, standing);
        Ok(place)
    }

    /// Brings a window to the amount in force; answers whether it changed.
    fn follow(&mut self, place: usize) -> bool {
        let window = &mut self.rows.windows[place];
        let limit = (window.identity.0.clone(), window.identity.1.clone());
        let Some((rule, _)) = self.limits.get(&limit) else {
            return false;
        };
        let allotted = window.allotted;
        let amount = rule.amount.unwrap_or(quota_core::UNITS_MAX);
        let is_newer = rule.amount_version > window.amount_version;
        let is_changed = window.follow_amount(amount, rule.amount_version);
        if is_newer {
            let window = window.id;
            self.note(Fact::Amount {
                window,
                amount,
                allotted,
            });
        }
        is_changed
    }

    /// Changes an amount, closes and extends pools as it follows.
    pub fn set_amount(&mut self, tenant: &str, limit: &str, amount: u64, line: &mut Line<'_>) {
        let key: (Arc<str>, Arc<str>) = (tenant.into(), limit.into());
        let (rule, _) = self.limits.get_mut(&key).expect("a limit");
        rule.amount = Some(amount);
        rule.amount_version += 1;
        let mut trace = line.redis.trace.take();
        if let Some(trace) = &mut trace {
            self.trace_limit(tenant, limit, trace);
        }
        line.redis.trace = trace;
        for place in 0..self.rows.windows.len() {
            let identity = &self.rows.windows[place].identity;
            if (&identity.0, &identity.1) != (&key.0, &key.1) || !self.follow(place) {
                continue;
            }
            let window = &self.rows.windows[place];
            if window.allotted > window.amount {
                self.recalls.push(window.identity.clone());
            }
            self.publish(place, line);
            self.notice_if_due(place);
        }
        self.close_pools(line);
    }

    fn notice_if_due(&mut self, place: usize) {
        let window = &mut self.rows.windows[place];
        if window.is_notice_due() {
            self.notices.push(window.identity.clone());
        }
    }

    /// The window of this name.
    #[must_use]
    pub fn window(&self, id: WindowId) -> Option<&Window> {
        self.rows
            .ids
            .get(&id)
            .map(|place| &self.rows.windows[*place])
    }

    /// Answers one ask.
    pub fn allot(
        &mut self,
        holder: Holder,
        ask: &AllotAsk,
        line: &mut Line<'_>,
        now_us: i64,
    ) -> AllotAnswer {
        let answer = self.answer(holder, ask, line, now_us);
        self.trace_allot(holder, ask, &answer, line, now_us);
        answer
    }

    fn answer(
        &mut self,
        holder: Holder,
        ask: &AllotAsk,
        line: &mut Line<'_>,
        now_us: i64,
    ) -> AllotAnswer {
        let key = (ask.tenant.clone(), ask.limit.clone());
        let Some((rule, plan)) = self.limits.get(&key) else {
            return refused("LIMIT_UNKNOWN", 0);
        };
        if let LimitKind::TokenBucket { .. } = rule.kind {
            return self.shard(ask, line, now_us);
        }
        let plan = *plan;
        let place = match self.window_at(ask, plan) {
            Ok(place) => place,
            Err(reason) => return refused(reason, 0),
        };
        let place = match self.take_up(place) {
            Ok(place) => place,
            Err(reason) => return refused(reason, 0),
        };
        self.follow(place);
        let lease = self.rows.windows[place].leases.get(&holder);
        let renewals = lease.map_or(0, |lease| lease.renewals);
        let answer = self.decide(place, holder, ask);
        self.notice_if_due(place);
        self.publish(place, line);
        let window = &self.rows.windows[place];
        let lease = window.leases.get(&holder).copied().unwrap_or_default();
        if lease.epoch > 0 && lease.renewals > renewals {
            let real_us = line.real_us;
            self.note(Fact::Renewed { holder, real_us });
        }
        let window = &self.rows.windows[place];
        if window.standing.is_some() && answer == Answer::Denied {
            let lacking = (window.identity.clone(), holder, ask.need.max(1));
            self.lacking.push(lacking);
        }
        match (answer, window.generation()) {
            (Answer::Leased { give, granted_cum }, _) => AllotAnswer::Lease {
                window: window.info(),
                give,
                granted_cum,
                lease_epoch: lease.epoch,
                valid_for_us: if lease.epoch > 0 { LEASE_US } else { 0 },
            },
            (Answer::Pooled, Some(generation)) => AllotAnswer::Pool {
                window: window.info(),
                generation: generation.number,
                allotted_cum: generation.allotted_cum,
                last: window.is_final(),
                pool_key: window.pool_key.clone(),
                holders_key: window.holders_key.clone(),
                values_key: window.values_key.clone(),
                channel: window.channel.clone(),
            },
            (Answer::Denied | Answer::Pooled, _) => AllotAnswer::Denied {
                window: window.info(),
                left: window.left(),
            },
            (Answer::Refused { reason, last_seq }, _) => refused(reason, last_seq),
        }
    }

    /// Lets a window decide and notes what it did.
    fn decide(&mut self, place: usize, holder: Holder, ask: &AllotAsk) -> Answer {
        let window = &mut self.rows.windows[place];
        let cursor = self
            .rows
            .cursors
            .get_mut(&window.identity)
            .expect("its cursor");
        let timeline = self.rows.timeline;
        let next = (timeline << 32) + cursor.generation_n + 1;
        let before = (
            window.allotted,
            window.generations.len(),
            window.generation().map_or(0, |g| g.allotted_cum),
        );
        let granted_before = window
            .leases
            .get(&holder)
            .map_or(0, |lease| lease.granted_cum);
        let answer = window.decide(holder, ask, next);
        let id = window.id;
        let taken = window.allotted - before.0;
        let granted = window
            .leases
            .get(&holder)
            .map_or(0, |lease| lease.granted_cum)
            - granted_before;
        let is_standing = window.standing.is_some();
        let paid = if is_standing { granted - taken } else { 0 };
        let newest = window.generation().copied();
        let is_new = window.generations.len() > before.1;
        let into_pool =
            newest.map_or(0, |last| last.allotted_cum) - if is_new { 0 } else { before.2 };
        if is_new {
            cursor.generation_n += 1;
            let generation = newest.map_or(0, |last| last.number);
            self.note(Fact::Opened {
                window: id,
                generation,
            });
        }
        if granted > 0 {
            self.note(Fact::Leased {
                window: id,
                holder,
                units: granted,
                paid,
            });
        }
        if let Some(last) = newest.filter(|_| into_pool > 0) {
            self.note(Fact::Allotted {
                window: id,
                generation: last.number,
                units: into_pool,
            });
        }
        answer
    }

    /// Takes units back; answers the cumulative return that is now known.
    pub fn give_back(
        &mut self,
        holder: Holder,
        id: WindowId,
        generation: u64,
        returned_cum: u64,
        line: &mut Line<'_>,
    ) -> u64 {
        let Some(place) = self.rows.ids.get(&id).copied() else {
            return 0;
        };
        let window = &mut self.rows.windows[place];
        // Nobody knows any more what left the windows of an earlier timeline: they take nothing back.
        let is_forgotten = window.timeline < self.rows.timeline;
        let (units, known) = if is_forgotten {
            (0, 0)
        } else if generation == 0 {
            let units = window.return_lease(holder, returned_cum);
            (units, window.leases[&holder].returned_cum)
        } else {
            let units = window
                .return_pooled(holder, generation, returned_cum)
                .unwrap_or(0);
            let known = window.lost_returns.get(&(holder, generation));
            (units, known.copied().unwrap_or(0))
        };
        if units > 0 {
            self.note(Fact::Credited {
                window: id,
                generation,
                is_unspent: false,
                units,
            });
        }
        self.publish(place, line);
        self.notice_if_due(place);
        self.trace_told(
            "return",
            holder,
            id,
            [generation, returned_cum],
            [generation, known],
            line,
        );
        known
    }

    /// Stores use and answers the fleet's.
    pub fn report(
        &mut self,
        holder: Holder,
        id: WindowId,
        used: UseCum,
        (epoch, in_flight): (u64, u64),
        line: &mut Line<'_>,
        now_us: i64,
    ) -> WindowUse {
        let Some(place) = self.rows.ids.get(&id).copied() else {
            return WindowUse {
                consumed: 0,
                over: 0,
                allotted: 0,
                amount: Some(0),
                as_of_us: now_us,
                lease_epoch: 0,
            };
        };
        let lease_epoch = self.renew(place, holder, (epoch, in_flight), line.real_us);
        let window = &mut self.rows.windows[place];
        let own = window.consumed.entry(holder).or_default();
        *own = (own.0.max(used.consumed), own.1.max(used.over));
        let told = [used.consumed, used.over];
        let back = window.given_back.entry(holder).or_default();
        *back = used.given_back.max(*back);
        let sum = |sum: (u64, u64), own: &(u64, u64)| (sum.0 + own.0, sum.1 + own.1);
        let (consumed, over) = window.consumed.values().fold((0, 0), sum);
        let back: u64 = window.given_back.values().sum();
        let beyond = back.saturating_sub(consumed);
        let (consumed, over) = (consumed.saturating_sub(back), over.saturating_sub(beyond));
        let (consumed, over) = match window.standing {
            None => (consumed, over),
            Some(kind) => (window.standing_use(kind), 0),
        };
        let fleet = WindowUse {
            consumed,
            over,
            allotted: window.allotted,
            amount: Some(window.amount),
            as_of_us: now_us,
            lease_epoch,
        };
        self.trace_told("report", holder, id, told, [consumed, over], line);
        fleet
    }

    /// Remembers the present as what a restore would bring back.
    pub fn back_up(&mut self, trace: &mut Option<Vec<String>>) {
        self.kept = Some(self.rows.clone());
        if let Some(trace) = trace {
            self.trace_event("backup", 0, trace);
        }
    }

    /// Whether a window that is on at this time can't be given out since a restore.
    #[must_use]
    pub fn is_frozen(&self, now_us: i64) -> bool {
        self.restored_at_us != i64::MIN
            && now_us <= self.restored_at_us.saturating_add(3_600_000_000 + AHEAD_US)
    }

    /// Windows that began before this were stopped by a restore; ledger µs.
    #[must_use]
    pub fn frozen_before_us(&self) -> i64 {
        if self.restored_at_us == i64::MIN {
            return 0;
        }
        self.restored_at_us + AHEAD_US + 1
    }

    /// Whether a window is one of those that a restore stopped.
    #[must_use]
    pub fn is_stopped(&self, id: WindowId) -> bool {
        self.window(id)
            .is_none_or(|window| window.start_us < self.frozen_before_us())
    }

    /// Sets Postgres back, knowingly: the next timeline, and nothing more of windows that may be open.
    pub fn restore(&mut self, now_us: i64, trace: &mut Option<Vec<String>>) {
        let Some(mut rows) = self.kept.clone() else {
            return;
        };
        rows.timeline = self.rows.timeline + 1;
        self.rows = rows;
        self.restored_at_us = now_us;
        self.learning = Learning::begun(now_us);
        self.untold.clear();
        self.gone.clear();
        if let Some(trace) = trace {
            self.trace_event("restore", now_us, trace);
        }
    }

    /// Takes back what a holder was leased, though nobody knows whether it was spent: what must never be done.
    pub(crate) fn reclaim(&mut self, holder: Holder) {
        for place in 0..self.rows.windows.len() {
            let window = &mut self.rows.windows[place];
            let units = window.reclaim(holder);
            let window = window.id;
            if units > 0 {
                self.note(Fact::Credited {
                    window,
                    generation: 0,
                    is_unspent: false,
                    units,
                });
            }
        }
    }
}
