//! One schedule after the other: calls and faults drawn from a seed, the rules checked after each step.

mod audit;
mod faults;
mod plan;

use std::{rc::Rc, sync::Arc};

use quota_core::{CheckRequest, Cost, LimitState, Mode, Reason, ReservationId};

pub use self::{
    audit::{Audit, Held, Shadow, Span, Violation},
    faults::Fault,
    plan::Schedule,
};
use crate::world::{Verdict, World, fact::Log, ledger::Generation, request};

/// How a schedule went.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// Steps taken.
    pub steps: u64,
    /// Faults that struck, in the order of [`Fault::ALL`].
    pub faults: Vec<u64>,
    /// Checks decided.
    pub checks: u64,
    /// Units admitted.
    pub admitted: u64,
    /// The first rule that was broken, and the step.
    pub violation: Option<(u64, Violation)>,
}

struct Run {
    world: World,
    audit: Audit,
    schedule: Schedule,
    serial: u64,
    checks: u64,
    window_us: Option<(i64, i64)>,
    /// Bounds of the window in which Redis was last flushed. With the pool it forgot who was denied for lack of units, so
    /// nobody is told when they come back to the ledger: not promised before the window ends.
    flushed_us: Option<(i64, i64)>,
    is_told: bool,
    template: CheckRequest,
}

/// Runs a schedule to its end or the first broken rule. `is_told` prints every step.
#[must_use]
pub fn run(schedule: &Schedule, is_told: bool) -> Outcome {
    let mut run = Run::new(schedule.clone(), is_told);
    let mut outcome = Outcome {
        seed: schedule.seed,
        faults: vec![0; Fault::ALL.len()],
        ..Outcome::default()
    };
    for step in 0..schedule.steps {
        outcome.steps = step + 1;
        run.step(&mut outcome);
        if let Some(violation) = run.audit.violation.clone() {
            outcome.violation = Some((step, violation));
            break;
        }
    }
    if outcome.violation.is_none() {
        run.must_be_live();
        let end = outcome.steps;
        outcome.violation = run
            .audit
            .violation
            .clone()
            .map(|violation| (end, violation));
    }
    outcome.checks = run.checks;
    outcome.admitted = run.audit.admitted;
    outcome
}

/// Runs a schedule and answers the lines of its trace.
#[must_use]
pub fn trace(schedule: &Schedule) -> Vec<String> {
    let mut run = Run::untold(schedule.clone());
    run.world.redis.trace = Some(Vec::new());
    run.declare();
    let mut outcome = Outcome {
        faults: vec![0; Fault::ALL.len()],
        ..Outcome::default()
    };
    for _ in 0..schedule.steps {
        run.step(&mut outcome);
    }
    run.world.redis.trace.take().unwrap_or_default()
}

impl Run {
    fn new(schedule: Schedule, is_told: bool) -> Self {
        let mut run = Self::untold(schedule);
        run.is_told = is_told;
        run.world.is_traced = is_told;
        run.declare();
        run
    }

    fn untold(schedule: Schedule) -> Self {
        let mut world = World::new(schedule.seed, schedule.nodes);
        world.speed_milli = schedule.speed_milli;
        world.weather = schedule.weather;
        world.verdicts = Some(Vec::new());
        let log = Log::default();
        world.ledger.facts = Some(Rc::clone(&log));
        world.redis.facts = Some(log);
        Self {
            world,
            audit: Audit::default(),
            schedule,
            serial: 0,
            checks: 0,
            window_us: None,
            flushed_us: None,
            is_told: false,
            template: request("t", "m", 1),
        }
    }

    fn declare(&mut self) {
        let schedule = &self.schedule;
        if let quota_core::LimitKind::TokenBucket {
            refill_interval_us,
            burst,
        } = schedule.limits[0].0.kind
        {
            let interval_us = refill_interval_us.unsigned_abs();
            // What is on its way when it is taken, and what a slice of the second before may still bring.
            let slack = Shadow::slack_of(schedule.amount, interval_us);
            let now_us = self.world.now().ledger_us;
            // Holders that are cut off add 2 % in all: of the rate, and saved up, of the burst.
            let (rate, interval_us) = (schedule.amount * 51, interval_us * 50);
            let slack = slack + burst / 50;
            let shadow = Shadow::full(burst, rate, interval_us, slack, now_us);
            self.audit.shadow = (schedule.keys == 1).then_some(shadow);
        }
        self.world.declare("t", None, schedule.limits.clone());
    }

    fn step(&mut self, outcome: &mut Outcome) {
        self.use_something();
        if self.world.rng.chance(self.schedule.fault_rate) {
            self.break_something(outcome);
        }
        for node in 0..self.world.nodes.len() {
            if self.world.is_behind(node) && self.world.rng.chance(300) {
                self.world.tell_time(node);
            }
        }
        let is_long = self.world.rng.chance(self.schedule.long_rate);
        let pause_us = self.world.rng.below(if is_long { 400_000 } else { 4_000 });
        self.world.run_for(pause_us);
        self.hear();
    }

    fn break_something(&mut self, outcome: &mut Outcome) {
        let total: u64 = self.schedule.faults.iter().map(|(_, weight)| weight).sum();
        let mut draw = self.world.rng.below(total.max(1));
        let struck = self.schedule.faults.iter().position(|(_, weight)| {
            let is_it = draw < *weight;
            draw = draw.saturating_sub(*weight);
            is_it
        });
        if let Some(place) = struck {
            let fault = self.schedule.faults[place].0;
            if self.is_told {
                eprintln!("{} --- {fault:?}", self.world.real_us);
            }
            outcome.faults[place] += 1;
            faults::strike(&mut self.world, fault, self.schedule.amount);
            if fault == Fault::Flush {
                let window = self.world.window_now();
                self.flushed_us = window.map(|window| (window.start_us, window.end_us));
            }
            if matches!(fault, Fault::Raise | Fault::Lower) {
                // From here on two rates are in force at once: tests/buckets.rs judges that with the exact history.
                self.audit.shadow = None;
            }
        }
    }

    /// One call, reservation or settlement somewhere.
    fn use_something(&mut self) {
        let node =
            usize::try_from(self.world.rng.below(self.schedule.nodes as u64)).expect("small");
        if self.world.is_paused(node) {
            return;
        }
        let is_large = self.world.rng.chance(self.schedule.large_rate);
        let large = self.schedule.amount / 4 + 1;
        let units = if is_large {
            self.world.rng.between(1, large)
        } else {
            1
        };
        let mut check = self.template.clone();
        check.costs[0].units = units;
        check.all_limits = self.schedule.limits.len() > 1;
        if self.schedule.keys > 1 {
            let key = if self.world.rng.chance(500) { "a" } else { "b" };
            check.attributes = vec![("user".into(), key.into())];
        }
        if self.world.rng.chance(self.schedule.reserve_rate) {
            self.serial += 1;
            let mut id = [0; 16];
            id[..8].copy_from_slice(&self.serial.to_be_bytes());
            let ttl_us = if self.world.rng.chance(300) {
                50_000
            } else {
                3_600_000_000
            };
            let expires_us =
                self.world.now_of(node).ledger_us + ttl_us * self.schedule.speed_milli / 1_000;
            check.mode = Mode::Reserve {
                id: ReservationId(id),
                expires_us,
            };
        }
        self.world.check(node, &check);
        self.hear();
        if self.world.rng.chance(self.schedule.reserve_rate * 3 / 4) {
            self.settle_something();
        }
    }

    fn settle_something(&mut self) {
        let count = self.audit.held.len() as u64;
        let place = usize::try_from(self.world.rng.below(count)).expect("small");
        let Some((id, held)) = self.audit.held.iter().nth(place) else {
            return;
        };
        let (id, held) = (*id, held.clone());
        let units = held.iter().map(|held| held.units).max().unwrap_or(0);
        let actual = match self.world.rng.below(4) {
            0 => 0,
            1 => units,
            2 => units + self.world.rng.below(3),
            _ => self.world.rng.below(units + 1),
        };
        let Some(node) = held
            .first()
            .and_then(|held| self.world.node_of(held.holder))
        else {
            self.audit.held.remove(&id);
            return;
        };
        if self.world.is_paused(node) {
            return;
        }
        self.audit.held.remove(&id);
        let costs = [Cost {
            meter: Arc::clone(&self.template.costs[0].meter),
            units: actual,
        }];
        let now = self.world.now_of(node);
        // Before anything else is decided there: what is free again may be taken at once.
        let Ok(settled) = self.world.nodes[node].engine.settle(now, id, &costs) else {
            self.audit
                .break_rule("reservation", format!("{id:?} is not known at home"));
            return;
        };
        if self.is_told {
            eprintln!(
                "{} --- node {node} settles {held:?} at {actual}: {settled:?}",
                now.real_us
            );
        }
        for held in &held {
            if held.end_us > now.ledger_us {
                self.audit.settle(held, actual, settled.expired);
            }
        }
        self.world.carry(node);
        self.hear();
    }

    /// Takes in what was decided.
    fn hear(&mut self) {
        self.audit.learn(&self.world);
        self.note_plenty();
        let mut verdicts = self.world.verdicts.take().unwrap_or_default();
        for verdict in verdicts.drain(..) {
            self.judge(&verdict);
        }
        self.world.verdicts = Some(verdicts);
    }

    fn judge(&mut self, verdict: &Verdict) {
        self.checks += 1;
        let units = verdict.request.costs[0].units;
        let decision = &verdict.decision;
        if self.is_told {
            eprintln!(
                "{} --- node {} {units} units, {:?}: {:?}",
                self.world.real_us, verdict.node, verdict.request.mode, decision.reason
            );
        }
        if decision.reason == Reason::QuotaExhausted
            && self.is_simple()
            && !self.audit.owes(verdict.holder)
        {
            self.audit.deny(self.world.real_us, units);
        }
        if !decision.reason.allowed() || decision.reason == Reason::Uncovered {
            return;
        }
        if self.schedule.is_bucket() {
            let now_us = self.world.now().ledger_us;
            return self.audit.admit_tokens(units, now_us);
        }
        let states: &[LimitState] = if decision.limits.is_empty() {
            decision.binding.as_slice()
        } else {
            &decision.limits
        };
        let mut held = Vec::new();
        for state in states {
            let Some((start_us, end_us)) = state.window_us else {
                self.audit
                    .break_rule("window", "admitted without a window".to_owned());
                continue;
            };
            let span: Span = (state.name.clone(), self.world.key_of(state), start_us);
            self.audit.admit(&span, verdict.holder, units);
            held.push(Held {
                span,
                end_us,
                holder: verdict.holder,
                units,
            });
        }
        if let Mode::Reserve { id, .. } = verdict.request.mode {
            self.audit.held.insert(id, held);
        }
    }

    /// One window limit, not split: what could be had is easily told.
    fn is_simple(&self) -> bool {
        self.schedule.limits.len() == 1 && self.schedule.keys == 1 && !self.schedule.is_bucket()
    }

    /// Units that somebody could get now of the first limit, from the ledger or from its pool.
    fn units_there(&self) -> u64 {
        // Who is led astray in a split is told by a pool that nobody extends: not promised.
        let Some(window) = self
            .world
            .window_now()
            .filter(|_| !self.world.redis.is_split)
        else {
            return 0;
        };
        let bounds = Some((window.start_us, window.end_us));
        // While the ledger doesn't reach Redis, a pool may call itself final that isn't.
        if !self.world.is_line_up {
            return 0;
        }
        if self.flushed_us == bounds || self.world.ledger.is_stopped(window.id) {
            return 0;
        }
        let is_served = window.generation().is_some_and(Generation::is_live);
        let free = self.world.redis.pool_free(window.pool_key());
        window.left().max(if is_served { free } else { 0 })
    }

    /// Notes what could be had now.
    fn note_plenty(&mut self) {
        if !self.is_simple() {
            return;
        }
        let real_us = self.world.real_us;
        let bounds = self
            .world
            .window_now()
            .map(|window| (window.start_us, window.end_us));
        if bounds != self.window_us {
            self.window_us = bounds;
            self.audit.forget_plenty(real_us);
        }
        let units = self.units_there();
        self.audit.note_plenty(real_us, units);
    }

    /// After the faults everybody gets a true answer, and what is there can be had.
    fn must_be_live(&mut self) {
        faults::heal(&mut self.world);
        // What was decided meanwhile was decided at times at which nobody looked at what was there.
        self.audit.forget_plenty(self.world.real_us);
        self.hear();
        // A restore stops windows that were open then until an operator says otherwise: the next one is free.
        if self.world.is_frozen() {
            let length_us = self.schedule.limits[0].1.length_us;
            self.world.jump(length_us + 30_000_000);
            for node in 0..self.schedule.nodes {
                self.world.tell_time(node);
            }
        }
        self.world.run_for(6_000_000);
        self.audit.forget_plenty(self.world.real_us);
        self.hear();
        for node in 0..self.schedule.nodes {
            let amount = self
                .world
                .ledger
                .limits
                .values()
                .next()
                .and_then(|(rule, _)| rule.amount);
            let mut check = self.template.clone();
            if self.schedule.keys > 1 {
                check.attributes = vec![("user".into(), "a".into())];
            }
            check.all_limits = self.schedule.limits.len() > 1;
            let reason = self.world.decide_to(node, &check);
            self.hear();
            let owes = self.audit.owes(self.world.holder(node));
            let is_there = self.is_simple() && !owes && self.units_there() > 0;
            let is_true = match reason {
                Some(Reason::Allowed) => true,
                Some(Reason::QuotaExhausted) => !is_there,
                Some(Reason::RateLimited) => self.schedule.is_bucket(),
                Some(Reason::CostExceedsLimit) => amount == Some(0),
                _ => false,
            };
            if !is_true {
                let what = format!(
                    "node {node} heard {reason:?} after the faults; units there: {is_there}"
                );
                self.audit.break_rule("liveness", what);
            }
        }
    }
}
