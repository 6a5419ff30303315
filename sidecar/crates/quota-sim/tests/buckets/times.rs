//! What is told of times, and what is admitted while nobody answers.

use quota_core::{Cost, FailurePolicy, Reason};
use quota_sim::world::request;

use super::{History, ROUNDED_US, SECOND_US, Shape, admitted, most_beyond, rule, shape_of, world};

/// The same call is denied at every instant before `retry_after` and admitted at it, if nobody else asks; times are
/// rounded up by less than four microseconds.
#[test]
fn retry_after_is_true() {
    for seed in 0..60 {
        let shape = Shape {
            rate: 1 + seed * 13 % 97,
            burst: 20 + seed % 40,
        };
        let mut world = world(seed, 1, vec![rule("rate", "m", shape)]);
        for _ in 0..world.rng.between(1, 60) {
            let cost = world.rng.between(1, 5);
            let _ = admitted(&mut world, 0, cost);
            let pause_us = world.rng.below(30_000);
            world.run_for(pause_us);
        }
        let cost = world.rng.between(shape.burst / 2, shape.burst);
        let decision = world.decide(0, &request("t", "m", cost));
        if decision.reason == Reason::Allowed {
            continue;
        }
        assert_eq!(Reason::RateLimited, decision.reason);
        let wait_us = u64::try_from(decision.retry_after_us.unwrap()).unwrap();
        let end_us = world.real_us + wait_us;
        for _ in 0..5 {
            let left_us = end_us.saturating_sub(world.real_us + ROUNDED_US);
            let pause_us = world.rng.below(left_us);
            world.run_for(pause_us);
            assert!(!admitted(&mut world, 0, cost), "{seed}: too early");
        }
        world.run_until(end_us - ROUNDED_US);
        assert!(!admitted(&mut world, 0, cost), "{seed}: a moment early");
        world.run_until(end_us);
        assert!(
            admitted(&mut world, 0, cost),
            "{seed}: not there when it was said"
        );
    }
}

/// A call that passes several token buckets is denied at every instant before `retry_after` and admitted at it, if nobody
/// else asks: also where a bucket that would let it pass has little, or lent what it has ahead, or was emptied by others.
#[test]
fn retry_after_speaks_for_every_bucket() {
    let mut denials = 0;
    for seed in 0..150 {
        let shape = |number: u64| Shape {
            rate: 1 + (seed * 13 + number * 31) % 97,
            burst: 10 + (seed * 7 + number * 17) % 40,
        };
        let names = ["a", "b", "c"];
        let rules = (0..3).map(|place| rule(names[place], names[place], shape(place as u64)));
        let mut world = world(seed, 2, rules.collect());
        let mut all = request("t", "a", 1);
        for (place, name) in names.iter().enumerate() {
            let burst = shape(place as u64).burst;
            let units = world.rng.between(1, burst);
            all.costs[0].units = if place == 0 {
                units
            } else {
                all.costs[0].units
            };
            if place > 0 {
                all.costs.push(Cost {
                    meter: (*name).into(),
                    units,
                });
            }
        }
        for _ in 0..world.rng.between(1, 80) {
            let node = usize::from(world.rng.chance(500));
            let name = names[usize::try_from(world.rng.below(3)).unwrap()];
            let cost = world.rng.between(1, 5);
            let _ = world.decide(node, &request("t", name, cost));
            let pause_us = world.rng.below(20_000);
            world.run_for(pause_us);
        }
        // What others took is known within this time.
        world.run_for(200_000);
        let decision = world.decide(0, &all);
        if decision.reason == Reason::Allowed {
            continue;
        }
        assert_eq!(Reason::RateLimited, decision.reason);
        denials += 1;
        let wait_us = u64::try_from(decision.retry_after_us.unwrap()).unwrap();
        let end_us = world.real_us + wait_us;
        for _ in 0..4 {
            let left_us = end_us.saturating_sub(world.real_us + ROUNDED_US);
            let pause_us = world.rng.below(left_us);
            world.run_for(pause_us);
            let early = world.decide(0, &all);
            assert_eq!(Reason::RateLimited, early.reason, "{seed}: too early");
        }
        world.run_until(end_us - ROUNDED_US);
        let early = world.decide(0, &all).reason;
        assert_eq!(Reason::RateLimited, early, "{seed}: a moment early");
        world.run_until(end_us);
        let then = world.decide(0, &all);
        assert_eq!(Reason::Allowed, then.reason, "{seed}: not when it was said");
    }
    assert!(denials > 50, "{denials} denials prove little");
}

/// While no authority answers policy `open` admits what another bucket would, in each process: burst + rate × t, whatever
/// is asked and when, and it says so.
#[test]
fn open_admits_another_bucket_at_most() {
    let (mut admitted_in_all, mut denied) = (0, 0);
    for seed in 0..40 {
        let shape = shape_of(seed);
        let mut open = rule("rate", "m", shape);
        open.failure_policy = FailurePolicy::Open;
        let mut world = world(seed, 1, vec![open]);
        world.weather.delay_max_us = 300;
        let _ = admitted(&mut world, 0, shape.burst);
        (world.is_redis_up, world.is_ledger_up) = (false, false);
        let mut history = History::new();
        for _ in 0..300 {
            let cost = world.rng.between(1, shape.burst / 3 + 1);
            match world.decide(0, &request("t", "m", cost)).reason {
                Reason::Uncovered => history.push((world.now().ledger_us, cost)),
                Reason::AuthorityUnreachable => denied += 1,
                _ => {}
            }
            let pause_us = world.rng.below(3 * SECOND_US / shape.rate.min(1_000));
            world.run_for(pause_us);
        }
        let beyond = most_beyond(&history, shape, 1_000_000);
        assert!(
            beyond <= shape.burst + 1,
            "seed {seed}: {beyond}, {shape:?}"
        );
        let units: u64 = history.iter().map(|(_, units)| *units).sum();
        assert_eq!(units, world.nodes[0].engine.figures().uncovered_units);
        admitted_in_all += units;
    }
    assert!(admitted_in_all > 1_000 && denied > 1_000);
}

/// A Redis that is gone in the moment in which it answered is asked once and left alone, however short the way to it is.
#[test]
fn a_redis_that_is_gone_at_once_is_not_asked_in_a_loop() {
    let shape = Shape { rate: 5, burst: 5 };
    let mut world = world(1, 1, vec![rule("rate", "m", shape)]);
    assert!(admitted(&mut world, 0, 1));
    world.is_redis_up = false;
    let before = world.commands["redis"];
    for _ in 0..20 {
        let _ = world.decide(0, &request("t", "m", 5));
    }
    let asked = world.commands["redis"] - before;
    assert!((1..5).contains(&asked), "asked {asked} times");
}
