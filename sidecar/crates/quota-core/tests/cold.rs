//! Keys that nobody has used yet: how they ask the ledger.

#![allow(clippy::arithmetic_side_effects, missing_docs)]

use quota_core::{CheckRequest, LimitRule, Reason};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};

/// A limit that is split by user, and nobody has used.
fn split() -> World {
    let rule = LimitRule {
        key: Box::new(["user".into()]),
        ..window_rule("limit", "m", 5)
    };
    World::quiet(7, 2, rule, Plan::DAY)
}

fn check_of(user: u64) -> CheckRequest {
    CheckRequest {
        attributes: vec![("user".into(), user.to_string().into())],
        ..request("t", "m", 1)
    }
}

fn allowed(world: &World) -> usize {
    let decisions = world.decisions.values();
    decisions
        .filter(|decision| decision.reason == Reason::Allowed)
        .count()
}

/// Many cold keys become one command.
#[test]
fn cold_keys_are_asked_together() {
    let mut world = split();
    let now = world.now();
    for user in 0..500 {
        world.nodes[0]
            .engine
            .check(now, 10_000 + user, &check_of(user));
    }
    world.carry(0);
    assert_eq!(Some(&1), world.commands.get("allot"));
    world.run_for(1_000_000);
    assert_eq!(500, allowed(&world));
}

/// However many new keys are asked for one after the other, few commands ask the ledger at a time: what is asked for
/// meanwhile goes together with the next one, and nobody waits for nothing.
#[test]
fn asks_gather_behind_a_few_commands() {
    let mut world = split();
    for user in 0..300 {
        world.check(0, &check_of(user));
    }
    let at_once = world.commands["allot"];
    assert_eq!(8, at_once);
    world.run_for(200_000);
    assert_eq!(300, allowed(&world));
    let sent = world.commands["allot"];
    assert!(sent <= 17, "{sent} commands");
}
