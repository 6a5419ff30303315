//! A limit's kind and key change when a window turns: until then the limit before is in force, then the next one.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::{CheckRequest, LimitKind, LimitRule, Reason};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};

const MINUTE_US: i64 = 60_000_000;
const SECOND_US: u64 = 1_000_000;

fn by(attribute: &str, rule: LimitRule) -> LimitRule {
    LimitRule {
        key: Box::new([attribute.into()]),
        ..rule
    }
}

fn call(user: &str, team: &str) -> CheckRequest {
    CheckRequest {
        attributes: vec![("team".into(), team.into()), ("user".into(), user.into())],
        ..request("t", "m", 1)
    }
}

/// End of the minute that is open in a world.
fn turn_of(world: &World) -> i64 {
    (world.now().ledger_us.div_euclid(MINUTE_US) + 1) * MINUTE_US
}

/// Declares `before` until the present minute's end and `after` from then on.
fn change(world: &mut World, before: LimitRule, after: LimitRule) -> i64 {
    let turn_us = turn_of(world);
    let before = LimitRule {
        valid_to_us: Some(turn_us),
        ..before
    };
    let after = LimitRule {
        valid_from_us: Some(turn_us),
        ..after
    };
    world.declare(
        "t",
        None,
        vec![(before, Plan::MINUTE), (after, Plan::MINUTE)],
    );
    turn_us
}

fn run_to(world: &mut World, ledger_us: i64) {
    let span_us = u64::try_from(ledger_us - world.now().ledger_us).unwrap();
    world.run_for(span_us);
}

/// Calls of these users from both sidecars in turn until each was denied; gives what each got.
fn admitted(world: &mut World, users: &[(&str, &str)]) -> Vec<u64> {
    let mut got = vec![0; users.len()];
    for (place, (user, team)) in users.iter().enumerate() {
        let mut denials = 0;
        while denials < 2 {
            let node = usize::from(got[place] % 2 == 1) ^ usize::from(denials == 1);
            let decision = world.decide(node, &call(user, team));
            if decision.reason.allowed() {
                got[place] += 1;
            } else {
                denials += 1;
            }
            assert!(got[place] < 100, "no end of it");
        }
    }
    got
}

fn world(rule: LimitRule) -> World {
    let mut world = World::new(7, 2);
    world.weather.delay_max_us = 300;
    world.declare("t", None, vec![(rule, Plan::MINUTE)]);
    world
}

/// A limit that comes to be split by users goes on for all of them together until its window ends; from then each user
/// has the amount, and nobody ever has more within a window.
#[test]
fn a_limit_is_split_when_its_window_turns() {
    let whole = window_rule("limit", "m", 10);
    let mut world = world(whole.clone());
    let users = [("ann", "x"), ("bob", "x")];
    assert!(world.decide(0, &call("ann", "x")).reason.allowed());
    let turn_us = change(&mut world, whole.clone(), by("user", whole));
    assert_eq!(vec![9, 0], admitted(&mut world, &users));
    run_to(&mut world, turn_us);
    assert_eq!(vec![10, 10], admitted(&mut world, &users));
    run_to(&mut world, turn_us + MINUTE_US);
    assert_eq!(vec![10, 10], admitted(&mut world, &users));
}

/// Split by another attribute whose values are called the same, each value has its amount once in a window.
#[test]
fn values_called_the_same_are_not_mixed_up() {
    let rule = by("user", window_rule("limit", "m", 10));
    let mut world = world(rule.clone());
    assert_eq!(vec![10], admitted(&mut world, &[("ann", "bob")]));
    let turn_us = change(&mut world, rule.clone(), by("team", rule));
    assert_eq!(
        vec![0, 10],
        admitted(&mut world, &[("ann", "bob"), ("bob", "ann")])
    );
    run_to(&mut world, turn_us);
    assert_eq!(
        vec![10, 0],
        admitted(&mut world, &[("ann", "bob"), ("bob", "bob")])
    );
    assert_eq!(vec![10], admitted(&mut world, &[("bob", "ann")]));
}

/// A change that is taken back before its time has come goes on in the same window, with what is left of it.
#[test]
fn a_change_that_is_taken_back_gives_nothing() {
    let whole = window_rule("limit", "m", 10);
    let mut world = world(whole.clone());
    assert_eq!(vec![10], admitted(&mut world, &[("ann", "x")]));
    change(&mut world, whole.clone(), by("user", whole.clone()));
    assert_eq!(vec![0], admitted(&mut world, &[("bob", "x")]));
    world.declare("t", None, vec![(whole, Plan::MINUTE)]);
    assert_eq!(vec![0], admitted(&mut world, &[("bob", "x")]));
    assert_eq!(1, world.ledger.rows.windows.len(), "windows");
}

/// No window is leased ahead of a limit that is over by then.
#[test]
fn nothing_is_leased_early_for_what_is_over_by_then() {
    let whole = window_rule("limit", "m", 1_000);
    let mut world = world(whole.clone());
    let turn_us = change(&mut world, whole.clone(), by("user", whole));
    while world.now().ledger_us < turn_us - 100_000 {
        assert!(world.decide(0, &call("ann", "x")).reason.allowed());
        world.run_for(SECOND_US / 10);
    }
    run_to(&mut world, turn_us);
    assert!(world.decide(0, &call("ann", "x")).reason.allowed());
    let begun: Vec<_> = (world.ledger.rows.windows.iter())
        .filter(|window| window.start_us >= turn_us)
        .map(|window| window.identity.2)
        .collect();
    assert_eq!(1, begun.len(), "{begun:?}");
    assert_ne!(quota_core::KeyHash([0; 16]), begun[0]);
}

/// A window becomes a token bucket when it turns and not before; what was exhausted stays so until then, and who is
/// denied hears that instant.
#[test]
fn a_window_becomes_a_token_bucket_when_it_turns() {
    let window = window_rule("limit", "m", 10);
    let bucket = LimitRule {
        kind: LimitKind::TokenBucket {
            refill_interval_us: 1_000_000,
            burst: 7,
        },
        amount: Some(1),
        ..window.clone()
    };
    let mut world = world(window.clone());
    assert_eq!(vec![10], admitted(&mut world, &[("ann", "x")]));
    let turn_us = change(&mut world, window, bucket);
    let denied = world.decide(0, &call("ann", "x"));
    assert_eq!(Reason::QuotaExhausted, denied.reason);
    let left_us = turn_us - world.now().ledger_us;
    assert_eq!(Some(left_us), denied.retry_after_us);
    run_to(&mut world, turn_us);
    assert_eq!(vec![7], admitted(&mut world, &[("ann", "x")]));
    assert_eq!(
        Reason::RateLimited,
        world.decide(0, &call("ann", "x")).reason
    );
}
