//! Known answers of a widely used rate limiter's functional tests, run against the engine in a quiet world: every row of
//! `tests/data/quota_tables.json`.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::{Enforcement, LimitKind, LimitRule, Mode, UnitsAsked};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};
use serde_json::Value;

const TABLES: &str = include_str!("../../../../tests/data/quota_tables.json");
const DAY_US: i64 = 86_400_000_000;
const DAY: Plan = Plan {
    length_us: DAY_US,
    is_rolling: true,
};

fn cases() -> Vec<Value> {
    let tables: Value = serde_json::from_str(TABLES).unwrap();
    tables["cases"].as_array().unwrap().clone()
}

/// A limit of a case: a window from first use, or a token bucket.
fn limit_of(name: &str, limit: &Value) -> (LimitRule, Plan) {
    let amount = limit["amount"].as_u64().unwrap();
    let mut rule = window_rule(name, "m", amount);
    match limit["kind"].as_str().unwrap() {
        "window" => {}
        "token_bucket" => {
            rule.kind = LimitKind::TokenBucket {
                refill_interval_us: limit["refill_seconds"].as_i64().unwrap() * 1_000_000,
                burst: limit["burst"].as_u64().unwrap_or(amount),
            };
        }
        kind => panic!("{kind} is no kind"),
    }
    (rule, DAY)
}

/// Seconds as the file writes them, with a decimal or none.
fn microseconds(seconds: &str) -> u64 {
    let (whole, rest) = seconds.split_once('.').unwrap_or((seconds, "0"));
    format!("{whole}{rest:0<6}").parse().unwrap()
}

/// Runs the steps of a case, and answers how many there were.
fn run(case: &Value) -> usize {
    let alone = [case.clone()];
    let limits = case["limits"].as_array().map_or(&alone[..], Vec::as_slice);
    let limits = limits
        .iter()
        .enumerate()
        .map(|(place, limit)| limit_of(&format!("limit-{place}"), limit));
    let mut world = World::new(1, 1);
    world.declare("t", None, limits.collect());
    let steps = case["steps"].as_array().unwrap();
    for (place, step) in steps.iter().enumerate() {
        if let Some(amount) = step.get("amount") {
            world.set_amount("t", "limit-0", amount.as_u64().unwrap());
            continue;
        }
        world.run_for(microseconds(&step[0].to_string()));
        let mut check = request("t", "m", step[1].as_u64().unwrap());
        check.all_limits = true;
        let decision = world.decide(0, &check);
        let least = decision.limits.iter().filter_map(|limit| limit.remaining);
        let got = (decision.reason.allowed(), least.min());
        let expected = (step[2].as_bool().unwrap(), step[3].as_u64());
        assert_eq!(expected, got, "{}, step {place}: {decision:?}", case["id"]);
    }
    steps.len()
}

/// Every step of every case is answered as the table says: admitted, and what remains.
#[test]
fn every_row_is_answered_as_the_table_says() {
    let cases = cases();
    let steps: usize = cases.iter().map(run).sum();
    assert_eq!((7, 48), (cases.len(), steps));
}

/// Units of every row are told apart as the table says: beyond the limit, near it, within it; hard limits and soft ones.
#[test]
fn units_near_a_limit_are_counted_as_the_table_says() {
    let tables: Value = serde_json::from_str(TABLES).unwrap();
    let rows = tables["near_limit_deltas"]["rows"].as_array().unwrap();
    assert_eq!(9, rows.len());
    for row in rows {
        let numbers = |at: usize| {
            row[at]
                .as_array()
                .unwrap()
                .iter()
                .map(|n| n.as_u64().unwrap())
        };
        let [amount, cost, after] = numbers(0).collect::<Vec<_>>().try_into().unwrap();
        let [over, near, within] = numbers(1).collect::<Vec<_>>().try_into().unwrap();
        let expected = UnitsAsked { within, near, over };
        assert_eq!(expected, UnitsAsked::of(amount, cost, after), "{row}");
        for enforcement in [Enforcement::Hard, Enforcement::Soft] {
            let before = after - cost;
            if enforcement == Enforcement::Hard && before > amount {
                // Nothing beyond a hard limit is ever used.
                continue;
            }
            let (mut rule, plan) = (window_rule("limit", "m", amount), DAY);
            rule.enforcement = enforcement;
            let mut world = World::new(1, 1);
            world.declare("t", None, vec![(rule, plan)]);
            for _ in 0..before {
                let _ = world.decide(0, &request("t", "m", 1));
            }
            let so_far = asked(&world);
            let mut peek = request("t", "m", cost);
            peek.mode = Mode::Peek;
            let _ = world.decide(0, &peek);
            assert_eq!(so_far, asked(&world), "a look counts nothing");
            let _ = world.decide(0, &request("t", "m", cost));
            let now = asked(&world);
            let counted = UnitsAsked {
                within: now.within - so_far.within,
                near: now.near - so_far.near,
                over: now.over - so_far.over,
            };
            assert_eq!(expected, counted, "{row} {enforcement:?}");
        }
    }
}

fn asked(world: &World) -> UnitsAsked {
    let units = world.nodes[0].engine.units_by_limit();
    assert_eq!(1, units.len());
    units[0].1
}

/// What one limit denies costs the other nothing, however often it is tried.
#[test]
fn two_limits_all_or_nothing() {
    let cases = cases();
    let case = cases
        .iter()
        .find(|case| case["id"] == "two-limits-all-or-nothing");
    let limits = case.unwrap()["limits"].as_array().unwrap();
    let mut world = World::new(1, 1);
    let declared =
        [("a", &limits[0]), ("b", &limits[1])].map(|(name, limit)| limit_of(name, limit));
    world.declare("t", None, declared.to_vec());
    for turn in 0..9_u64 {
        let mut check = request("t", "m", 1);
        check.all_limits = true;
        let decision = world.decide(0, &check);
        let binding = decision.binding.clone().expect("a limit");
        let expected = (
            turn < 3,
            &*binding.name,
            Some(9_u64.saturating_sub(turn).max(7)),
        );
        let got = (decision.reason.allowed(), "b", decision.limits[0].remaining);
        assert_eq!(expected, got, "turn {turn}");
    }
}
