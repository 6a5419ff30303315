//! What limits decided is counted exactly, and kept one by one as far as they say so and there is room.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::{
    CheckRequest, DecisionLog, Decisions, Enforcement, FailurePolicy, LimitRule, Mode, Reason,
};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};

const COUNTS_MAX: usize = 10_000;

/// A world with one tenant whose limits on `m` are these.
fn world(rules: Vec<LimitRule>) -> World {
    let mut world = World::new(1, 1);
    world.declare(
        "t",
        None,
        rules.into_iter().map(|rule| (rule, Plan::DAY)).collect(),
    );
    world
}

fn rule(name: &str, amount: u64, log: DecisionLog) -> LimitRule {
    LimitRule {
        log,
        ..window_rule(name, "m", amount)
    }
}

fn call(world: &mut World, units: u64) -> Reason {
    world.decide(0, &request("t", "m", units)).reason
}

fn taken(world: &mut World) -> Decisions {
    let mut told = Decisions::default();
    world.nodes[0].engine.take_decisions(COUNTS_MAX, &mut told);
    told
}

/// (limit, reason, count, left out), in name order.
fn counts(told: &Decisions) -> Vec<(String, Reason, u64, u64)> {
    let mut counts: Vec<_> = (told.counts.iter())
        .map(|one| (one.limit.to_string(), one.reason, one.count, one.left_out))
        .collect();
    counts.sort();
    counts
}

/// A denied call is kept with what it met and all its attributes; one that fits leaves nothing behind.
#[test]
fn a_denial_is_kept_with_what_it_met() {
    let mut world = world(vec![rule("day", 10, DecisionLog::Denied)]);
    assert_eq!(Reason::Allowed, call(&mut world, 7));
    assert!(taken(&mut world).is_empty());
    let asked = CheckRequest {
        attributes: vec![
            ("endpoint".into(), "/käse".into()),
            ("none".into(), "".into()),
            ("user".into(), "ann".into()),
        ],
        ..request("t", "m", 4)
    };
    for units in [4, 5] {
        let mut asked = asked.clone();
        asked.costs[0].units = units;
        assert_eq!(Reason::QuotaExhausted, world.decide(0, &asked).reason);
    }
    let told = taken(&mut world);
    assert_eq!(
        vec![("day".into(), Reason::QuotaExhausted, 2, 0)],
        counts(&told)
    );
    let kept: Vec<_> = (told.entries())
        .map(|(one, attributes)| {
            assert_eq!(world.now().ledger_us, one.at_us);
            assert_eq!(
                ("t", "t", "day", "m"),
                (&*one.tenant, &*one.caller, &*one.limit, &*one.meter)
            );
            let attributes: Vec<_> = attributes.collect();
            (one.reason, one.units, one.amount, one.used, attributes)
        })
        .collect();
    let attributes = vec![("endpoint", "/käse"), ("none", ""), ("user", "ann")];
    let entry = |units| {
        (
            Reason::QuotaExhausted,
            units,
            Some(10),
            7,
            attributes.clone(),
        )
    };
    assert_eq!(vec![entry(4), entry(5)], kept);
    assert!(taken(&mut world).is_empty());
}

/// Every limit that denied a call counts it, and every limit that it was admitted beyond; a limit that only fitted a
/// denied call does not.
#[test]
fn each_limit_counts_what_it_said() {
    let soft = LimitRule {
        enforcement: Enforcement::Soft,
        ..rule("soft", 5, DecisionLog::Denied)
    };
    let shadow = LimitRule {
        enforcement: Enforcement::Shadow,
        ..rule("shadow", 5, DecisionLog::Denied)
    };
    let hard = [("one", 8), ("two", 8), ("wide", 1_000)];
    let hard = hard.map(|(name, amount)| rule(name, amount, DecisionLog::All));
    let mut world = world([soft, shadow].into_iter().chain(hard).collect());
    assert_eq!(Reason::SoftLimitExceeded, call(&mut world, 6));
    let admitted = [
        ("one".into(), Reason::Allowed, 1, 0),
        ("shadow".into(), Reason::ShadowLimitExceeded, 1, 0),
        ("soft".into(), Reason::SoftLimitExceeded, 1, 0),
        ("two".into(), Reason::Allowed, 1, 0),
        ("wide".into(), Reason::Allowed, 1, 0),
    ];
    assert_eq!(admitted.to_vec(), counts(&taken(&mut world)));
    assert_eq!(Reason::QuotaExhausted, call(&mut world, 6));
    let denied = [
        ("one".into(), Reason::QuotaExhausted, 1, 0),
        ("two".into(), Reason::QuotaExhausted, 1, 0),
    ];
    let told = taken(&mut world);
    assert_eq!((denied.to_vec(), 2), (counts(&told), told.entries.len()));
}

/// Counts don't depend on what is kept: nothing where a limit says `off`; of a sampled one the first of each reason and
/// one in so many after it; everything where it says so.
#[test]
fn what_is_kept_is_what_the_limit_says() {
    let kept = |log: DecisionLog| {
        let mut world = world(vec![rule("day", 7, log)]);
        for _ in 0..17 {
            call(&mut world, 1);
        }
        let told = taken(&mut world);
        let kept = |reason| {
            told.entries
                .iter()
                .filter(|one| one.reason == reason)
                .count()
        };
        let counted = |reason| {
            told.counts
                .iter()
                .find(|one| one.reason == reason)
                .map(|one| one.count)
        };
        let (fits, full) = (Reason::Allowed, Reason::QuotaExhausted);
        ((kept(fits), kept(full)), (counted(fits), counted(full)))
    };
    assert_eq!(((0, 0), (None, Some(10))), kept(DecisionLog::Off));
    assert_eq!(((0, 10), (None, Some(10))), kept(DecisionLog::Denied));
    assert_eq!(((2, 3), (Some(7), Some(10))), kept(DecisionLog::Sampled(4)));
    assert_eq!(
        ((7, 10), (Some(7), Some(10))),
        kept(DecisionLog::Sampled(1))
    );
    assert_eq!(((7, 10), (Some(7), Some(10))), kept(DecisionLog::All));
}

/// What finds no room is counted as left out, also where attributes fill it; a take makes room and forgets nothing. Of a
/// limit that keeps denials a burst is kept, and then so many with every take.
#[test]
fn what_finds_no_room_is_counted() {
    let (denied, all) = (DecisionLog::Denied, DecisionLog::All);
    for (log, bytes, rooms) in [
        (denied, 1, [1_000, 20, 20]),
        (all, 1, [1_000, 1_000, 1_000]),
        (all, 120, [1_000, 1_000, 1_000]),
        (denied, 1_000, [262, 262, 262]),
    ] {
        let mut world = world(vec![rule("day", 0, log)]);
        let asked = CheckRequest {
            attributes: vec![("a".into(), "x".repeat(bytes - 1).into())],
            ..request("t", "m", 1)
        };
        for room in rooms {
            for _ in 0..1_500 {
                world.decide(0, &asked);
            }
            let told = taken(&mut world);
            let expected = vec![(
                "day".into(),
                told.counts[0].reason,
                1_500,
                1_500 - room as u64,
            )];
            assert_eq!((expected, room), (counts(&told), told.entries.len()));
        }
        for _ in 0..100 {
            assert!(taken(&mut world).is_empty());
        }
        for _ in 0..1_500 {
            world.decide(0, &asked);
        }
        assert_eq!(rooms[0], taken(&mut world).entries.len());
    }
}

/// Of more counts than a batch takes the rest comes with the next one.
#[test]
fn counts_that_are_not_taken_are_taken_later() {
    let names: Vec<String> = (0..25).map(|at| format!("limit-{at}")).collect();
    let rules = names.iter().map(|name| rule(name, 0, DecisionLog::Off));
    let mut world = world(rules.collect());
    for _ in 0..3 {
        call(&mut world, 1);
    }
    let (mut told, mut found) = (Decisions::default(), Vec::new());
    while world.nodes[0].engine.take_decisions(10, &mut told) {
        assert!(told.counts.len() <= 10);
        found.extend(
            told.counts
                .iter()
                .map(|one| (one.limit.to_string(), one.count)),
        );
    }
    found.sort();
    let mut expected: Vec<_> = names.into_iter().map(|name| (name, 3)).collect();
    expected.sort();
    assert_eq!(expected, found);
}

/// A look and a return decide nothing that is worth telling.
#[test]
fn looks_and_returns_are_not_counted() {
    let mut world = world(vec![rule("day", 5, DecisionLog::All)]);
    for (mode, units) in [(Mode::Peek, 1), (Mode::Peek, 9), (Mode::GiveBack, 1)] {
        let asked = CheckRequest {
            mode,
            ..request("t", "m", units)
        };
        world.decide(0, &asked);
    }
    assert!(taken(&mut world).is_empty());
}

/// Without an authority a call that is denied or let through says so.
#[test]
fn calls_without_an_authority_are_counted_as_such() {
    let open = LimitRule {
        failure_policy: FailurePolicy::Open,
        ..rule("open", 100, DecisionLog::Denied)
    };
    let mut world = world(vec![open]);
    (world.is_ledger_up, world.is_redis_up) = (false, false);
    let reason = call(&mut world, 1);
    assert_eq!(
        vec![("open".into(), reason, 1, 0)],
        counts(&taken(&mut world))
    );
    assert_eq!(Reason::Uncovered, reason);
}
