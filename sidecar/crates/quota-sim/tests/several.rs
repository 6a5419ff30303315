//! Calls that must pass several limits, where answers take long: what a call found at one is there when the other answers.

#![allow(clippy::arithmetic_side_effects, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;

use quota_core::{CheckRequest, Cost, EngineConfig, LimitKind, LimitRule, Mode, Reason, Ticket};
use quota_sim::{
    rng::Rng,
    world::{
        World,
        ledger::{Plan, window_rule},
        request,
    },
};

const CALLS: u64 = 2_000;
/// Calls come this far apart on average, real µs: 400 a second.
const PAUSE_US: u64 = 2_500;
/// Longest ways there or back for answers after 10 and 20 ms on average, real µs.
const DELAYS_US: [u64; 2] = [10_000, 20_000];

fn config() -> EngineConfig {
    EngineConfig {
        ledger_budget_us: 250_000,
        ..EngineConfig::default()
    }
}

/// What calls were told that must pass three token buckets of these rates a second and a window.
fn play(seed: u64, rates: [u64; 3], amount: u64, delay_max_us: u64) -> BTreeMap<Reason, u64> {
    let mut world = World::with_config(seed, 1, config());
    world.weather.delay_max_us = delay_max_us;
    let plan = Plan {
        length_us: 60_000_000,
        is_rolling: false,
    };
    let mut limits = vec![(window_rule("window", "calls", amount), plan)];
    for (name, rate) in ["first", "second", "third"].into_iter().zip(rates) {
        let rule = LimitRule {
            kind: LimitKind::TokenBucket {
                refill_interval_us: 1_000_000,
                burst: 60,
            },
            ..window_rule(name, "calls", rate)
        };
        limits.push((rule, plan));
    }
    world.declare("t", None, limits);
    let mut rng = Rng::new(seed ^ 0x5E7);
    for _ in 0..CALLS {
        world.check(0, &request("t", "calls", 1));
        world.run_for(rng.below(2 * PAUSE_US));
    }
    world.run_for(1_000_000);
    let mut told = BTreeMap::new();
    for decision in world.decisions.values() {
        *told.entry(decision.reason).or_default() += 1;
    }
    told
}

/// Calls that each of several limits has the units for all pass: nobody who came later takes what a call found at one of
/// them while it waits for another.
#[test]
fn calls_that_several_limits_cover_pass() {
    for delay_max_us in DELAYS_US {
        let told = play(delay_max_us, [800, 900, 1_000], 1_000_000, delay_max_us);
        let expected = BTreeMap::from([(Reason::Allowed, CALLS)]);
        assert_eq!(expected, told, "delay {delay_max_us}");
    }
}

/// Calls that outrun one of several limits are denied by it, not for want of an answer, and what it has is admitted.
#[test]
fn calls_that_outrun_one_of_several_limits_are_denied_by_it() {
    for delay_max_us in DELAYS_US {
        for rates in [[200, 900, 1_000], [900, 200, 1_000], [900, 1_000, 200]] {
            let told = play(delay_max_us, rates, 1_000_000, delay_max_us);
            let case = format!("delay {delay_max_us}, {rates:?}: {told:?}");
            assert_eq!(None, told.get(&Reason::AuthorityUnreachable), "{case}");
            assert!(told[&Reason::RateLimited] > CALLS / 4, "{case}");
            assert!(told[&Reason::Allowed] > CALLS * 2 / 5, "{case}");
        }
        let told = play(delay_max_us, [800, 900, 1_000], CALLS / 2, delay_max_us);
        let expected = [
            (Reason::Allowed, CALLS / 2),
            (Reason::QuotaExhausted, CALLS / 2),
        ];
        assert_eq!(BTreeMap::from(expected), told, "delay {delay_max_us}");
    }
}

/// A world in which node 0 has 10 units of one limit and none of another, of which there is one.
fn one_of_two(config: EngineConfig) -> World {
    let mut world = World::with_config(7, 2, config);
    let plan = Plan {
        length_us: 60_000_000,
        is_rolling: false,
    };
    let limits = [("here", 10), ("there", 1)];
    let limits = limits.map(|(name, amount)| (window_rule(name, name, amount), plan));
    world.declare("t", None, limits.into());
    let all = request("t", "here", 10);
    assert_eq!(Reason::Allowed, world.decide(0, &all).reason);
    let back = CheckRequest {
        mode: Mode::GiveBack,
        ..all
    };
    assert_eq!(Reason::Allowed, world.decide(0, &back).reason);
    world.weather.delay_max_us = 20_000;
    world
}

/// Lets a call of both limits wait, and then one of the first, which has units for either of them.
fn wait_for_both(world: &mut World) -> [Ticket; 2] {
    let mut both = request("t", "here", 9);
    both.costs.push(Cost {
        meter: "there".into(),
        units: 1,
    });
    [
        world.check(0, &both),
        world.check(0, &request("t", "here", 2)),
    ]
}

fn reasons(world: &World, tickets: [Ticket; 2]) -> [Option<Reason>; 2] {
    tickets.map(|ticket| world.decisions.get(&ticket).map(|told| told.reason))
}

/// What a call found is its own while it waits for another limit: whoever came later hears the truth when that has answered.
#[test]
fn a_newcomer_takes_nothing_that_a_waiting_call_found() {
    let mut world = one_of_two(config());
    let tickets = wait_for_both(&mut world);
    world.run_for(1_000_000);
    let expected = [Some(Reason::Allowed), Some(Reason::QuotaExhausted)];
    assert_eq!(expected, reasons(&world, tickets));
}

/// What was set aside for a call that another limit then denied is there for whoever waited for it.
#[test]
fn what_a_denied_call_had_found_is_there_for_others() {
    let mut world = one_of_two(config());
    let there = request("t", "there", 1);
    assert_eq!(Reason::Allowed, world.decide(1, &there).reason);
    let tickets = wait_for_both(&mut world);
    world.run_for(1_000_000);
    let expected = [Some(Reason::QuotaExhausted), Some(Reason::Allowed)];
    assert_eq!(expected, reasons(&world, tickets));
}

/// Whether one who waits for what was set aside hears at once when the caller that it was for went away.
fn is_told_of_one_gone() -> bool {
    let mut world = one_of_two(config());
    let tickets = wait_for_both(&mut world);
    world.nodes[0].engine.cancel(tickets[0]);
    world.carry(0);
    world.run_for(1);
    reasons(&world, tickets) == [None, Some(Reason::Allowed)]
}

/// What was set aside for a caller that went away is there at once for whoever waited for it.
#[test]
fn what_a_caller_had_found_that_went_away_is_there_for_others() {
    assert!(is_told_of_one_gone());
}

/// Where nobody more may wait, a call for which the units are here passes: it is not refused for what is set aside.
#[test]
fn a_call_that_may_not_wait_leaves_nothing_alone() {
    let mut world = one_of_two(EngineConfig {
        waiting_max: 1,
        ..config()
    });
    let tickets = wait_for_both(&mut world);
    world.carry(0);
    assert_eq!([None, Some(Reason::Allowed)], reasons(&world, tickets));
}

/// The tests above tell a process that lets newcomers take what a waiting call found, or never lets go of it.
#[cfg(feature = "mutants")]
#[test]
fn mutants_of_several_are_found() {
    use quota_core::mutant::{self, Mutant};
    mutant::set(Some(Mutant::AsideTaken));
    let told = play(1, [800, 900, 1_000], 1_000_000, DELAYS_US[1]);
    mutant::set(Some(Mutant::AsideKept));
    let is_told = is_told_of_one_gone();
    mutant::set(None);
    let unreachable = told.get(&Reason::AuthorityUnreachable).copied();
    println!("AsideTaken: {unreachable:?} of {CALLS} unreachable");
    assert!(unreachable.is_some(), "AsideTaken is not found");
    assert!(!is_told, "AsideKept is not found");
}
