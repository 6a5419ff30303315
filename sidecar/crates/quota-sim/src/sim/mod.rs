//! One schedule after the other: calls and faults drawn from a seed, the rules checked after each step.

mod audit;
mod calls;
mod faults;
mod plan;
mod settle;
mod standing;
mod tokens;

use std::rc::Rc;

use quota_core::{CheckRequest, Decision, EngineConfig, LimitKind, LimitState, Mode, Reason};

pub use self::{
    audit::{Audit, Held, Span, Violation},
    faults::Fault,
    plan::Schedule,
    tokens::Tokens,
};
use crate::world::{Verdict, World, fact::Log, request};

/// Who is told of units that come back has heard by then, real µs.
const SOON_US: u64 = 200_000;

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
    /// Units that restarts took over.
    pub adopted: u64,
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
    outcome.adopted = run.audit.adopted;
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
        let config = EngineConfig {
            keeps: schedule.keeps,
            ..EngineConfig::default()
        };
        let mut world = World::with_config(schedule.seed, schedule.nodes, config);
        world.speed_milli = schedule.speed_milli;
        world.weather = schedule.weather;
        world.commit_us = schedule.commit_us;
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
            let now_us = self.world.now().ledger_us;
            let tokens = Tokens::full(burst, schedule.amount, interval_us, now_us);
            self.audit.tokens = (schedule.keys == 1).then_some(tokens);
        }
        if schedule.values > 0 {
            self.world.count_values("m", "user");
            self.audit.counts_values = true;
        }
        let parent = (!schedule.inherited.is_empty()).then_some("p");
        if let Some(parent) = parent {
            self.world
                .declare(parent, None, schedule.inherited[..1].to_vec());
        }
        self.world.declare("t", parent, schedule.limits.clone());
        if parent.is_some() {
            self.world
                .declare("u", parent, schedule.inherited[1..].to_vec());
        }
        if schedule.is_backed_up {
            self.world.ledger.back_up(&mut self.world.redis.trace);
        }
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
        let long_us = self.schedule.long_us;
        let pause_us = self.world.rng.below(if is_long { long_us } else { 4_000 });
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
            let origin_us = self.world.origin_us;
            faults::strike(&mut self.world, fault, &self.schedule);
            self.judge_clocks(fault, self.world.origin_us - origin_us);
            if fault == Fault::Restore {
                self.audit.stock.forget(&self.world.ledger.rows.recorded);
            }
            if matches!(fault, Fault::Raise | Fault::Lower) {
                let (now, amount) = (self.world.now(), self.world.amount("t", "limit"));
                if let Some(tokens) = &mut self.audit.tokens {
                    tokens.change(amount, now.real_us, now.ledger_us);
                }
            }
        }
    }

    /// Takes in what a fault did to clocks, where ledger time jumped by so much.
    fn judge_clocks(&mut self, fault: Fault, jumped_us: i64) {
        let now_us = self.world.now().ledger_us;
        let Some(tokens) = &mut self.audit.tokens else {
            return;
        };
        tokens.fall_behind(jumped_us);
        match fault {
            Fault::RedisClock => tokens.clock_went_back(now_us),
            Fault::RedisAhead => tokens.clock_jumped_ahead(),
            _ => {}
        }
    }

    /// Takes in what was decided.
    fn hear(&mut self) {
        self.note_plenty();
        let mut verdicts = self.world.verdicts.take().unwrap_or_default();
        let now = self.world.now();
        let ledger_us = |real_us: u64| {
            let span_us = i64::try_from(now.real_us - real_us).expect("in range");
            now.ledger_us - span_us * now.speed_milli / 1_000
        };
        let mut learnt = 0;
        let mut told = std::mem::take(&mut self.world.told).into_iter().peekable();
        for (place, verdict) in verdicts.drain(..).enumerate() {
            while let Some(one) = told.next_if(|one| one.after <= place) {
                learnt = self.audit.learn(&self.world, learnt, one.facts);
                self.audit.move_tokens(one.at.real_us, ledger_us);
                self.hear_told(&one);
            }
            learnt = self.audit.learn(&self.world, learnt, verdict.facts);
            self.audit.move_tokens(verdict.at.real_us, ledger_us);
            self.judge(&verdict);
        }
        for one in told {
            learnt = self.audit.learn(&self.world, learnt, one.facts);
            self.audit.move_tokens(one.at.real_us, ledger_us);
            self.hear_told(&one);
        }
        self.audit.learn(&self.world, learnt, usize::MAX);
        if let Some(log) = &self.world.ledger.facts {
            log.borrow_mut().clear();
        }
        self.audit.move_tokens(now.real_us, ledger_us);
        self.audit.compare_use(&self.world);
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
            && self.is_single()
            && !self.audit.owes(verdict.holder)
        {
            self.audit.deny(verdict.at.real_us, units);
        }
        if verdict.request.mode == Mode::GiveBack {
            return self.judge_give_back(verdict, units);
        }
        if !decision.reason.allowed() || decision.reason == Reason::Uncovered {
            return;
        }
        if self.schedule.is_bucket() {
            return self.judge_tokens(verdict, units);
        }
        if self.is_standing() {
            return self.judge_standing(verdict, units);
        }
        self.count_everywhere(verdict);
        let mut held = Vec::new();
        for state in states_of(decision) {
            let Some((start_us, end_us)) = state.window_us else {
                self.audit
                    .break_rule("window", "admitted without a window".to_owned());
                continue;
            };
            let span: Span = (state.name.clone(), self.world.key_of(state), start_us);
            if self.schedule.values > 0 {
                self.audit.admit_value(&span, &verdict.request.attributes);
                continue;
            }
            self.audit.admit(&span, verdict.holder, units);
            held.push(Held {
                span,
                end_us,
                holder: verdict.holder,
                units,
                has_expired: false,
            });
        }
        if let Mode::Reserve { id, .. } = verdict.request.mode {
            self.audit.held.insert(id, held);
        }
    }

    /// A call counts in every limit that applies, inherited ones included.
    fn count_everywhere(&mut self, verdict: &Verdict) {
        if !verdict.request.all_limits {
            return;
        }
        let tenant = &*verdict.request.tenant;
        let applies = |owner: &str| owner == tenant || (owner == "p" && tenant != "p");
        let owners = self.world.ledger.limits.keys();
        let expected = owners.filter(|(owner, _)| applies(owner)).count();
        if verdict.decision.limits.len() != expected {
            let detail = format!(
                "a call of {tenant} counted in {} limits, {expected} apply",
                verdict.decision.limits.len()
            );
            self.audit.break_rule("uncounted", detail);
        }
    }

    fn judge_tokens(&mut self, verdict: &Verdict, units: u64) {
        let mut reservation = None;
        if let Mode::Reserve { id, .. } = verdict.request.mode {
            reservation = Some(id);
            self.audit.hold_apart(id, verdict.holder, units);
        }
        self.audit
            .admit_tokens(verdict.holder, units, reservation, verdict.at);
    }

    /// One window limit, not split: what could be had is easily told.
    fn is_simple(&self) -> bool {
        let is_window = self.schedule.kind() == LimitKind::Window && self.schedule.values == 0;
        is_window && !self.is_manifold() && self.schedule.keys == 1
    }

    /// One limit, not split, that is no token bucket: units that could be had are easily told.
    fn is_single(&self) -> bool {
        !self.schedule.is_bucket() && !self.is_manifold() && self.schedule.keys == 1
    }

    /// Several limits apply to one call.
    fn is_manifold(&self) -> bool {
        self.schedule.limits.len() > 1 || !self.schedule.inherited.is_empty()
    }

    fn draw(&mut self, bound: u64) -> usize {
        usize::try_from(self.world.rng.below(bound)).expect("small")
    }

    /// Notes what could be had now.
    fn note_plenty(&mut self) {
        if !self.is_single() {
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
        // Units that were gone for a moment between two steps were not there all the time.
        let least = self.world.least_there.take();
        let units = self.world.units_there();
        self.audit
            .note_plenty(real_us, least.map_or(units, |least| least.min(units)));
        self.audit.note_plenty(real_us, units);
    }

    /// After the faults every home that goes on knows how its reservations ended.
    fn must_be_told(&mut self) {
        if let Some(id) = self.world.untold() {
            let what = format!(
                "{:?} was settled elsewhere, and its home never told",
                &id.0[..8]
            );
            self.audit.break_rule("liveness", what);
        }
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
        // What dead processes had in flight comes back after 40 s.
        let is_flight = self.schedule.kind() == LimitKind::Concurrency;
        self.world
            .run_for(if is_flight { 45_000_000 } else { 6_000_000 });
        self.audit.forget_plenty(self.world.real_us);
        self.hear();
        self.must_be_told();
        self.must_be_stored();
        for node in 0..self.schedule.nodes {
            let limits = self.world.ledger.limits.values();
            let is_shut = limits.into_iter().any(|(rule, _)| rule.amount == Some(0));
            let mut check = self.template.clone();
            if self.schedule.keys > 1 {
                check.attributes = vec![("user".into(), "a".into())];
            }
            check.all_limits = self.is_manifold();
            if self.is_standing() {
                self.must_stand(node, check);
                continue;
            }
            if self.schedule.values > 0 {
                // One that nobody has asked for.
                let value = format!("new {node}").into();
                check.attributes = vec![("user".into(), value)];
            }
            let mut reason = self.world.decide_to(node, &check);
            self.hear();
            if reason == Some(Reason::QuotaExhausted) && self.world.units_there() > 0 {
                // What came back in this very moment is told of within the next.
                self.world.run_for(SOON_US);
                reason = self.world.decide_to(node, &check);
                self.hear();
            }
            let owes = self.audit.owes(self.world.holder(node));
            let is_there = self.is_single() && !owes && self.world.units_there() > 0;
            let is_true = match reason {
                Some(Reason::Allowed) => true,
                Some(Reason::QuotaExhausted) => !is_there,
                Some(Reason::RateLimited) => self.schedule.is_bucket(),
                Some(Reason::CostExceedsLimit) => is_shut,
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

/// The limits that a decision tells of: all that apply, or the one that binds.
fn states_of(decision: &Decision) -> &[LimitState] {
    if decision.limits.is_empty() {
        decision.binding.as_slice()
    } else {
        &decision.limits
    }
}
