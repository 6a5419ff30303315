//! `retry_after` is true: the same call is denied at every instant before it, and admitted at it if nobody else asks.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use std::sync::Arc;

use quota_core::{CheckRequest, Cost, Decision, LimitKind, LimitRule, Mode, Reason, ReservationId};
use quota_sim::{
    rng::Rng,
    world::{
        World,
        ledger::{Plan, window_rule},
        request,
    },
};

/// Days of months, and hours of days about the turns of summer time: what windows of a calendar are like.
const UNEVEN: [&[i64]; 2] = [
    &[31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 29],
    &[24, 23, 24, 24, 25, 24],
];
/// A token bucket's time is rounded up by less than this, real µs.
const ROUNDED_US: u64 = 4;
const SECOND_US: i64 = 1_000_000;

fn seeds(count: u64) -> std::ops::Range<u64> {
    let first = std::env::var("QUOTA_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    first.map_or(0..count, |seed: u64| seed..seed + 1)
}

fn span(rng: &mut Rng, least: u64, most: u64) -> i64 {
    i64::try_from(rng.between(least, most)).unwrap()
}

/// A limit of a window kind or a token bucket, with or without a span in which it is in force.
fn rule_of(world: &World, rng: &mut Rng, name: &str, meter: &str) -> (LimitRule, Plan) {
    let mut rule = window_rule(name, meter, rng.between(3, 40));
    let length_us = span(rng, 1, 90) * SECOND_US;
    match rng.below(10) {
        0..=3 => {
            rule.kind = LimitKind::TokenBucket {
                refill_interval_us: length_us,
                // A full bucket to which a denied call gives back may lack a token: it holds one more than any call takes.
                burst: rng.between(7, 40),
            };
        }
        4..=5 => rule.is_rolling = true,
        _ => {}
    }
    let now_us = world.now().ledger_us;
    let span_us = span(rng, 1, 60) * SECOND_US;
    match rng.below(7) {
        0 => rule.valid_to_us = Some(now_us + span_us),
        1 => rule.valid_from_us = Some(now_us + span_us),
        _ => {}
    }
    let is_rolling = rule.is_rolling;
    let plan = Plan {
        length_us,
        is_rolling,
    };
    (rule, plan)
}

/// Instants at which the windows of a limit turn that are as uneven as those of a calendar.
fn uneven_turns(world: &World, rng: &mut Rng) -> Vec<i64> {
    let lengths = UNEVEN[usize::try_from(rng.below(2)).unwrap()];
    let unit_us = span(rng, 20_000, 900_000);
    let mut turn_us = world.now().ledger_us - unit_us * 20;
    let mut turns = vec![turn_us];
    for length in lengths.iter().cycle().take(2_000) {
        turn_us += length * unit_us;
        turns.push(turn_us);
    }
    turns
}

/// Limits of all kinds on two meters, some of them a parent's.
fn declare(world: &mut World, rng: &mut Rng, is_standing: bool) {
    let mut own = Vec::new();
    let mut of_parent = Vec::new();
    for place in 0..rng.between(2, 5) {
        let name = format!("limit-{place}");
        let is_first = place == 0 || place > 1 && rng.chance(600);
        let meter = if is_first { "m" } else { "n" };
        let (rule, plan) = rule_of(world, rng, &name, meter);
        let is_parents = rng.chance(300);
        let tenant: Arc<str> = if is_parents { "parent" } else { "t" }.into();
        if rule.kind == LimitKind::Window && !rule.is_rolling && rng.chance(500) {
            let turns = uneven_turns(world, rng);
            world
                .ledger
                .turns
                .insert((tenant, rule.name.clone()), turns);
        }
        let limits = if is_parents { &mut of_parent } else { &mut own };
        limits.push((rule, plan));
    }
    if is_standing {
        let mut rule = window_rule("standing", "m", rng.between(6, 40));
        rule.kind = if rng.chance(500) {
            LimitKind::Level
        } else {
            LimitKind::Concurrency
        };
        let plan = Plan {
            length_us: 1,
            is_rolling: false,
        };
        own.push((rule, plan));
    }
    world.declare("parent", None, of_parent);
    world.declare("t", Some("parent"), own);
}

/// A call that meets limits of both meters, or of one.
fn call(rng: &mut Rng) -> CheckRequest {
    let mut call = request("t", "m", rng.between(1, 6));
    if rng.chance(600) {
        call.costs.push(Cost {
            meter: "n".into(),
            units: rng.between(1, 6),
        });
    }
    call
}

/// A world, and how it is asked: each call that reserves has an id of its own.
struct Asker {
    world: World,
    reserves: bool,
    asked: u128,
}

impl Asker {
    fn ask(&mut self, node: usize, call: &CheckRequest) -> Decision {
        self.asked += 1;
        let mut call = call.clone();
        if self.reserves {
            let id = ReservationId(self.asked.to_be_bytes());
            let expires_us = i64::MAX / 4;
            call.mode = Mode::Reserve { id, expires_us };
        }
        self.world.decide(node, &call)
    }

    /// Asks again and again before `at_us`, and at it. Answers what is wrong.
    fn probe(&mut self, rng: &mut Rng, call: &CheckRequest, at_us: u64) -> Result<(), String> {
        let from_us = self.world.real_us;
        let mut probes: Vec<u64> = (0..4)
            .map(|_| rng.between(from_us, at_us.max(from_us + 1)))
            .collect();
        probes.push(at_us.saturating_sub(ROUNDED_US));
        probes.sort_unstable();
        for probe_us in probes {
            if probe_us + ROUNDED_US > at_us || probe_us < self.world.real_us {
                continue;
            }
            self.world.run_until(probe_us);
            let again = self.ask(0, call);
            let left_us = at_us.saturating_sub(self.world.real_us);
            // Units that another sidecar held may have come back meanwhile.
            let is_alone = self.world.nodes.len() == 1;
            if again.reason.allowed() && (left_us < ROUNDED_US || !is_alone) {
                return Ok(());
            }
            if again.reason.allowed() {
                return Err(format!("admitted {left_us} us early"));
            }
        }
        if self.world.real_us > at_us {
            return Ok(());
        }
        self.world.run_until(at_us);
        let then = self.ask(0, call);
        if then.reason.allowed() {
            return Ok(());
        }
        let Decision {
            reason,
            binding,
            retry_after_us,
            ..
        } = then;
        let limit = binding.map(|binding| binding.name);
        Err(format!(
            "{reason:?} at {limit:?} at the time that was named, again in {retry_after_us:?}"
        ))
    }
}

/// Whether some limit of a call may say no for as long as others please, or from some time on for ever.
fn may_be_endless(world: &World, call: &CheckRequest) -> bool {
    let rules = world.ledger.limits.values().map(|(rule, _)| rule);
    let mut met = rules.filter_map(|rule| {
        let cost = call.costs.iter().find(|cost| cost.meter == rule.meter)?;
        Some((rule, cost.units))
    });
    met.any(|(rule, units)| {
        let most = match rule.kind {
            LimitKind::TokenBucket { burst, .. } => burst,
            _ => rule.amount.unwrap(),
        };
        units > most || matches!(rule.kind, LimitKind::Level | LimitKind::Concurrency)
    })
}

/// Several limits of all kinds at once — token buckets, even and uneven windows of a calendar, rolling ones, some of a
/// parent, some that begin or end on the way, stored units and units in flight beside them: asked again and again before
/// the time that a denial named, the call is denied; asked at that time, it is admitted. Where no time is named, a limit
/// is met that depends on what others do, or that the call never passes.
fn denials_name_the_first_instant(is_standing: bool, count: u64, least: usize) {
    let mut denials = 0;
    for seed in seeds(count) {
        let mut rng = Rng::new(seed ^ if is_standing { 0x51 } else { 0 });
        let nodes = usize::try_from(rng.between(1, 2)).unwrap();
        let mut world = World::new(seed, nodes);
        declare(&mut world, &mut rng, is_standing);
        world.weather.delay_max_us = rng.below(300);
        let mut asker = Asker {
            world,
            reserves: is_standing || rng.chance(300),
            asked: 0,
        };
        for turn in 0..30 {
            let call = call(&mut rng);
            // Slices of token buckets are over: what lies ahead in them is worth less when it goes back.
            asker.world.run_for(200_000);
            if nodes > 1 && rng.chance(400) {
                let others = call.clone();
                let _ = asker.ask(1, &others);
                // What it does not use comes back within this time: nobody else asks from then on.
                asker.world.run_for(5_000_000);
            }
            let decision = asker.ask(0, &call);
            let case = format!("seed {seed} turn {turn}");
            if decision.reason.allowed() {
                asker.world.run_for(rng.below(100_000));
                continue;
            }
            assert_ne!(Reason::AuthorityUnreachable, decision.reason, "{case}");
            let Some(after_us) = decision.retry_after_us else {
                assert!(may_be_endless(&asker.world, &call), "{case}: {decision:?}");
                asker.world.run_for(rng.below(100_000));
                continue;
            };
            denials += 1;
            let at_us = asker.world.real_us + u64::try_from(after_us).unwrap();
            if let Err(wrong) = asker.probe(&mut rng, &call, at_us) {
                panic!("{wrong}; {case}, {call:?}, {decision:?}");
            }
        }
    }
    assert!(denials > least, "{denials}");
}

/// Token buckets and windows of all shapes together.
#[test]
fn a_denial_names_the_first_instant_at_which_the_call_passes() {
    denials_name_the_first_instant(false, 100, 400);
}

/// The same beside stored units or units in flight: where one of those denies, no time is named.
#[test]
fn no_time_is_named_where_it_depends_on_others() {
    denials_name_the_first_instant(true, 60, 60);
}
