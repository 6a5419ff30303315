//! Reservations: what is held, given back, owed or lost.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::{Cost, Reason, ReservationId, SettleRefusal};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request, reserve,
};

const SECOND_US: u64 = 1_000_000;

fn used(units: u64) -> Vec<Cost> {
    vec![Cost {
        meter: "m".into(),
        units,
    }]
}

/// A settlement below the reserve gives the rest back; a release gives all; neither can be done twice.
#[test]
fn settle_refunds() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 100), Plan::DAY);
    assert_eq!(
        Reason::Allowed,
        world.decide(0, &reserve(60, 1, i64::MAX)).reason
    );
    assert_eq!(
        Reason::QuotaExhausted,
        world.decide(0, &reserve(60, 2, i64::MAX)).reason
    );
    let now = world.now();
    let settled = world.nodes[0]
        .engine
        .settle(now, ReservationId([1; 16]), &used(25))
        .unwrap();
    assert_eq!(
        (used(35), Vec::new(), false),
        (settled.refunded, settled.excess, settled.expired)
    );
    let decision = world.decide(0, &request("t", "m", 0));
    assert_eq!(
        (Some(75), 25),
        (
            decision.binding.as_ref().unwrap().remaining,
            decision.binding.as_ref().unwrap().used
        )
    );
    let again = world.nodes[0]
        .engine
        .settle(now, ReservationId([1; 16]), &used(25));
    assert_eq!(Err(SettleRefusal::Unknown), again);
}

/// Use above the reserve is owed: nothing else is admitted before it is paid.
#[test]
fn excess_is_paid_first() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 100), Plan::DAY);
    assert_eq!(
        Reason::Allowed,
        world.decide(0, &reserve(10, 1, i64::MAX)).reason
    );
    let now = world.now();
    let settled = world.nodes[0]
        .engine
        .settle(now, ReservationId([1; 16]), &used(95))
        .unwrap();
    assert_eq!(used(85), settled.excess);
    assert_eq!(
        Reason::QuotaExhausted,
        world.decide(0, &request("t", "m", 6)).reason
    );
    assert_eq!(
        Reason::Allowed,
        world.decide(0, &request("t", "m", 5)).reason
    );
    assert_eq!(
        Reason::QuotaExhausted,
        world.decide(0, &request("t", "m", 1)).reason
    );
}

/// A reservation that expires keeps its units spent, is told once, and a late settlement is flagged.
#[test]
fn expiry_spends() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 100), Plan::DAY);
    let expires_us = world.now().ledger_us + 1_000_000;
    world.decide(0, &reserve(60, 1, expires_us));
    world.run_for(2 * SECOND_US);
    assert_eq!(vec![ReservationId([1; 16])], world.expired);
    let now = world.now();
    let settled = world.nodes[0]
        .engine
        .settle(now, ReservationId([1; 16]), &used(10))
        .unwrap();
    assert_eq!((Vec::new(), true), (settled.refunded, settled.expired));
    let decision = world.decide(0, &request("t", "m", 0));
    assert_eq!(
        (Some(40), 60),
        (
            decision.binding.as_ref().unwrap().remaining,
            decision.binding.as_ref().unwrap().used
        )
    );
}

/// A reservation whose log entry failed is undone to the last unit.
#[test]
fn undo_gives_all_back() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 100), Plan::DAY);
    world.decide(0, &reserve(100, 1, i64::MAX));
    let now = world.now();
    world.nodes[0]
        .engine
        .undo_reservation(now, ReservationId([1; 16]));
    assert!(
        world.nodes[0]
            .engine
            .reservation(ReservationId([1; 16]))
            .is_none()
    );
    assert_eq!(
        Reason::Allowed,
        world.decide(0, &request("t", "m", 100)).reason
    );
}
