//! What a limit does when Redis, the ledger or both are away.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::{FailurePolicy, LimitRule, Reason};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};

const SECOND_US: u64 = 1_000_000;

fn world(nodes: usize, failure_policy: FailurePolicy, amount: u64) -> World {
    let rule = LimitRule {
        failure_policy,
        ..window_rule("limit", "m", amount)
    };
    World::quiet(7, nodes, rule, Plan::DAY)
}

fn admits(world: &mut World, node: usize) -> bool {
    world.decide(node, &request("t", "m", 1)).reason.allowed()
}

/// Uses the limit for a while, loses every authority, and answers how many calls pass from then on.
fn admitted_alone(failure_policy: FailurePolicy) -> u64 {
    let mut world = world(1, failure_policy, 10_000);
    for _ in 0..50 {
        assert!(admits(&mut world, 0));
        world.run_for(1_000);
    }
    world.is_redis_up = false;
    world.is_ledger_up = false;
    let mut admitted = 0;
    while admits(&mut world, 0) {
        admitted += 1;
    }
    let total: u64 = world.admitted.values().sum();
    assert!(total <= 10_000, "{total}");
    admitted
}

/// With every authority away a standby limit serves a share leased beforehand on top of what was leased for use: about
/// one percent of the limit where one sidecar is known and another may come.
#[test]
fn standby_share_serves_while_nobody_answers() {
    let more = admitted_alone(FailurePolicy::Standby) - admitted_alone(FailurePolicy::Closed);
    assert!((50..=200).contains(&more), "{more}");
}

/// Uses up a limit but for `left` units over sixteen sidecars, loses every authority, and answers how many calls pass from
/// then on at all of them together.
fn admitted_apart(failure_policy: FailurePolicy, left: u64) -> u64 {
    let mut world = world(16, failure_policy, 10_000);
    for turn in 0..10_000 - left {
        let node = usize::try_from(turn % 16).unwrap();
        assert!(admits(&mut world, node));
        world.run_for(500);
    }
    world.is_redis_up = false;
    world.is_ledger_up = false;
    let mut admitted = 0;
    for node in 0..16 {
        while admits(&mut world, node) {
            admitted += 1;
        }
    }
    let total: u64 = world.admitted.values().sum();
    assert!(total <= 10_000, "{total}");
    admitted
}

/// What sixteen sidecars that have known of each other for a while keep apart for such a time is two percent of the limit at
/// most; once a tenth of it is left nothing is kept apart any more.
#[test]
fn standby_shares_of_many_sidecars_add_up() {
    let more = |left: u64| {
        let standby = admitted_apart(FailurePolicy::Standby, left);
        standby.checked_sub(admitted_apart(FailurePolicy::Closed, left))
    };
    for left in [5_000, 2_000] {
        let apart = more(left).unwrap();
        assert!((50..=200).contains(&apart), "{apart} with {left} left");
    }
    assert_eq!([Some(0); 2], [900, 500].map(more));
}

/// What is kept apart is spent before anybody is denied: a limit is admitted to its last unit, over five sidecars, and
/// nobody holds back what others lack.
#[test]
fn nothing_is_withheld_in_the_end() {
    for amount in [60, 1_000, 20_000] {
        let mut world = world(5, FailurePolicy::Standby, amount);
        for turn in 0..amount {
            let node = usize::try_from(turn % 5).unwrap();
            let decision = world.decide(node, &request("t", "m", 1));
            let total: u64 = world.admitted.values().sum();
            // A false denial costs a thousandth at most; here there is none while more than that is left.
            assert!(
                decision.reason.allowed() || amount - total <= amount / 1_000,
                "{:?} with {total} of {amount} admitted",
                decision.reason
            );
            world.run_for(20);
        }
        world.run_for(3 * SECOND_US);
        for turn in 0..amount / 500 + 10 {
            world.decide(usize::try_from(turn % 5).unwrap(), &request("t", "m", 1));
            world.run_for(3 * SECOND_US);
        }
        let total: u64 = world.admitted.values().sum();
        assert_eq!(amount, total);
    }
}

/// A key in use holds 10 s of its use, so that losing Redis and the ledger for so long denies nobody.
#[test]
fn ten_seconds_without_any_authority() {
    for failure_policy in [FailurePolicy::Closed, FailurePolicy::Standby] {
        let mut world = world(3, failure_policy, 1_000_000);
        for _ in 0..3_000 {
            for node in 0..3 {
                assert!(admits(&mut world, node));
            }
            world.run_for(10_000);
        }
        world.is_redis_up = false;
        world.is_ledger_up = false;
        for _ in 0..1_000 {
            for node in 0..3 {
                assert!(admits(&mut world, node));
            }
            world.run_for(10_000);
        }
    }
}

/// While Redis is away a limit of policy `ledger` or `standby` leases straight from the ledger, to the last unit that is
/// there; `closed` denies as soon as its leases are used up.
#[test]
fn ledger_serves_while_redis_is_away() {
    for (failure_policy, goes_on) in [
        (FailurePolicy::Ledger, true),
        (FailurePolicy::Standby, true),
        (FailurePolicy::Closed, false),
    ] {
        let mut world = world(2, failure_policy, 1_000);
        for turn in 0..20 {
            assert!(admits(&mut world, turn % 2));
        }
        world.is_redis_up = false;
        // Whoever is the first to miss Redis finds out; from then on nobody waits for it.
        let _ = [admits(&mut world, 0), admits(&mut world, 1)];
        world.run_for(SECOND_US);
        let mut denied = None;
        for turn in 0..600 {
            let decision = world.decide(turn % 2, &request("t", "m", 1));
            if !decision.reason.allowed() {
                denied = Some(decision.reason);
                break;
            }
            world.run_for(1_000);
        }
        let expected = (!goes_on).then_some(Reason::AuthorityUnreachable);
        assert_eq!(expected, denied, "{failure_policy:?}");
    }
}

/// Policy `open` admits the limit's amount once more in each process, counts it to the unit, tells it, and then denies.
#[test]
fn open_is_capped_counted_and_told() {
    let mut world = world(2, FailurePolicy::Open, 40);
    for node in 0..2 {
        assert!(admits(&mut world, node));
    }
    world.is_redis_up = false;
    world.is_ledger_up = false;
    let mut uncovered = 0;
    let last = loop {
        let decision = world.decide(0, &request("t", "m", 3));
        match decision.reason {
            Reason::Uncovered => uncovered += 3,
            Reason::Allowed => {}
            reason => break reason,
        }
    };
    assert_eq!((39, Reason::AuthorityUnreachable), (uncovered, last));
    let told = world.nodes[0].engine.figures();
    assert_eq!(39, told.uncovered_units);
    world.is_redis_up = true;
    world.is_ledger_up = true;
    world.run_for(4 * SECOND_US);
    let uses = world
        .ledger
        .rows
        .windows
        .iter()
        .flat_map(|window| window.consumed.values());
    let over: u64 = uses.map(|(_, over)| over).sum();
    assert_eq!(39, over);
}

/// Leases ahead of need grow with use, so that a hot limit asks for less than one grant per thousand checks, and the more
/// traffic, the fewer.
#[test]
fn grants_fall_as_traffic_rises() {
    let mut before = f64::MAX;
    for per_second in [10, 100, 1_000, 10_000] {
        let mut world = world(2, FailurePolicy::Closed, 1 << 40);
        let checks = (per_second * 10).max(1_000);
        for turn in 0..checks {
            assert!(admits(&mut world, usize::from(turn % 4 == 0)));
            world.run_for(SECOND_US / per_second);
        }
        let count = |name| world.commands.get(name).copied().unwrap_or(0);
        let grants = count("redis") + count("allot");
        #[allow(clippy::cast_precision_loss, clippy::float_arithmetic)]
        let per_million = grants as f64 * 1e6 / checks as f64;
        println!("{per_second} checks a second: {per_million:.0} grants per million checks");
        assert!(per_million < before, "{per_million} after {before}");
        before = per_million;
    }
    assert!(before <= 1_000.0, "{before}");
}
