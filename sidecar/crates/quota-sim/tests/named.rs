//! Schedules that the protocol's text names, played by hand.

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

const SECOND_US: u64 = 1_000_000;
const HOUR: Plan = Plan {
    length_us: 3_600_000_000,
    is_rolling: false,
};

fn world_of(nodes: usize, amount: u64) -> World {
    let mut world = World::new(7, nodes);
    world.declare("t", None, vec![(window_rule("limit", "m", amount), HOUR)]);
    world.weather.delay_max_us = 300;
    world
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
        let mut world = World::new(seed, 2);
        world.declare("t", None, vec![(window_rule("limit", "m", 200), HOUR)]);
        world.weather.delay_max_us = 300;
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
