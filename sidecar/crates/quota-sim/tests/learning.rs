//! Limits that learn: Postgres is set back under sidecars that go on, are cut off, crash, while Redis is flushed.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use std::collections::BTreeSet;

use quota_core::{Event, FailurePolicy, Holder};
use quota_sim::world::{
    World,
    fact::{Fact, Log},
    ledger::{Plan, window_rule},
    request,
};

const SECOND_US: u64 = 1_000_000;
const NODES: usize = 4;
const SEEDS: u64 = 200;
const PLAN: Plan = Plan {
    length_us: 86_400_000_000,
    is_rolling: false,
};

/// What became of one schedule.
struct Outcome {
    amount: u64,
    before: u64,
    admitted: u64,
    /// What those got, in all, that said nothing in time.
    silent: u64,
}

fn world_of(seed: u64) -> World {
    let mut world = World::new(seed, NODES);
    let mut rule = window_rule("limit", "m", world.rng.between(100, 4_000));
    rule.learns = true;
    if world.rng.chance(500) {
        rule.failure_policy = FailurePolicy::Standby;
    }
    let is_rolling = world.rng.chance(300);
    world.declare("t", None, vec![(rule, Plan { is_rolling, ..PLAN })]);
    let log = Log::default();
    world.ledger.facts = Some(log.clone());
    world.redis.facts = Some(log);
    world.weather.delay_max_us = world.rng.between(50, 20_000);
    world.weather.loss = world.rng.below(60);
    world
}

/// Calls at random sidecars, with what breaks meanwhile.
fn go_on(world: &mut World, calls: u64, harm: u64) {
    for _ in 0..calls {
        let node = usize::try_from(world.rng.below(NODES as u64)).unwrap();
        let units = world.rng.between(1, 30);
        world.check(node, &request("t", "m", units));
        let span_us = world.rng.between(100, 200_000);
        world.run_for(span_us);
        if world.rng.chance(harm) {
            match world.rng.below(4) {
                0 => world.redis.flush(),
                1 => world.crash(node),
                _ => world.reconnect(node),
            }
        }
    }
}

fn play(seed: u64) -> Outcome {
    let mut world = world_of(seed);
    let amount = world.amount("t", "limit");
    let calls = world.rng.between(0, 40);
    go_on(&mut world, calls, 20);
    world.ledger.back_up(&mut None);
    // Without Redis leases come from the ledger alone.
    world.is_redis_up = world.rng.chance(600);
    let calls = world.rng.between(5, 60);
    go_on(&mut world, calls, 40);
    let cut: Vec<usize> = (0..NODES).filter(|_| world.rng.chance(200)).collect();
    for node in &cut {
        world.cut(*node, true);
    }
    // Some of what is under way when Postgres goes back is answered by what it was.
    for node in 0..NODES {
        let units = world.rng.between(1, 60);
        world.check(node, &request("t", "m", units));
    }
    let span_us = world.rng.below(2 * world.weather.delay_max_us);
    world.run_for(span_us);
    let before: u64 = world.admitted.values().sum();
    let now_us = world.now().ledger_us;
    world.ledger.restore(now_us, &mut None);
    world.weather.loss = 0;
    let at_once: Vec<usize> = (0..NODES)
        .filter(|node| !cut.contains(node) && world.rng.chance(500))
        .collect();
    for node in at_once {
        world.handle(node, Event::Timeline(2));
    }
    world.is_redis_up = true;
    if world.rng.chance(300) {
        world.redis.flush();
    }
    // Whoever is there hears of it within seconds, some of them while something is under way.
    for node in (0..NODES).filter(|node| !cut.contains(node)) {
        go_on(&mut world, 3, 0);
        world.handle(node, Event::Timeline(2));
    }
    let spoke: BTreeSet<Holder> = (0..NODES)
        .filter(|node| !cut.contains(node))
        .map(|node| world.holder(node))
        .collect();
    world.run_for(20 * SECOND_US);
    go_on(&mut world, 20, 0);
    world.run_for(15 * SECOND_US);
    let mut is_late = false;
    for round in 0..120 {
        for node in 0..NODES {
            world.check(node, &request("t", "m", amount / 60 + 1));
            world.check(node, &request("t", "m", 1));
            world.run_for(120_000);
        }
        if round == 60 && !is_late {
            is_late = true;
            for node in &cut {
                world.cut(*node, false);
                world.run_for(SECOND_US);
                world.handle(*node, Event::Timeline(2));
            }
        }
    }
    Outcome {
        amount,
        before,
        admitted: world.admitted.values().sum(),
        silent: got_by_others(&world, &spoke),
    }
}

/// Units that processes got, in all, that are not among these.
fn got_by_others(world: &World, spoke: &BTreeSet<Holder>) -> u64 {
    let facts = world.ledger.facts.as_ref().unwrap().borrow();
    let got = facts.iter().map(|fact| match fact {
        Fact::Leased { holder, units, .. } if !spoke.contains(holder) => *units,
        Fact::Granted { holder, give, .. } if !spoke.contains(holder) => *give,
        _ => 0,
    });
    got.sum()
}

/// Admitted is at most the limit and what those got that said nothing; and without an operator the limit is given out.
#[test]
fn nothing_is_given_beside_what_was_said() {
    let (mut resumed, mut exact) = (0, 0);
    for seed in 0..SEEDS {
        let one = play(seed);
        let bound = one.amount + one.silent;
        assert!(
            one.admitted <= bound,
            "seed {seed}: {} of {} and {} silent",
            one.admitted,
            one.amount,
            one.silent
        );
        resumed += u64::from(one.admitted > one.before);
        exact += u64::from(one.silent == 0);
    }
    assert!(resumed > SEEDS * 3 / 4, "issuing went on in {resumed}");
    assert!(exact > SEEDS / 8, "everybody spoke in {exact}");
}

/// A lease that Postgres forgot is on its way while its holder hears of the restore: it speaks once it has that as well.
#[test]
fn what_is_under_way_is_spoken_of_when_it_has_come() {
    for seed in 0..10 {
        let mut world = World::new(seed, 2);
        let mut rule = window_rule("limit", "m", 400);
        (rule.learns, rule.failure_policy) = (true, FailurePolicy::Standby);
        world.declare("t", None, vec![(rule, PLAN)]);
        world.weather.delay_max_us = 2_000;
        world.is_redis_up = false;
        // By the second of these the sidecar knows that Redis is away, and leases from the ledger.
        for units in [1, 30] {
            assert!(world.decide(0, &request("t", "m", units)).reason.allowed());
        }
        world.ledger.back_up(&mut None);
        let known = world.ledger.rows.windows[0].allotted;
        world.check(0, &request("t", "m", 150));
        while world.ledger.rows.windows[0].allotted == known {
            assert!(world.step(u64::MAX), "the ask is answered");
        }
        let now_us = world.now().ledger_us;
        world.ledger.restore(now_us, &mut None);
        for node in 0..2 {
            world.handle(node, Event::Timeline(2));
        }
        world.run_for(35 * SECOND_US);
        let mut denied = 0;
        while denied < 8 {
            let node = usize::from(denied % 2 == 1);
            let is_admitted = world.decide(node, &request("t", "m", 1)).reason.allowed();
            denied = if is_admitted { 0 } else { denied + 1 };
            world.run_for(150_000);
        }
        let admitted: u64 = world.admitted.values().sum();
        assert!(
            (200..=400).contains(&admitted),
            "seed {seed}: {admitted} of 400"
        );
    }
}
