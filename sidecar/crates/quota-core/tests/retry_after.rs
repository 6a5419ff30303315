//! `retry_after` is true: the same call is denied at every instant before it, and admitted at it if nobody else asks.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::{LimitKind, LimitRule};
use quota_sim::{
    rng::Rng,
    world::{
        World,
        ledger::{Plan, window_rule},
        request,
    },
};

/// A token bucket, or one to three windows, on one meter.
fn limits(rng: &mut Rng) -> Vec<(LimitRule, Plan)> {
    let is_bucket = rng.chance(350);
    let count = if is_bucket { 1 } else { rng.between(1, 3) };
    let one = |place: u64, rng: &mut Rng| {
        let mut rule = window_rule(&format!("limit-{place}"), "m", rng.between(3, 40));
        let seconds = rng.between(1, 90);
        let length_us = i64::try_from(seconds).unwrap() * 1_000_000;
        let is_rolling = rng.chance(300);
        if is_bucket {
            rule.kind = LimitKind::TokenBucket {
                refill_interval_us: length_us,
                burst: rng.between(3, 40),
            };
        }
        rule.is_rolling = is_rolling;
        let plan = Plan {
            length_us,
            is_rolling,
        };
        (rule, plan)
    };
    (0..count).map(|place| one(place, rng)).collect()
}

fn seeds() -> std::ops::Range<u64> {
    let first = std::env::var("QUOTA_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    first.map_or(0..100, |seed: u64| seed..seed + 1)
}

/// A token bucket, or windows of the calendar and rolling ones together: asked again and again before the time that a
/// denial named, the call is denied; asked at that time, it is admitted.
#[test]
fn a_denial_names_the_first_instant_at_which_the_call_passes() {
    let mut denials = 0;
    for seed in seeds() {
        let mut rng = Rng::new(seed);
        let mut world = World::new(seed, 1);
        world.declare("t", None, limits(&mut rng));
        world.weather.delay_max_us = rng.below(300);
        for turn in 0..40 {
            let call = request("t", "m", rng.between(1, 6));
            let decision = world.decide(0, &call);
            let (Some(after_us), false) = (decision.retry_after_us, decision.reason.allowed())
            else {
                world.run_for(rng.below(100_000));
                continue;
            };
            denials += 1;
            let at_us = world.real_us + u64::try_from(after_us).unwrap();
            let mut probes: Vec<u64> = (0..4)
                .map(|_| rng.between(world.real_us, at_us.max(world.real_us + 1)))
                .collect();
            probes.push(at_us.saturating_sub(1));
            probes.sort_unstable();
            for probe_us in probes {
                if probe_us >= at_us || probe_us < world.real_us {
                    continue;
                }
                world.run_until(probe_us);
                let again = world.decide(0, &call);
                assert!(
                    !again.reason.allowed() || world.real_us >= at_us,
                    "admitted {} us early; seed {seed} turn {turn}",
                    at_us - world.real_us
                );
                if again.reason.allowed() {
                    break;
                }
            }
            if world.real_us <= at_us {
                world.run_until(at_us);
                let then = world.decide(0, &call);
                assert!(
                    then.reason.allowed(),
                    "{:?} at the time that was named, again in {:?}; seed {seed} turn {turn}",
                    then.reason,
                    then.retry_after_us
                );
            }
        }
    }
    assert!(denials > 500, "{denials}");
}
