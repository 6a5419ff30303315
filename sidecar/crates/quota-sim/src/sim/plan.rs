//! What a seed says: how many sidecars, which limit, how bad the weather, which faults and how often.

use quota_core::{FailurePolicy, LimitKind, LimitRule};

use super::faults::Fault;
use crate::{
    rng::Rng,
    world::{
        Weather,
        ledger::{Plan, window_rule},
    },
};

/// One schedule's parameters.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Its name.
    pub seed: u64,
    /// Sidecars, 3 to 5.
    pub nodes: usize,
    /// Steps.
    pub steps: u64,
    /// Units, or tokens per interval.
    pub amount: u64,
    /// The limits: all count the same meter.
    pub limits: Vec<(LimitRule, Plan)>,
    /// Where tenants have a parent: its limit, and that of a second child.
    pub inherited: Vec<(LimitRule, Plan)>,
    /// Sidecars have volumes: a restart goes on with what was kept.
    pub keeps: bool,
    /// A group commit takes so long, real µs.
    pub commit_us: u64,
    /// Postgres is backed up before anything is used.
    pub is_backed_up: bool,
    /// Settlements at another sidecar or the ledger, of a thousand.
    pub elsewhere_rate: u64,
    /// Keys that the limits are split by; 1 = not split.
    pub keys: u64,
    /// Ledger µs per 1,000 real µs.
    pub speed_milli: i64,
    /// How bad the network is.
    pub weather: Weather,
    /// Faults, of a thousand steps.
    pub fault_rate: u64,
    /// Faults by weight.
    pub faults: Vec<(Fault, u64)>,
    /// Reservations, of a thousand calls.
    pub reserve_rate: u64,
    /// Large calls, of a thousand.
    pub large_rate: u64,
    /// Long pauses between steps, of a thousand.
    pub long_rate: u64,
    /// What is given back, of a thousand calls.
    pub back_rate: u64,
    /// Distinct values that callers bring; 0 = units are counted.
    pub values: u64,
    /// What an operator says of a level, of a thousand calls.
    pub set_rate: u64,
    /// Reservations are never settled above what they held.
    pub is_true_bound: bool,
    /// How long they are at most, real µs.
    pub long_us: u64,
    /// How long a paused sidecar stands still at most, real µs.
    pub pause_max_us: u64,
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[usize::try_from(rng.below(from.len() as u64)).expect("small")]
}

/// Draws one or two limits of one meter, and how many keys split them.
fn draw_limits(rng: &mut Rng, is_bucket: bool, amount: u64) -> (Vec<(LimitRule, Plan)>, u64) {
    let policy = pick(
        rng,
        &[
            FailurePolicy::Closed,
            FailurePolicy::Ledger,
            FailurePolicy::Standby,
        ],
    );
    let minutes = pick(rng, &[1, 1, 5, 60]);
    let plan = Plan {
        length_us: minutes * 60_000_000,
        is_rolling: rng.chance(150) && !is_bucket,
    };
    let rule = |name: &str, amount: u64| {
        let mut rule = window_rule(name, "m", amount);
        rule.failure_policy = policy;
        rule.is_rolling = plan.is_rolling;
        rule.nominal_us = plan.length_us;
        rule
    };
    let mut limits = vec![(rule("limit", amount), plan)];
    let keys = if rng.chance(120) { 2 } else { 1 };
    if is_bucket {
        limits[0].0.kind = LimitKind::TokenBucket {
            refill_interval_us: pick(rng, &[1_000_000, 60_000_000]),
            burst: rng.between(1, 2 * amount),
        };
    } else if rng.chance(150) {
        limits.push((
            rule(
                "second",
                amount.saturating_mul(rng.between(1, 3)).max(2) / 2,
            ),
            plan,
        ));
    }
    if keys > 1 {
        for (rule, _) in &mut limits {
            rule.key = Box::new(["user".into()]);
        }
    }
    (limits, keys)
}

/// Draws the limit of a parent and of its second child, where there is a parent.
fn draw_inherited(rng: &mut Rng, limits: &[(LimitRule, Plan)]) -> Vec<(LimitRule, Plan)> {
    let (own, plan) = &limits[0];
    let amount = own.amount.unwrap_or(1);
    let named = |name: &str, amount: u64| {
        let mut rule = own.clone();
        (rule.name, rule.amount) = (name.into(), Some(amount.max(1)));
        (rule, *plan)
    };
    let all = rng.between(amount / 2, amount * 2);
    vec![named("parent", all), named("sibling", amount)]
}

impl Schedule {
    /// Draws a schedule of windows or token buckets, in which nothing is given back.
    #[must_use]
    pub fn draw_plain(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5CED_01E5);
        let is_bucket = rng.chance(120);
        let amount = match rng.below(4) {
            0 => rng.between(1, 24),
            1 => rng.between(20, 200),
            2 => rng.between(200, 5_000),
            _ => rng.between(5_000, 50_000),
        };
        let (limits, keys) = draw_limits(&mut rng, is_bucket, amount);
        let is_inherited = !is_bucket && rng.chance(150);
        let inherited = if is_inherited {
            draw_inherited(&mut rng, &limits)
        } else {
            Vec::new()
        };
        let loss = pick(&mut rng, &[0, 5, 30, 80]);
        let weather = Weather {
            delay_max_us: pick(&mut rng, &[50, 300, 1_000, 3_000]),
            loss,
            repeat: pick(&mut rng, &[0, loss, 100]),
            late: if is_bucket { 0 } else { loss / 4 },
        };
        let weight = |fault: Fault, rng: &mut Rng| {
            let is_used = rng.chance(500) && !(is_bucket && fault == Fault::Split);
            (fault, if is_used { rng.between(1, 8) } else { 0 })
        };
        let faults = Fault::ALL
            .iter()
            .map(|fault| weight(*fault, &mut rng))
            .collect();
        Self {
            seed,
            nodes: usize::try_from(rng.between(3, 5)).expect("small"),
            steps: 400,
            amount,
            limits,
            inherited,
            keeps: rng.chance(300),
            commit_us: pick(&mut rng, &[500, 2_000, 100_000]),
            is_backed_up: rng.chance(100),
            elsewhere_rate: pick(&mut rng, &[0, 0, 300]),
            keys,
            speed_milli: if is_bucket {
                1_000
            } else {
                pick(&mut rng, &[1_000, 10_000, 60_000])
            },
            weather,
            fault_rate: pick(&mut rng, &[0, 15, 40, 100]),
            faults,
            reserve_rate: pick(&mut rng, &[0, 200, 500]),
            large_rate: pick(&mut rng, &[20, 100, 300]),
            long_rate: pick(&mut rng, &[5, 20, 60]),
            back_rate: 0,
            values: 0,
            set_rate: 0,
            is_true_bound: false,
            long_us: 400_000,
            pause_max_us: 3_000_000,
        }
    }

    /// Draws a schedule from its seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut schedule = Self::draw_plain(seed);
        // Drawn apart: other schedules are what they were.
        let mut rng = Rng::new(seed ^ 0x57A2_D126);
        let is_plain = schedule.kind() == LimitKind::Window
            && schedule.limits.len() == 1
            && schedule.inherited.is_empty()
            && schedule.keys == 1;
        match rng.below(1_000) {
            0..60 if is_plain => schedule.store(&mut rng),
            60..90 if is_plain => schedule.fly(&mut rng),
            90..160 if is_plain => schedule.count_values(&mut rng),
            160..300 => schedule.back_rate = pick(&mut rng, &[100, 300]),
            _ => {}
        }
        let mut rng = Rng::new(seed ^ 0x9C0F_7E31);
        if is_plain && schedule.is_about() == "window" && schedule.keeps && rng.chance(500) {
            schedule.restart_often(&mut rng);
        }
        schedule
    }

    /// Makes sidecars keep units and be killed with them: balances are large, calls small.
    fn restart_often(&mut self, rng: &mut Rng) {
        self.amount = rng.between(5_000, 50_000);
        self.limits[0].0.amount = Some(self.amount);
        self.large_rate = 0;
        self.fault_rate = self.fault_rate.max(40);
        self.commit_us = pick(rng, &[500, 2_000]);
        for (fault, weight) in &mut self.faults {
            if matches!(fault, Fault::Crash | Fault::Clone) {
                *weight += 6;
            }
        }
    }

    /// Makes its limit a level.
    fn store(&mut self, rng: &mut Rng) {
        self.stand(rng, LimitKind::Level);
        self.keeps = true;
        self.reserve_rate = 150;
        self.elsewhere_rate = 0;
        self.set_rate = pick(rng, &[0, 0, 30]);
        self.is_true_bound = rng.chance(500);
    }

    /// Makes its limit one of units in flight.
    fn fly(&mut self, rng: &mut Rng) {
        self.stand(rng, LimitKind::Concurrency);
        self.reserve_rate = 700;
        // A lease lasts 30 s.
        (self.long_us, self.pause_max_us) = (12_000_000, 60_000_000);
        self.long_rate = pick(rng, &[20, 40]);
    }

    fn stand(&mut self, rng: &mut Rng, kind: LimitKind) {
        self.amount = rng.between(3, 60);
        let (rule, plan) = &mut self.limits[0];
        plan.is_rolling = false;
        (rule.kind, rule.amount, rule.is_rolling) = (kind, Some(self.amount), false);
        self.speed_milli = 1_000;
    }

    /// Makes its limit count distinct values.
    fn count_values(&mut self, rng: &mut Rng) {
        self.amount = pick(rng, &[1, 5, 20, 60]);
        self.limits[0].0.amount = Some(self.amount);
        self.values = self.amount * 2 + 1;
        (self.reserve_rate, self.keeps) = (0, false);
    }

    /// What it is about: `window`, `bucket`, `level`, `flight` or `values`.
    #[must_use]
    pub fn is_about(&self) -> &'static str {
        match self.kind() {
            LimitKind::Level => "level",
            LimitKind::Concurrency => "flight",
            LimitKind::TokenBucket { .. } => "bucket",
            LimitKind::Window if self.values > 0 => "values",
            LimitKind::Window => "window",
        }
    }

    /// What kind of limit it is about.
    pub(super) fn kind(&self) -> LimitKind {
        self.limits[0].0.kind
    }

    /// A check of so many units for one of the keys.
    pub(super) fn is_bucket(&self) -> bool {
        matches!(self.limits[0].0.kind, LimitKind::TokenBucket { .. })
    }
}
