//! A limit that calls outrun, minute after minute, while Redis and the ledger take their time: every denial has its proof.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use std::collections::BTreeMap;

use quota_core::Reason;
use quota_sim::{
    rng::Rng,
    waste::LLM_COSTS,
    world::{
        World,
        ledger::{Plan, window_rule},
        request,
    },
};

const MINUTE_US: i64 = 60_000_000;
const MINUTES: u64 = 20;
const CALLS_A_MINUTE: u64 = 400;
/// What a minute's calls cost is 1.3 times as much.
const AMOUNT: u64 = 550_000;

/// What calls at an even pace were told, by reason, and the most that one minute admitted.
fn play(seed: u64, speed_milli: i64, delay_max_us: u64) -> (BTreeMap<String, u64>, u64) {
    let mut world = World::new(seed, 1);
    world.speed_milli = speed_milli;
    world.origin_us -= world.origin_us % MINUTE_US;
    world.weather.delay_max_us = delay_max_us;
    let plan = |length_us| Plan {
        length_us,
        is_rolling: false,
    };
    let minute = (window_rule("minute", "tokens", AMOUNT), plan(MINUTE_US));
    let day = window_rule("day", "tokens", AMOUNT * 1_440);
    world.declare("t", None, vec![minute, (day, plan(MINUTE_US * 1_440))]);
    let mut rng = Rng::new(seed ^ 0x5CA);
    let minute_real_us =
        u64::try_from(MINUTE_US).unwrap() * 1_000 / u64::try_from(speed_milli).unwrap();
    for _ in 0..MINUTES * CALLS_A_MINUTE {
        let cost = LLM_COSTS[usize::try_from(rng.below(64)).unwrap()];
        world.check(0, &request("t", "tokens", cost));
        world.run_for(rng.below(2 * minute_real_us / CALLS_A_MINUTE));
    }
    world.run_for(1_000_000);
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for decision in world.decisions.values() {
        *reasons.entry(format!("{:?}", decision.reason)).or_default() += 1;
    }
    let minutes = world
        .admitted
        .iter()
        .filter(|((limit, _), _)| limit == "minute");
    (reasons, minutes.map(|(_, units)| *units).max().unwrap_or(0))
}

/// One second of use a millisecond away, or a hundred: as long as a round trip is a small part of the budget, nobody is
/// denied for want of an answer, however many wait for the same units.
#[test]
fn who_outruns_a_limit_is_denied_with_proof() {
    for (speed_milli, delay_max_us) in [
        (1_000, 3_000),
        (60_000, 3_000),
        (120_000, 3_000),
        (120_000, 8_000),
    ] {
        for seed in 0..4 {
            let (reasons, most) = play(seed, speed_milli, delay_max_us);
            let case =
                format!("speed {speed_milli}, delay {delay_max_us}, seed {seed}: {reasons:?}");
            let unreachable = format!("{:?}", Reason::AuthorityUnreachable);
            assert_eq!(None, reasons.get(&unreachable), "{case}");
            assert!(
                reasons[&format!("{:?}", Reason::QuotaExhausted)] > 500,
                "{case}"
            );
            assert!(most <= AMOUNT, "{case}: {most}");
        }
    }
}
