//! Giving back units of windows: real engines on the models of pools and ledger, against the obvious model: each process
//! gives back what it used of the open window, and what is used in all is never more than the limit.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use std::collections::BTreeMap;

use quota_core::{CheckRequest, Cost, Enforcement, Holder, LimitRule, Mode, Reason, ReservationId};
use quota_sim::world::{
    Weather, World,
    ledger::{Plan, window_rule},
    request,
};

const NODES: usize = 3;
const WINDOW_US: i64 = 60_000_000;

fn world(seed: u64, rules: Vec<LimitRule>) -> World {
    let mut world = World::new(seed, NODES);
    let plan = Plan {
        length_us: WINDOW_US,
        is_rolling: false,
    };
    let limits = rules.into_iter().map(|rule| (rule, plan)).collect();
    world.declare("t", None, limits);
    world
}

fn back(units: u64) -> CheckRequest {
    let mut back = request("t", "m", units);
    back.mode = Mode::GiveBack;
    back
}

fn trouble(world: &mut World) {
    let node = usize::try_from(world.rng.below(NODES as u64)).unwrap();
    match world.rng.below(9) {
        0 => world.crash(node),
        1 => world.redis.flush(),
        2 => world.redis.replicate(),
        3 => world.redis.fail_over(),
        4 => world.cut(node, true),
        5 => world.cut(node, false),
        6 => world.is_redis_up = !world.is_redis_up,
        7 => world.pause(node, 20_000),
        _ => world.is_ledger_up = !world.is_ledger_up,
    }
}

/// What a schedule showed.
#[derive(Default)]
struct Shown {
    /// Units used beyond the limit at any moment.
    over: u64,
    /// Units given back.
    given_back: u64,
    /// Answers that were not the model's.
    wrong: u64,
}

/// Runs one schedule with every loss that there is.
fn run(seed: u64) -> Shown {
    let amount = [5, 60, 400][(seed % 3) as usize];
    let mut world = world(seed, vec![window_rule("limit", "m", amount)]);
    world.verdicts = Some(Vec::new());
    world.weather = Weather {
        delay_max_us: 3_000,
        loss: 30,
        repeat: 30,
        late: 30,
    };
    let mut shown = Shown::default();
    let mut used: BTreeMap<(Option<(i64, i64)>, Holder), u64> = BTreeMap::new();
    for _ in 0..400 {
        let node = usize::try_from(world.rng.below(NODES as u64)).unwrap();
        let units = world.rng.between(1, amount / 4 + 1);
        let check = if world.rng.chance(350) {
            back(units)
        } else {
            request("t", "m", units)
        };
        world.check(node, &check);
        if world.rng.chance(30) {
            trouble(&mut world);
        }
        let pause_us = world.rng.below(50_000);
        world.run_for(pause_us);
        for verdict in std::mem::take(world.verdicts.as_mut().unwrap()) {
            let window = verdict.decision.binding.and_then(|state| state.window_us);
            let units = verdict.request.costs[0].units;
            let own = used.entry((window, verdict.holder)).or_default();
            match (verdict.request.mode, verdict.decision.reason) {
                (Mode::GiveBack, Reason::Allowed) => {
                    shown.wrong += u64::from(*own < units);
                    shown.given_back += units;
                    *own = own.saturating_sub(units);
                }
                (Mode::GiveBack, Reason::NotConsumedHere) => {
                    shown.wrong += u64::from(window.is_some() && *own >= units);
                }
                (_, Reason::Allowed) => *own += units,
                _ => {}
            }
            let in_all: u64 = used
                .iter()
                .filter(|((of, _), _)| *of == window)
                .map(|(_, units)| *units)
                .sum();
            shown.over = shown.over.max(in_all.saturating_sub(amount));
        }
    }
    shown
}

/// Whatever is lost, repeated, flushed, failed over or killed: a process gives back what it used of the open window and no
/// more, and at no moment is more in use than the limit.
#[test]
fn what_is_given_back_was_used_here_and_nothing_more_is_admitted() {
    let mut given_back = 0;
    for seed in 0..300 {
        let shown = run(seed);
        assert_eq!((0, 0), (shown.over, shown.wrong), "seed {seed}");
        given_back += shown.given_back;
    }
    assert!(given_back > 10_000, "{given_back} units prove little");
}

/// What one sidecar gives back another can take, to the unit, and the fleet's figures say so everywhere.
#[test]
fn units_given_back_are_there_for_everybody() {
    let mut world = world(2, vec![window_rule("limit", "m", 100)]);
    for _ in 0..10 {
        assert_eq!(
            Reason::Allowed,
            world.decide(0, &request("t", "m", 10)).reason
        );
    }
    assert_eq!(
        Reason::QuotaExhausted,
        world.decide(1, &request("t", "m", 1)).reason
    );
    assert_eq!(Reason::NotConsumedHere, world.decide(1, &back(1)).reason);
    assert_eq!(Reason::NotConsumedHere, world.decide(0, &back(101)).reason);
    let told = world.decide(0, &back(60));
    assert_eq!(
        (Reason::Allowed, 40),
        (told.reason, told.binding.unwrap().used)
    );
    world.run_for(5_000_000);
    let told = world.decide(1, &request("t", "m", 60));
    assert_eq!(
        (Reason::Allowed, 100),
        (told.reason, told.binding.unwrap().used)
    );
    world.run_for(2_000_000);
    for node in 0..NODES {
        // With the refusal comes a report, and with that the fleet's figures.
        let told = world.decide(node, &request("t", "m", 1));
        assert_eq!(Reason::QuotaExhausted, told.reason);
        world.run_for(2_000_000);
        let told = world.decide(node, &request("t", "m", 1));
        assert_eq!(
            (Reason::QuotaExhausted, 100),
            (told.reason, told.binding.unwrap().used)
        );
    }
}

/// Giving back is all or nothing: a limit of which too little was used here keeps every other as it was.
#[test]
fn all_limits_or_none() {
    let rules = vec![window_rule("a", "m", 100), window_rule("b", "n", 100)];
    let mut world = world(3, rules);
    let mut both = request("t", "m", 10);
    both.costs.push(Cost {
        meter: "n".into(),
        units: 10,
    });
    assert_eq!(Reason::Allowed, world.decide(0, &both).reason);
    both.mode = Mode::GiveBack;
    both.costs[1].units = 11;
    let told = world.decide(0, &both);
    assert_eq!(
        (Reason::NotConsumedHere, "b"),
        (told.reason, &*told.binding.unwrap().name)
    );
    both.costs[1].units = 10;
    assert_eq!(Reason::Allowed, world.decide(0, &both).reason);
    assert_eq!(Reason::NotConsumedHere, world.decide(0, &both).reason);
}

/// What is given back of a soft limit was beyond it first: the next call is beyond it until the use is below the amount.
#[test]
fn a_soft_limit_gives_back_what_was_beyond_it_first() {
    let mut rule = window_rule("limit", "m", 10);
    rule.enforcement = Enforcement::Soft;
    let mut world = world(4, vec![rule]);
    assert_eq!(
        Reason::Allowed,
        world.decide(0, &request("t", "m", 10)).reason
    );
    let beyond = world.decide(0, &request("t", "m", 5));
    assert_eq!(
        (Reason::SoftLimitExceeded, 15),
        (beyond.reason, beyond.binding.unwrap().used)
    );
    let told = world.decide(0, &back(4));
    assert_eq!(
        (Reason::Allowed, 11),
        (told.reason, told.binding.unwrap().used)
    );
    assert_eq!(
        Reason::SoftLimitExceeded,
        world.decide(0, &request("t", "m", 1)).reason
    );
    assert_eq!(Reason::Allowed, world.decide(0, &back(12)).reason);
    let told = world.decide(0, &request("t", "m", 10));
    assert_eq!(
        (Reason::Allowed, 10),
        (told.reason, told.binding.unwrap().used)
    );
    assert_eq!(Reason::NotConsumedHere, world.decide(0, &back(11)).reason);
}

/// Use of a window that is over is not given back into the next one; what a reservation holds is not used yet.
#[test]
fn only_use_of_the_open_window_counts() {
    let mut world = world(5, vec![window_rule("limit", "m", 100)]);
    assert_eq!(
        Reason::Allowed,
        world.decide(0, &request("t", "m", 10)).reason
    );
    world.run_for(61_000_000);
    assert_eq!(Reason::NotConsumedHere, world.decide(0, &back(1)).reason);
    let mut held = request("t", "m", 10);
    let id = ReservationId([1; 16]);
    let expires_us = world.now().ledger_us + 30_000_000;
    held.mode = Mode::Reserve { id, expires_us };
    assert_eq!(Reason::Allowed, world.decide(0, &held).reason);
    assert_eq!(Reason::NotConsumedHere, world.decide(0, &back(1)).reason);
    let now = world.now_of(0);
    let used = [Cost {
        meter: "m".into(),
        units: 4,
    }];
    world.nodes[0].engine.settle(now, id, &used).unwrap();
    world.carry(0);
    assert_eq!(Reason::NotConsumedHere, world.decide(0, &back(5)).reason);
    assert_eq!(Reason::Allowed, world.decide(0, &back(4)).reason);
}

/// The broken rule of giving back is found by one of these schedules.
#[cfg(feature = "mutants")]
#[test]
fn mutants_of_give_back_are_found() {
    use quota_core::mutant::{self, Mutant};
    mutant::set(Some(Mutant::GivesBackUnused));
    let found = (0..300).find(|seed| {
        let shown = run(*seed);
        shown.over > 0
    });
    mutant::set(None);
    println!("GivesBackUnused: seed {found:?}");
    assert!(found.is_some());
}
