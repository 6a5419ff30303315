//! What a check costs while the units are there. `cargo test --release -p quota-core --test hot_path -- --ignored --nocapture`

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use std::time::Instant;

use quota_core::{CheckRequest, Checked, Mode, Reason, ReservationId};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};

fn stocked(key: bool) -> (World, CheckRequest) {
    let mut world = World::new(1, 1);
    let mut rule = window_rule("limit", "m", 1 << 50);
    let mut call = request("t", "m", 1);
    if key {
        rule.key = Box::new(["user".into()]);
        call.attributes = vec![("user".into(), "somebody-1".into())];
    }
    world.declare("t", None, vec![(rule, Plan::DAY)]);
    // A large reservation, given back, leaves a balance that lasts.
    let id = ReservationId([1; 16]);
    let mut large = call.clone();
    large.costs[0].units = 1 << 40;
    large.mode = Mode::Reserve {
        id,
        expires_us: i64::MAX,
    };
    assert_eq!(Reason::Allowed, world.decide(0, &large).reason);
    let now = world.now();
    world.nodes[0].engine.settle(now, id, &[]).unwrap();
    (world, call)
}

/// A check of units that are there is decided in well under a microsecond.
#[test]
#[ignore = "a measurement, of a release build"]
fn check_with_balance() {
    for (name, key) in [("one limit", false), ("one limit split by user", true)] {
        let (mut world, call) = stocked(key);
        let now = world.now();
        let rounds = 2_000_000;
        let begun = Instant::now();
        for ticket in 0..rounds {
            let checked = world.nodes[0].engine.check(now, ticket, &call);
            assert!(
                matches!(checked, Checked::Decided(decision) if decision.reason == Reason::Allowed)
            );
        }
        println!(
            "{name}: {} ns a check",
            begun.elapsed().as_nanos() / u128::from(rounds)
        );
    }
}
