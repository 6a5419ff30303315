//! What a sidecar kept for a restart: taken over once, spent by nobody else, and the rest of a crash is one block.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::{EngineConfig, Event};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};

const SECOND_US: u64 = 1_000_000;

fn world(seed: u64, nodes: usize, amount: u64) -> World {
    world_of(seed, nodes, amount, Plan::DAY)
}

fn world_of(seed: u64, nodes: usize, amount: u64, plan: Plan) -> World {
    let mut world = World::with_config(
        seed,
        nodes,
        EngineConfig {
            keeps: true,
            ..EngineConfig::default()
        },
    );
    world.declare("t", None, vec![(window_rule("limit", "m", amount), plan)]);
    world.weather.delay_max_us = 300;
    world
}

/// Uses so many units in calls of one, a call every so many µs; gives how many were admitted.
fn use_units(world: &mut World, node: usize, calls: u64, every_us: u64) -> u64 {
    let mut admitted = 0;
    for _ in 0..calls {
        admitted += u64::from(world.decide(node, &request("t", "m", 1)).reason.allowed());
        world.run_for(every_us);
    }
    admitted
}

fn admitted(world: &World) -> u64 {
    world.admitted.values().sum()
}

/// With ledger and Redis both away, a restarted sidecar serves from what the dead one kept, to the last unit and no
/// further, and a second restart does not take the same units over again.
#[test]
fn a_restart_spends_what_was_kept_and_nothing_twice() {
    let amount = 10_000;
    let mut world = world(1, 1, amount);
    use_units(&mut world, 0, 800, 5_000);
    world.is_ledger_up = false;
    world.is_redis_up = false;
    world.crash(0);
    let first = use_units(&mut world, 0, 30, 1_000);
    assert_eq!(30, first, "the units that were kept are spendable");
    let mut rest = 0;
    for _ in 0..5 {
        world.crash(0);
        rest += use_units(&mut world, 0, 2_000, 10);
    }
    assert!(
        admitted(&world) <= amount,
        "{} of {amount}",
        admitted(&world)
    );
    assert!(
        rest > 0,
        "what the second process kept, the third takes over"
    );
}

/// A crash forfeits at most the block: half of the balance, which is about a second of use.
#[test]
fn a_crash_forfeits_one_block() {
    for seed in 0..8 {
        let amount = 20_000;
        let mut world = world(seed, 1, amount);
        let calls = world.rng.between(600, 1_200);
        use_units(&mut world, 0, calls, 5_000);
        let crashes = 3;
        for _ in 0..crashes {
            world.crash(0);
            use_units(&mut world, 0, 600, 5_000);
        }
        world.run_for(5 * SECOND_US);
        while use_units(&mut world, 0, 100, 100) > 0 {}
        let lost = amount - admitted(&world);
        // A second of use is 1,000 units here; before the first mark of a process all that it holds may be lost.
        assert!(
            lost <= crashes * 4_000,
            "seed {seed}: {lost} of {amount} lost"
        );
    }
}

/// Crashes at any moment, between writing a mark and its being durable as well: never more than the limit.
#[test]
fn crashes_at_any_moment_never_admit_more() {
    for seed in 0..60 {
        assert_eq!(None, overshoot(seed));
    }
}

/// Gives what was admitted above the limit under a schedule of bursts, pauses and crashes.
fn overshoot(seed: u64) -> Option<u64> {
    let amount = 3_000;
    let mut world = world(seed, 2, amount);
    for _ in 0..60 {
        let node = usize::try_from(world.rng.between(0, 1)).unwrap();
        let units = world.rng.between(1, 60);
        let calls = world.rng.between(1, 60);
        let every_us = world.rng.between(1, 3_000);
        for _ in 0..calls {
            world.check(node, &request("t", "m", units));
            world.run_for(every_us);
        }
        if world.rng.chance(150) {
            world.crash(node);
        }
        if world.rng.chance(200) {
            world.run_for(3 * SECOND_US);
        }
    }
    let all = admitted(&world);
    (all > amount).then(|| all - amount)
}

/// An idle sidecar keeps nothing for long: its units go back, and the other one can have them all.
#[test]
fn idle_units_go_back_although_they_were_kept() {
    let amount = 10_000;
    let mut world = world(3, 2, amount);
    use_units(&mut world, 0, 3_000, 1_000);
    world.run_for(20 * SECOND_US);
    let mut rest = 0;
    for _ in 0..100 {
        rest += use_units(&mut world, 1, 100, 100);
        world.run_for(SECOND_US / 10);
    }
    assert_eq!(amount, 3_000 + rest);
}

/// A clean stop returns what was kept as well.
#[test]
fn a_clean_stop_returns_what_was_kept() {
    let amount = 10_000;
    let mut world = world(4, 2, amount);
    use_units(&mut world, 0, 3_000, 1_000);
    let now = world.now();
    world.nodes[0].engine.drain(now);
    world.carry(0);
    world.run_for(SECOND_US);
    assert_eq!(0, world.nodes[0].engine.outstanding());
    world.cut(0, true);
    let mut rest = 0;
    for _ in 0..100 {
        rest += use_units(&mut world, 1, 100, 100);
        world.run_for(SECOND_US / 10);
    }
    assert_eq!(amount, 3_000 + rest);
}

/// One large call leaves room for such calls, out of what is kept, in its window and the next: after that more is kept again.
#[test]
fn a_large_call_is_forgotten_after_a_window() {
    let minute = Plan {
        length_us: 60_000_000,
        ..Plan::DAY
    };
    let mut world = world_of(6, 1, 50_000, minute);
    let large = world.decide(0, &request("t", "m", 10_000));
    assert!(large.reason.allowed());
    let mut kept = Vec::new();
    // 20 s, 80 s and 130 s after the start: windows end after 39 s and 99 s.
    for calls in [400, 1_200, 1_000] {
        use_units(&mut world, 0, calls, 50_000);
        kept.push(world.kept(0));
    }
    assert_eq!([0, 0], kept[..2]);
    assert!(kept[2] > 0);
}

/// A disk that never says whether it wrote: what is kept stays kept, nothing else is hindered.
#[test]
fn a_disk_that_fails_withholds_only_what_is_kept() {
    let mut world = world(5, 1, 100_000);
    let before = use_units(&mut world, 0, 3_000, 1_000);
    assert_eq!(3_000, before);
    world.handle(0, Event::Marked(u64::MAX, quota_core::Marked::Unknown));
    assert_eq!(1_000, use_units(&mut world, 0, 1_000, 1_000));
}

/// A call that is large beside those before it passes although it meets many limits of which most is kept: what it waits
/// for is not kept from it again, limit by limit, before the last one has it.
#[test]
fn what_a_call_waits_for_is_not_kept_from_it() {
    let config = EngineConfig {
        keeps: true,
        ..EngineConfig::default()
    };
    let mut world = World::with_config(9, 1, config);
    let limits = (0..20).map(|at| (window_rule(&format!("l{at}"), "m", 1_000), Plan::DAY));
    world.declare("t", None, limits.collect());
    // Units are leased for a caller that goes away, so they are kept.
    let ticket = world.check(0, &request("t", "m", 250));
    world.nodes[0].engine.cancel(ticket);
    world.carry(0);
    world.run_for(SECOND_US);
    for units in [20, 100, 250] {
        let decision = world.decide(0, &request("t", "m", units));
        assert!(decision.reason.allowed(), "{units}: {:?}", decision.reason);
        world.run_for(SECOND_US / 10);
    }
}
