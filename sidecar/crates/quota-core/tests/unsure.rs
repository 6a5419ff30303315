//! A line that breaks at any moment takes no units along for longer than it stays broken.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::Reason;
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};

const SECOND_US: u64 = 1_000_000;
const AMOUNT: u64 = 1_000;
/// Longest way of a message: a call is over within eight of them.
const WAY_US: u64 = 1_000;

/// Lets the first sidecar ask and its line break `after_us` later, for half a second. Answers what it was admitted, and
/// what the second one gets of the rest once that had `rest_us` to come back.
fn play(mut world: World, after_us: u64, cost: u64, rest_us: u64) -> (u64, u64) {
    world.check(0, &request("t", "m", cost));
    world.run_for(after_us);
    world.cut(0, true);
    world.run_for(SECOND_US / 2);
    world.cut(0, false);
    world.run_for(rest_us);
    let admitted = world.admitted.values().sum();
    while world.decide(1, &request("t", "m", 1)).reason == Reason::Allowed {}
    (admitted, world.admitted.values().sum::<u64>() - admitted)
}

fn quiet(seed: u64) -> World {
    let mut world = World::quiet(seed, 2, window_rule("limit", "m", AMOUNT), Plan::DAY);
    world.weather.delay_max_us = WAY_US;
    world
}

/// A first lease that the ledger gave in an answer that was lost goes back, though nobody there asks again.
#[test]
fn a_lost_first_lease_goes_back() {
    for after_us in (0..8 * WAY_US).step_by(100) {
        let (admitted, rest) = play(quiet(after_us), after_us, 300, 5 * SECOND_US);
        assert_eq!(AMOUNT, admitted + rest, "cut after {after_us} us");
    }
}

/// So does what a pool gave, also after a time in which the key was not used.
#[test]
fn a_lost_grant_of_a_pool_goes_back() {
    for (pause_us, after_us) in [0, 30 * SECOND_US]
        .into_iter()
        .flat_map(|pause_us| (0..8 * WAY_US).step_by(100).map(move |us| (pause_us, us)))
    {
        let mut world = quiet(after_us);
        for node in [0, 1, 0, 1] {
            assert_eq!(
                Reason::Allowed,
                world.decide(node, &request("t", "m", 1)).reason
            );
        }
        world.run_for(pause_us);
        let (admitted, rest) = play(world, after_us, 300, 5 * SECOND_US);
        assert_eq!(
            AMOUNT,
            admitted + rest,
            "cut {after_us} us after {pause_us} us"
        );
    }
}

/// Where the line stays broken for long the ledger is asked ever more rarely, and within a minute once it is back.
#[test]
fn a_long_silence_is_not_asked_into_every_second() {
    for after_us in (500..4 * WAY_US).step_by(500) {
        let mut world = quiet(after_us);
        world.check(0, &request("t", "m", 300));
        world.run_for(after_us);
        world.cut(0, true);
        let asked = |world: &World| world.commands.get("allot").copied().unwrap_or(0);
        let before = asked(&world);
        world.run_for(600 * SECOND_US);
        assert!(asked(&world) - before <= 20, "{}", asked(&world) - before);
        world.cut(0, false);
        world.run_for(70 * SECOND_US);
        let admitted: u64 = world.admitted.values().sum();
        while world.decide(1, &request("t", "m", 1)).reason == Reason::Allowed {}
        assert_eq!(
            AMOUNT,
            world.admitted.values().sum::<u64>(),
            "cut after {after_us} us, {admitted} admitted"
        );
    }
}
