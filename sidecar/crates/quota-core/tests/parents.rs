//! Limits of parents: as deep as they go, and after a tenant has moved to another one.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::{CheckRequest, Cost, Mode, Reason, ReservationId};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};

const HOUR_US: i64 = 3_600_000_000;

fn declare(world: &mut World, tenant: &str, parent: Option<&str>, amount: u64) {
    let rule = window_rule(&format!("of-{tenant}"), "m", amount);
    world.declare(tenant, parent, vec![(rule, Plan::DAY)]);
}

/// Units that a tenant's own limit has given at the only sidecar.
fn used(world: &mut World, tenant: &str) -> u64 {
    let now = world.now_of(0);
    let states = world.nodes[0].engine.quota(now, tenant, &[]).unwrap();
    let own = format!("of-{tenant}");
    states
        .iter()
        .find(|state| *state.name == *own)
        .unwrap()
        .used
}

/// Limits of four ancestors bind: each is charged, the topmost denies as the others do, and what is denied burns nothing.
#[test]
fn four_ancestors_bind() {
    let names = ["a", "b", "c", "d", "e"];
    for tightest in 0..names.len() {
        let mut world = World::new(3, 1);
        world.weather.delay_max_us = 300;
        for (place, name) in names.iter().enumerate() {
            let parent = place.checked_sub(1).map(|above| names[above]);
            let amount = if place == tightest { 3 } else { 100 };
            declare(&mut world, name, parent, amount);
        }
        for _ in 0..3 {
            assert!(world.decide(0, &request("e", "m", 1)).reason.allowed());
        }
        let denied = world.decide(0, &request("e", "m", 1));
        assert_eq!(Reason::QuotaExhausted, denied.reason);
        let name = format!("of-{}", names[tightest]);
        assert_eq!(name, &*denied.binding.unwrap().name);
        let all: Vec<u64> = names.iter().map(|name| used(&mut world, name)).collect();
        assert_eq!(vec![3; 5], all);
    }
}

/// A tenant that moves to another parent counts there from then on: what it used stays with the parent before, and its
/// own limit goes on.
#[test]
fn a_tenant_that_moves_takes_new_checks_along_and_nothing_else() {
    let mut world = World::new(4, 1);
    world.weather.delay_max_us = 300;
    declare(&mut world, "before", None, 10);
    declare(&mut world, "after", None, 10);
    declare(&mut world, "child", Some("before"), 100);
    assert!(world.decide(0, &request("child", "m", 4)).reason.allowed());
    let id = ReservationId([9; 16]);
    let expires_us = world.now().ledger_us + HOUR_US;
    let reserve = CheckRequest {
        mode: Mode::Reserve { id, expires_us },
        ..request("child", "m", 5)
    };
    assert!(world.decide(0, &reserve).reason.allowed());
    declare(&mut world, "child", Some("after"), 100);
    assert!(world.decide(0, &request("child", "m", 10)).reason.allowed());
    let denied = world.decide(0, &request("child", "m", 1));
    assert_eq!("of-after", &*denied.binding.unwrap().name);
    // What was reserved before it moved is settled where it was reserved.
    let now = world.now_of(0);
    let actual = [Cost {
        meter: "m".into(),
        units: 2,
    }];
    world.nodes[0].engine.settle(now, id, &actual).unwrap();
    let all = ["before", "after", "child"].map(|name| used(&mut world, name));
    assert_eq!([6, 10, 16], all);
    declare(&mut world, "child", None, 100);
    assert!(world.decide(0, &request("child", "m", 50)).reason.allowed());
    let all = ["before", "after", "child"].map(|name| used(&mut world, name));
    assert_eq!([6, 10, 66], all);
}
