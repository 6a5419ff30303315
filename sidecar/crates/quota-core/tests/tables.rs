//! Known answers of a widely used rate limiter's functional tests, run against the engine in a quiet world.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::{LimitKind, LimitRule};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};

const DAY_US: i64 = 86_400_000_000;

enum Step {
    /// (milliseconds before it, cost, allowed, remaining after)
    Check(u64, u64, bool, u64),
    Amount(u64),
}
use Step::{Amount, Check};

fn rolling(name: &str, amount: u64) -> (LimitRule, Plan) {
    (
        window_rule(name, "m", amount),
        Plan {
            length_us: DAY_US,
            is_rolling: true,
        },
    )
}

fn tokens(amount: u64, burst: u64, refill_s: i64) -> (LimitRule, Plan) {
    let mut rule = window_rule("limit", "m", amount);
    rule.kind = LimitKind::TokenBucket {
        refill_interval_us: refill_s * 1_000_000,
        burst,
    };
    (
        rule,
        Plan {
            length_us: DAY_US,
            is_rolling: true,
        },
    )
}

fn run(limits: Vec<(LimitRule, Plan)>, steps: &[Step]) {
    let mut world = World::new(1, 1);
    world.declare("t", None, limits);
    for (place, step) in steps.iter().enumerate() {
        match *step {
            Check(pause_ms, cost, allowed, remaining) => {
                world.run_for(pause_ms * 1_000);
                let decision = world.decide(0, &request("t", "m", cost));
                let binding = decision.binding.clone().expect("a limit");
                let got = (decision.reason.allowed(), binding.remaining);
                assert_eq!(
                    (allowed, Some(remaining)),
                    got,
                    "step {place}: {decision:?}"
                );
            }
            Amount(amount) => world.set_amount("t", "limit", amount),
        }
    }
}

/// Exactly the amount is admitted.
#[test]
fn over_the_limit() {
    run(
        vec![rolling("limit", 2)],
        &[
            Check(0, 1, true, 1),
            Check(0, 1, true, 0),
            Check(0, 1, false, 0),
        ],
    );
}

const MORE_THAN_AVAILABLE: [Step; 6] = [
    Check(0, 1_000, true, 1_000),
    Check(0, 1_500, false, 1_000),
    Check(0, 500, true, 500),
    Check(0, 400, true, 100),
    Check(0, 100, true, 0),
    Check(0, 1, false, 0),
];

/// A call that is too large takes nothing from smaller ones after it.
#[test]
fn more_than_available() {
    run(vec![rolling("limit", 2_000)], &MORE_THAN_AVAILABLE);
}

/// The same for a token bucket that hardly refills.
#[test]
fn more_than_available_rate() {
    run(vec![tokens(2_000, 2_000, 86_400)], &MORE_THAN_AVAILABLE);
}

/// Ten tokens in thirty seconds come one in three seconds, to the fraction.
#[test]
fn rate_10_per_30s() {
    let steps = [
        Check(0, 1, true, 9),
        Check(1_000, 1, true, 8),
        Check(1_000, 1, true, 7),
        Check(1_500, 0, true, 8),
        Check(3_000, 0, true, 9),
        Check(0, 9, true, 0),
        Check(0, 1, false, 0),
        Check(3_000, 0, true, 1),
        Check(60_000, 0, true, 10),
        Check(60_000, 10, true, 0),
        Check(29_000, 9, true, 0),
        Check(3_000, 1, true, 0),
    ];
    run(vec![tokens(10, 10, 30)], &steps);
}

/// A burst above the rate is there once.
#[test]
fn rate_10_per_30s_burst_20() {
    let steps = [
        Check(0, 1, true, 19),
        Check(1_000, 1, true, 18),
        Check(1_000, 1, true, 17),
        Check(1_500, 0, true, 18),
        Check(3_000, 0, true, 19),
        Check(0, 19, true, 0),
        Check(0, 1, false, 0),
        Check(3_000, 0, true, 1),
        Check(60_000, 0, true, 20),
    ];
    run(vec![tokens(10, 20, 30)], &steps);
}

/// What one limit denies costs the other nothing, however often it is tried.
#[test]
fn two_limits_all_or_nothing() {
    let mut world = World::new(1, 1);
    world.declare("t", None, vec![rolling("a", 10), rolling("b", 3)]);
    for (allowed, remaining) in [(true, 2), (true, 1), (true, 0), (false, 0), (false, 0)] {
        let mut check = request("t", "m", 1);
        check.all_limits = true;
        let decision = world.decide(0, &check);
        let binding = decision.binding.clone().expect("a limit");
        assert_eq!(
            (allowed, Some(remaining), "b"),
            (decision.reason.allowed(), binding.remaining, &*binding.name)
        );
        if remaining == 0 {
            assert_eq!(Some(7), decision.limits[0].remaining);
        }
    }
}

/// Remaining = new amount − used, never below 0.
#[test]
fn raise_and_lower() {
    let steps = [
        Check(0, 1, true, 99),
        Check(0, 1, true, 98),
        Amount(10),
        Check(0, 0, true, 8),
        Check(0, 1, true, 7),
        Amount(200),
        Check(0, 1, true, 196),
    ];
    run(vec![rolling("limit", 100)], &steps);
}
