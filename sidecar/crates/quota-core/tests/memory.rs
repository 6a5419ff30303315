//! Memory is bounded: what is kept, what gives way, and what the one who finds no room is told.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::{CheckRequest, Enforcement, EngineConfig, FailurePolicy, LimitRule, Reason};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};

const SECOND_US: u64 = 1_000_000;
const KEYS_MAX: usize = 64;

fn world(nodes: usize, rule: LimitRule) -> World {
    let config = EngineConfig {
        keys_max: KEYS_MAX,
        ..EngineConfig::default()
    };
    let mut world = World::with_config(7, nodes, config);
    let rule = LimitRule {
        key: Box::new(["user".into()]),
        ..rule
    };
    world.declare("t", None, vec![(rule, Plan::DAY)]);
    world.weather.delay_max_us = 300;
    world
}

fn by(user: usize, units: u64) -> CheckRequest {
    CheckRequest {
        attributes: vec![("user".into(), format!("user-{user}").into())],
        ..request("t", "m", units)
    }
}

/// Ten times as many keys as there is room for are served one after the other: idle ones give way and their units go
/// back first, so that nothing is lost; more than the cap is never kept.
#[test]
fn idle_keys_give_way_and_their_units_go_back() {
    let mut world = world(1, window_rule("limit", "m", 100));
    for user in 0..10 * KEYS_MAX {
        assert_eq!(Reason::Allowed, world.decide(0, &by(user, 1)).reason);
        let kept = world.nodes[0].engine.figures();
        assert!(
            kept.keys <= KEYS_MAX && kept.keys_resting <= KEYS_MAX,
            "{kept:?}"
        );
        world.run_for(SECOND_US / 10);
    }
    world.run_for(5 * SECOND_US);
    let out: u64 = world
        .ledger
        .rows
        .windows
        .iter()
        .map(|window| window.allotted)
        .sum();
    // A live key holds what it uses in a second; every other unit is where it came from.
    assert!(out <= 12 * KEYS_MAX as u64, "{out}");
}

/// A key that gave way and comes back within its window goes on where it was: what it used is still used, by the unit,
/// and its pool does not take it for a stranger.
#[test]
fn a_key_that_comes_back_goes_on_where_it_was() {
    let mut world = world(2, window_rule("limit", "m", 20));
    for _ in 0..3 {
        for node in 0..2 {
            assert_eq!(Reason::Allowed, world.decide(node, &by(0, 1)).reason);
        }
    }
    world.run_for(4 * SECOND_US);
    for user in 1..3 * KEYS_MAX / 2 {
        for node in 0..2 {
            world.decide(node, &by(user, 1));
        }
        world.run_for(SECOND_US / 10);
    }
    let generations = world.ledger.rows.windows.len();
    let mut admitted = 6;
    for turn in 0..30 {
        let decision = world.decide(turn % 2, &by(0, 1));
        admitted += u64::from(decision.reason.allowed());
        world.run_for(SECOND_US / 10);
    }
    assert_eq!(20, admitted);
    assert_eq!(generations, world.ledger.rows.windows.len());
    let windows = &world.ledger.rows.windows;
    let lost = windows
        .iter()
        .flat_map(|window| &window.generations)
        .filter(|generation| generation.is_lost)
        .count();
    assert_eq!(0, lost, "a pool took a holder for another one");
}

/// With as many live keys as there is room for, a new one is told so by its limit's policy, and no live one is touched.
#[test]
fn a_key_beyond_the_cap_is_told_by_policy() {
    for (enforcement, failure_policy, reason) in [
        (
            Enforcement::Hard,
            FailurePolicy::Standby,
            Reason::SidecarFull,
        ),
        (
            Enforcement::Hard,
            FailurePolicy::Closed,
            Reason::SidecarFull,
        ),
        (Enforcement::Hard, FailurePolicy::Open, Reason::Uncovered),
        (Enforcement::Soft, FailurePolicy::Closed, Reason::Uncovered),
    ] {
        let rule = LimitRule {
            enforcement,
            failure_policy,
            ..window_rule("limit", "m", 1_000)
        };
        let mut world = world(1, rule);
        for user in 0..KEYS_MAX {
            assert_eq!(Reason::Allowed, world.decide(0, &by(user, 1)).reason);
        }
        assert_eq!(reason, world.decide(0, &by(KEYS_MAX, 2)).reason);
        let told = world.nodes[0].engine.figures();
        assert_eq!((KEYS_MAX, 1), (told.keys, told.keys_refused));
        let uncovered = if reason == Reason::Uncovered { 2 } else { 0 };
        assert_eq!(uncovered, told.uncovered_units);
        for user in 0..KEYS_MAX {
            assert_eq!(Reason::Allowed, world.decide(0, &by(user, 1)).reason);
        }
    }
}
