//! Thousands of seeded schedules: loss, repeats, cuts, crashes, lost and rolled back Redis. Whatever happens, no window
//! is overspent; when it stops, everybody gets a true answer again.

#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod world;

use quota_core::{FailurePolicy, Reason};
use world::{
    Weather, World,
    ledger::{Plan, window_rule},
    request,
};

const SECOND_US: u64 = 1_000_000;

fn seeds() -> std::ops::Range<u64> {
    let read = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = read("QUOTA_SEED").unwrap_or(0);
    first..first + read("QUOTA_SEEDS").unwrap_or(400)
}

fn build(seed: u64) -> (World, u64) {
    let mut world = World::new(seed, 4);
    let amount = [20, 200, 5_000][(seed % 3) as usize];
    let policy = [FailurePolicy::Closed, FailurePolicy::Standby][(seed / 3 % 2) as usize];
    let mut rule = window_rule("limit", "m", amount);
    rule.failure_policy = policy;
    let length_us = [2_000_000, 8_000_000, 3_600_000_000][(seed / 6 % 3) as usize];
    world.declare("t", None, vec![(rule, Plan { length_us, is_rolling: false })]);
    let loss = [0, 5, 50][(seed / 18 % 3) as usize];
    world.weather = Weather { delay_max_us: world.rng.between(50, 3_000), loss, repeat: loss };
    (world, amount)
}

fn break_something(world: &mut World) {
    let node = world.rng.below(4) as usize;
    match world.rng.below(12) {
        0 => world.crash(node),
        1 => world.redis.flush(),
        2 | 3 => world.redis.fail_over(),
        4 | 5 => world.cut(node, true),
        6 | 7 => world.cut(node, false),
        8 => world.is_redis_up = !world.is_redis_up,
        9 => world.is_ledger_up = !world.is_ledger_up,
        _ => world.redis.replicate(),
    }
}

fn heal(world: &mut World) {
    world.is_redis_up = true;
    world.is_ledger_up = true;
    world.weather.loss = 0;
    world.weather.repeat = 0;
    world.weather.delay_max_us = world.weather.delay_max_us.min(2_000);
    for node in 0..4 {
        world.cut(node, false);
    }
    world.run_for(2 * SECOND_US);
}

fn assert_bound(world: &World, amount: u64, seed: u64) {
    for ((limit, start_us), units) in &world.admitted {
        assert!(
            *units <= amount,
            "{units} of {amount} admitted in {limit} from {start_us}; replay: QUOTA_SEED={seed} QUOTA_SEEDS=1"
        );
    }
}

/// No schedule admits more than the limit in any window; every check is answered; after the faults stop nobody hears
/// that the authority is away, and what is denied is denied with proof.
#[test]
fn no_schedule_overspends_a_window() {
    for seed in seeds() {
        if std::env::var_os("QUOTA_TRACE").is_some() {
            eprintln!("seed {seed}");
        }
        let (mut world, amount) = build(seed);
        let fault_rate = [0, 10, 40][(seed / 54 % 3) as usize];
        for _ in 0..400 {
            let node = world.rng.below(4) as usize;
            let cost = if world.rng.chance(100) { world.rng.between(2, amount / 4) } else { 1 };
            world.check(node, &request("t", "m", cost));
            if world.rng.chance(fault_rate) {
                break_something(&mut world);
            }
            let pause_us = if world.rng.chance(20) { 400_000 } else { 4_000 };
            let pause_us = world.rng.below(pause_us);
            world.run_for(pause_us);
            assert_bound(&world, amount, seed);
        }
        heal(&mut world);
        for node in 0..4 {
            let decision = world.decide(node, &request("t", "m", 1));
            let is_true_answer = matches!(decision.reason, Reason::Allowed | Reason::QuotaExhausted);
            assert!(is_true_answer, "{:?} after healing; replay: QUOTA_SEED={seed} QUOTA_SEEDS=1", decision.reason);
        }
        assert_bound(&world, amount, seed);
    }
}
