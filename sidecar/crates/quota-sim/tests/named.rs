//! Schedules that the protocol's text names, played by hand.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::{CheckRequest, Cost, EngineConfig, Mode, Reason, ReservationId};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};

const SECOND_US: u64 = 1_000_000;

fn world_of(nodes: usize, amount: u64) -> World {
    World::quiet(7, nodes, window_rule("limit", "m", amount), Plan::HOUR)
}

/// Units admitted in all when everybody takes what there is, one at a time.
fn exhaust(world: &mut World) -> u64 {
    let mut denied = 0;
    for turn in 0..5_000 {
        let node = turn % world.nodes.len();
        let decision = world.decide(node, &request("t", "m", 1));
        denied = if decision.reason.allowed() {
            0
        } else {
            denied + 1
        };
        if denied > 3 * world.nodes.len() {
            break;
        }
        world.run_for(20_000);
    }
    world.admitted.values().sum()
}

/// Two first uses at the same moment make one window, and both count in it.
#[test]
fn two_first_uses_share_one_window() {
    let mut world = world_of(2, 100);
    let tickets = [0, 1].map(|node| world.check(node, &request("t", "m", 1)));
    world.run_for(SECOND_US);
    for ticket in tickets {
        assert_eq!(Reason::Allowed, world.decisions[&ticket].reason);
    }
    assert_eq!(1, world.ledger.rows.windows.len());
    assert_eq!(100, exhaust(&mut world));
}

/// A return whose reply is lost, and a failover that forgets it: nothing is spent twice.
#[test]
fn a_return_with_a_lost_reply_survives_a_failover() {
    let mut world = world_of(3, 200);
    for _ in 0..20 {
        for node in 0..3 {
            world.decide(node, &request("t", "m", 1));
            world.run_for(5_000);
        }
    }
    world.redis.replicate();
    // The idle returns of these seconds are sent; most replies never arrive.
    world.weather.loss = 700;
    world.run_for(4 * SECOND_US);
    world.redis.fail_over();
    world.weather.loss = 0;
    world.run_for(SECOND_US);
    let admitted = exhaust(&mut world);
    assert!(admitted <= 200, "{admitted} of 200");
    assert!(
        admitted >= 100,
        "{admitted} of 200: one allotment is lost at most"
    );
}

/// After a flush a pool is never opened under its old number: the next generation begins from what is left.
#[test]
fn a_flushed_pool_gets_the_next_generation() {
    let mut world = world_of(2, 500);
    for _ in 0..10 {
        for node in 0..2 {
            world.decide(node, &request("t", "m", 1));
            world.run_for(2_000);
        }
    }
    let before = world.ledger.rows.windows[0].generations.len();
    assert_eq!(1, before);
    world.redis.flush();
    let admitted = exhaust(&mut world);
    let numbers: Vec<u64> = world.ledger.rows.windows[0]
        .generations
        .iter()
        .map(|one| one.number)
        .collect();
    assert!(numbers.len() > before, "{numbers:?}");
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    assert!(admitted <= 500, "{admitted} of 500");
}

/// An open whose outcome the ledger did not hear is not sent again, nor after a flush: what the pool granted before is not
/// granted a second time under the same generation.
#[test]
fn an_open_is_never_repeated_after_a_flush() {
    let mut world = world_of(2, 500);
    world.decide(0, &request("t", "m", 1));
    world.is_line_up = false;
    world.decide(1, &request("t", "m", 200));
    world.run_for(SECOND_US);
    world.is_line_up = true;
    world.redis.flush();
    world.run_for(2 * SECOND_US);
    let window = &world.ledger.rows.windows[0];
    let number = window.generation().expect("it was opened").number;
    assert_eq!(
        0,
        world.redis.pool_free(window.pool_key()),
        "{number} was opened again"
    );
    assert!(exhaust(&mut world) <= 500);
    let numbers: Vec<u64> = (world.ledger.rows.windows[0].generations.iter())
        .map(|one| one.number)
        .collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    assert!(numbers.len() > 1, "{numbers:?}");
}

/// A reservation that is settled after it expired refunds nothing: its units were spent when it expired.
#[test]
fn a_settlement_after_expiry_refunds_nothing() {
    let mut world = world_of(1, 100);
    let mut check = request("t", "m", 40);
    let id = ReservationId([9; 16]);
    let expires_us = world.now().ledger_us + 1_000_000;
    check.mode = Mode::Reserve { id, expires_us };
    assert_eq!(Reason::Allowed, world.decide(0, &check).reason);
    world.run_for(2 * SECOND_US);
    assert_eq!(vec![id], world.expired);
    let settled = world.settle_here(0, id, 0).expect("it is remembered");
    assert!(settled.expired);
    assert!(settled.refunded.is_empty(), "{:?}", settled.refunded);
    world.carry(0);
    assert_eq!(100, exhaust(&mut world), "the 40 stay spent");
    assert!(
        world.settle_here(0, id, 40).is_err(),
        "and it has ended for good"
    );
}

/// Sidecars with volumes, of which the first holds units and keeps some for a restart.
fn world_with_volumes(nodes: usize) -> World {
    let config = EngineConfig {
        keeps: true,
        ..EngineConfig::default()
    };
    let mut world = World::with_config(7, nodes, config);
    world.declare(
        "t",
        None,
        vec![(window_rule("limit", "m", 5_000), Plan::HOUR)],
    );
    world.weather.delay_max_us = 300;
    for _ in 0..40 {
        world.decide(0, &request("t", "m", 10));
        world.run_for(10_000);
    }
    assert!(world.commands.contains_key("keep"), "nothing is kept");
    world
}

/// Asks of the ledger that one call of a fresh process brought, and whether it was admitted.
fn asks_for_one(world: &mut World, node: usize) -> (u64, Reason) {
    let before = world.commands["allot"];
    let reason = world.decide(node, &request("t", "m", 1)).reason;
    (world.commands["allot"] - before, reason)
}

/// A volume is copied to another machine while its sidecar goes on: what was kept on it is spent once, by the original.
#[test]
fn a_cloned_volume_takes_nothing_over() {
    let mut world = world_with_volumes(2);
    world.clone_volume(0, 1);
    let (asks, reason) = asks_for_one(&mut world, 1);
    assert_eq!(Reason::Allowed, reason);
    assert!(asks > 0, "the clone had units without asking");
    let admitted = exhaust(&mut world);
    assert!(admitted <= 5_000, "{admitted} of 5,000");
}

/// The same volume on the same machine: the next process goes on with what its predecessor kept, and takes it over once.
#[test]
fn a_restart_goes_on_with_what_was_kept() {
    let mut world = world_with_volumes(1);
    world.crash(0);
    assert_eq!((0, Reason::Allowed), asks_for_one(&mut world, 0));
    world.crash(0);
    let (asks, reason) = asks_for_one(&mut world, 0);
    assert_eq!(Reason::Allowed, reason);
    assert!(asks > 0, "the mark was there a second time");
    let admitted = exhaust(&mut world);
    assert!(admitted <= 5_000, "{admitted} of 5,000");
}

/// In a split a sidecar on the old master's side reports a generation that lives on the new one as lost. Units that come
/// back then stay with the ledger: whoever that pool had denied asks the ledger once it has given notice.
#[test]
fn after_a_split_nobody_is_denied_what_is_there() {
    let mut world = world_of(3, 300);
    for node in [0, 1, 2] {
        world.decide(node, &request("t", "m", 2));
        world.run_for(10_000);
    }
    let mut check = request("t", "m", 20);
    let id = ReservationId([4; 16]);
    check.mode = Mode::Reserve {
        id,
        expires_us: i64::MAX,
    };
    assert_eq!(Reason::Allowed, world.decide(1, &check).reason);
    world.redis.split();
    world.lead_astray(1, true);
    world.reconnect(0);
    world.reconnect(2);
    world.run_for(10_000);
    for turn in 0..2_000 {
        let node = 2 * (turn % 2);
        if !world.decide(node, &request("t", "m", 1)).reason.allowed() {
            break;
        }
    }
    world.decide(1, &request("t", "m", 250));
    world.redis.heal_split();
    world.lead_astray(1, false);
    world.reconnect(1);
    world.settle_here(1, id, 0).expect("it is open");
    world.carry(1);
    world.run_for(5 * SECOND_US);
    let left = world.ledger.rows.windows[0].left();
    assert!(left > 0, "what the astray one held came back");
    let decision = world.decide(0, &request("t", "m", 1));
    assert_eq!(Reason::Allowed, decision.reason, "{left} are there");
}

/// A pool that isn't final has refused: nobody is denied before the ledger has been asked.
#[test]
fn a_pool_that_is_not_final_proves_nothing() {
    let mut world = world_of(2, 5_000);
    for node in [0, 1, 0, 1] {
        world.decide(node, &request("t", "m", 1));
        world.run_for(2_000);
    }
    let window = &world.ledger.rows.windows[0];
    let free = world.redis.pool_free(window.pool_key());
    assert!(window.left() > free && free > 0);
    let decision = world.decide(1, &request("t", "m", free + 1));
    assert_eq!(Reason::Allowed, decision.reason);
}

/// Postgres is set back and Redis is lost at once: whatever was out stays out, and the window gives nothing more.
#[test]
fn a_restore_with_redis_lost_never_gives_twice() {
    let mut world = world_of(3, 300);
    world.decide(0, &request("t", "m", 1));
    world.ledger.back_up(&mut None);
    for _ in 0..15 {
        for node in 0..3 {
            world.decide(node, &request("t", "m", 3));
            world.run_for(3_000);
        }
    }
    let before: u64 = world.admitted.values().sum();
    let now_us = world.now().ledger_us;
    world.ledger.restore(now_us, &mut None);
    world.redis.flush();
    let admitted = exhaust(&mut world);
    assert!(
        (before..=300).contains(&admitted),
        "{before}, then {admitted} of 300"
    );
    assert_eq!(2, world.ledger.rows.timeline);
}

/// Redis is flushed while its connections stay: whoever the lost pool had refused hears of the units that come back after
/// it, to the ledger or into the next pool, instead of trusting the refusal until the window ends.
#[test]
fn who_a_flushed_pool_refused_hears_of_units() {
    for seed in 0..20 {
        let mut world = World::quiet(seed, 2, window_rule("limit", "m", 200), Plan::HOUR);
        for node in [0, 1, 0, 1] {
            world.decide(node, &request("t", "m", 1));
            world.run_for(2_000);
        }
        let id = ReservationId([7; 16]);
        let mode = Mode::Reserve {
            id,
            expires_us: i64::MAX,
        };
        let reserve = CheckRequest {
            mode,
            ..request("t", "m", 50)
        };
        assert_eq!(Reason::Allowed, world.decide(1, &reserve).reason);
        while world.decide(0, &request("t", "m", 1)).reason.allowed() {
            world.run_for(200);
        }
        world.redis.flush();
        // Nothing of it was used: its home is idle, and gives it back.
        world.settle(
            id,
            &[Cost {
                meter: "m".into(),
                units: 0,
            }],
        );
        world.run_for(5 * SECOND_US);
        let reason = world.decide(0, &request("t", "m", 1)).reason;
        assert_eq!(Reason::Allowed, reason, "seed {seed}");
    }
}
