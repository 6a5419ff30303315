//! Many calls at one token bucket, whose tokens come faster than answers of its shard: nobody waits until no one can say why.

#![allow(clippy::arithmetic_side_effects, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;

use quota_core::{CheckRequest, EngineConfig, LimitKind, LimitRule, Reason};
use quota_sim::{
    rng::Rng,
    world::{
        World,
        ledger::{Plan, window_rule},
        request,
    },
};

const CALLS: u64 = 3_000;
/// Calls come this far apart on average, real µs: 400 a second to one bucket.
const PAUSE_US: u64 = 2_500;

/// What calls at one token bucket of `rate` tokens a second were told, with answers of up to twice `delay_max_us`.
fn play(seed: u64, rate: u64, delay_max_us: u64, at_once: u64) -> BTreeMap<Reason, u64> {
    let config = EngineConfig {
        ledger_budget_us: 250_000,
        ..EngineConfig::default()
    };
    let mut world = World::with_config(seed, 1, config);
    world.weather.delay_max_us = delay_max_us;
    let rule = LimitRule {
        kind: LimitKind::TokenBucket {
            refill_interval_us: 1_000_000,
            burst: 60,
        },
        ..window_rule("calls", "calls", rate)
    };
    let plan = Plan {
        length_us: 60_000_000,
        is_rolling: false,
    };
    world.declare("t", None, vec![(rule, plan)]);
    let mut rng = Rng::new(seed ^ 0x11E);
    let call: CheckRequest = request("t", "calls", 1);
    for place in 0..CALLS {
        world.check(0, &call);
        if place % at_once == 0 {
            world.run_for(rng.below(2 * PAUSE_US * at_once));
        }
    }
    world.run_for(1_000_000);
    let mut told = BTreeMap::new();
    for decision in world.decisions.values() {
        *told.entry(decision.reason).or_default() += 1;
    }
    told
}

/// Calls that a token bucket has the rate for all pass, however long its line is while an answer is under way: what is
/// asked for covers everybody who waits, and doesn't count as lent ahead.
#[test]
fn a_line_that_the_rate_covers_passes() {
    for (seed, at_once) in [(1, 1), (2, 1), (3, 20), (4, 20)] {
        let told = play(seed, 800, 10_000, at_once);
        assert_eq!(
            BTreeMap::from([(Reason::Allowed, CALLS)]),
            told,
            "seed {seed}"
        );
    }
}

/// Calls that come faster than tokens are refused by rate, not for want of an answer, and what the bucket has is admitted:
/// its shard gives a few at each ask and so never refuses, but says how many it has left for the line.
#[test]
fn a_line_that_outruns_the_rate_is_refused_by_rate() {
    for (seed, at_once) in [(1, 1), (2, 1), (3, 20), (4, 20)] {
        let told = play(seed, 200, 10_000, at_once);
        assert_eq!(None, told.get(&Reason::AuthorityUnreachable), "{told:?}");
        // 60 at first and 200 a second, of which little is left lying.
        assert!(told[&Reason::Allowed] > CALLS * 2 / 5, "{told:?}");
        assert!(told[&Reason::RateLimited] > CALLS / 4, "{told:?}");
    }
}
