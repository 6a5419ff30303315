//! What a caller may rely on, one guarantee a test, in a quiet world.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use quota_core::{
    AttributeMatch, CheckRequest, Enforcement, Event, FailurePolicy, LimitKind, LimitRule,
    MatchRule, Mode, Reason, ReservationId,
};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request, reserve,
};

const SECOND_US: u64 = 1_000_000;

/// An unknown tenant is fetched once however many ask, denied when the ledger says so, and remembered for five seconds.
#[test]
fn unknown_tenant_is_fetched_once() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 10), Plan::DAY);
    world.check(0, &request("nobody", "m", 1));
    let decision = world.decide(0, &request("nobody", "m", 1));
    assert_eq!(Reason::TenantUnknown, decision.reason);
    assert_eq!(
        Reason::TenantUnknown,
        world.decide(0, &request("nobody", "m", 1)).reason
    );
    assert_eq!(Some(&1), world.commands.get("watch"));
    world.run_for(5 * SECOND_US);
    world.decide(0, &request("nobody", "m", 1));
    assert_eq!(Some(&2), world.commands.get("watch"));
}

/// Where nobody answers, a check of an unknown tenant is denied after the ledger's budget and not before or much later.
#[test]
fn unknown_tenant_without_ledger() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 10), Plan::DAY);
    world.is_ledger_up = false;
    let begun_us = world.real_us;
    assert_eq!(
        Reason::AuthorityUnreachable,
        world.decide(0, &request("nobody", "m", 1)).reason
    );
    assert_eq!(100_000, world.real_us - begun_us);
}

/// Meters, features and suspension decide before any unit is taken.
#[test]
fn denials_that_need_no_units() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 10), Plan::DAY);
    let meter = world.decide(0, &request("t", "other", 1));
    assert_eq!(
        (Reason::MeterUnknown, Some("other")),
        (meter.reason, meter.subject.as_deref())
    );
    let mut check = request("t", "m", 1);
    check.features = vec!["export".into(), "sso".into()];
    let feature = world.decide(0, &check);
    assert_eq!(
        (Reason::FeatureDisabled, Some("sso")),
        (feature.reason, feature.subject.as_deref())
    );
    world.suspend("t");
    assert_eq!(
        Reason::TenantSuspended,
        world.decide(0, &request("t", "m", 1)).reason
    );
    assert_eq!(None, world.commands.get("allot"));
}

/// A cost that can never fit is told apart from one that does not fit now, and has no time to retry.
#[test]
fn cost_above_amount() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 10), Plan::DAY);
    let decision = world.decide(0, &request("t", "m", 11));
    assert_eq!(
        (Reason::CostExceedsLimit, None),
        (decision.reason, decision.retry_after_us)
    );
    assert_eq!(
        Reason::Allowed,
        world.decide(0, &request("t", "m", 10)).reason
    );
}

/// An exhausted window says when it ends, and once proved the denial costs no message.
#[test]
fn proof_costs_no_traffic() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 3), Plan::DAY);
    for _ in 0..3 {
        assert_eq!(
            Reason::Allowed,
            world.decide(0, &request("t", "m", 1)).reason
        );
    }
    let decision = world.decide(0, &request("t", "m", 1));
    let end_us = decision.binding.as_ref().unwrap().window_us.unwrap().1;
    assert_eq!(Reason::QuotaExhausted, decision.reason);
    assert_eq!(
        Some(end_us - world.now().ledger_us),
        decision.retry_after_us
    );
    let before = world.commands.clone();
    for _ in 0..100 {
        world.run_for(7_000);
        assert_eq!(
            Reason::QuotaExhausted,
            world.decide(0, &request("t", "m", 1)).reason
        );
    }
    assert_eq!(before.get("redis"), world.commands.get("redis"));
    assert_eq!(before.get("allot"), world.commands.get("allot"));
}

/// Proof of another sidecar's exhaustion ends when its connection falls silent: then nobody knows.
#[test]
fn silence_ends_proof() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 20), Plan::DAY);
    for _ in 0..20 {
        world.decide(0, &request("t", "m", 1));
    }
    assert_eq!(
        Reason::QuotaExhausted,
        world.decide(1, &request("t", "m", 1)).reason
    );
    world.cut(1, true);
    world.run_for(150_000);
    assert_eq!(
        Reason::AuthorityUnreachable,
        world.decide(1, &request("t", "m", 1)).reason
    );
}

/// Returned units reach a sidecar that has proof of exhaustion: the notice ends the proof.
#[test]
fn returns_end_proof() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 100), Plan::DAY);
    world.decide(0, &request("t", "m", 1));
    world.decide(1, &request("t", "m", 1));
    world.check(0, &reserve(98, 1, i64::MAX));
    world.run_for(50_000);
    assert_eq!(
        Reason::QuotaExhausted,
        world.decide(1, &request("t", "m", 1)).reason
    );
    let now = world.now();
    world.nodes[0]
        .engine
        .settle(now, ReservationId([1; 16]), &[])
        .unwrap();
    world.carry(0);
    world.run_for(4 * SECOND_US);
    assert_eq!(
        Reason::Allowed,
        world.decide(1, &request("t", "m", 1)).reason
    );
}

/// Beyond a soft limit calls are admitted, say so, and are counted as used.
#[test]
fn soft_limit_says_so() {
    for (enforcement, reason) in [
        (Enforcement::Soft, Reason::SoftLimitExceeded),
        (Enforcement::Shadow, Reason::ShadowLimitExceeded),
    ] {
        let mut world = World::quiet(
            7,
            2,
            LimitRule {
                enforcement,
                ..window_rule("limit", "m", 2)
            },
            Plan::DAY,
        );
        assert_eq!(
            Reason::Allowed,
            world.decide(0, &request("t", "m", 2)).reason
        );
        let decision = world.decide(0, &request("t", "m", 3));
        assert_eq!(
            (reason, 5),
            (decision.reason, decision.binding.as_ref().unwrap().used)
        );
        let decision = world.decide(0, &request("t", "m", 5));
        assert_eq!(
            (reason, 10),
            (decision.reason, decision.binding.as_ref().unwrap().used)
        );
    }
}

/// Without an authority the failure policy answers: closed denies, open admits and marks it.
#[test]
fn failure_policy_answers() {
    for (failure_policy, reason) in [
        (FailurePolicy::Closed, Reason::AuthorityUnreachable),
        (FailurePolicy::Open, Reason::Uncovered),
    ] {
        let mut world = World::quiet(
            7,
            2,
            LimitRule {
                failure_policy,
                ..window_rule("limit", "m", 10)
            },
            Plan::DAY,
        );
        world.is_ledger_up = false;
        world.is_redis_up = false;
        assert_eq!(reason, world.decide(0, &request("t", "m", 1)).reason);
        let begun_us = world.real_us;
        assert_eq!(reason, world.decide(0, &request("t", "m", 1)).reason);
        assert_eq!(
            begun_us, world.real_us,
            "nobody waits for a side that is known to be down"
        );
    }
}

/// A Redis that answers, but takes four times the budget, is waited for: nobody is denied while it is merely slow.
#[test]
fn a_slow_redis_is_waited_for() {
    let mut world = World::quiet(
        7,
        2,
        LimitRule {
            failure_policy: FailurePolicy::Closed,
            ..window_rule("limit", "m", 1_000)
        },
        Plan::DAY,
    );
    world.weather.delay_max_us = 20_000;
    let begun_us = world.real_us;
    for node in [0, 1].into_iter().cycle().take(200) {
        assert_eq!(
            Reason::Allowed,
            world.decide(node, &request("t", "m", 5)).reason
        );
    }
    assert!(
        world.real_us - begun_us > 5_000,
        "nothing took longer than the budget"
    );
}

/// While Redis is away a standby limit goes on with leases straight from the ledger.
#[test]
fn standby_leases_from_ledger() {
    let mut world = World::quiet(
        7,
        2,
        LimitRule {
            failure_policy: FailurePolicy::Standby,
            ..window_rule("limit", "m", 1_000)
        },
        Plan::DAY,
    );
    world.decide(0, &request("t", "m", 1));
    world.decide(0, &request("t", "m", 1));
    world.is_redis_up = false;
    world.decide(0, &request("t", "m", 100));
    for _ in 0..20 {
        assert_eq!(
            Reason::Allowed,
            world.decide(0, &request("t", "m", 10)).reason
        );
    }
}

/// A parent's limits bind its children, and a denial there takes nothing from the child's own.
#[test]
fn parents_bind_children() {
    let mut world = World::new(3, 1);
    world.declare("p", None, vec![(window_rule("shared", "m", 5), Plan::DAY)]);
    world.declare(
        "c1",
        Some("p"),
        vec![(window_rule("own", "m", 4), Plan::DAY)],
    );
    world.declare(
        "c2",
        Some("p"),
        vec![(window_rule("own", "m", 4), Plan::DAY)],
    );
    for _ in 0..3 {
        assert_eq!(
            Reason::Allowed,
            world.decide(0, &request("c1", "m", 1)).reason
        );
    }
    assert_eq!(
        Reason::Allowed,
        world.decide(0, &request("c2", "m", 2)).reason
    );
    let decision = world.decide(0, &request("c2", "m", 1));
    assert_eq!(
        (Reason::QuotaExhausted, "shared"),
        (decision.reason, &*decision.binding.unwrap().name)
    );
    let now = world.now();
    let states = world.nodes[0].engine.quota(now, "c2", &[]).unwrap();
    assert_eq!(
        Some(2),
        states
            .iter()
            .find(|state| &*state.name == "own")
            .unwrap()
            .remaining
    );
}

/// A limit splits by its key and applies only where it matches.
#[test]
fn keys_split_and_matches_choose() {
    let mut rule = window_rule("limit", "m", 1);
    rule.key = Box::new(["user".into()]);
    rule.matches = Box::new([AttributeMatch {
        attribute: "model".into(),
        rule: MatchRule::Prefix("big".into()),
    }]);
    let mut world = World::quiet(7, 2, rule, Plan::DAY);
    let call = |model: &str, user: &str| CheckRequest {
        attributes: vec![("model".into(), model.into()), ("user".into(), user.into())],
        ..request("t", "m", 1)
    };
    assert_eq!(Reason::Allowed, world.decide(0, &call("big-1", "a")).reason);
    assert_eq!(
        Reason::QuotaExhausted,
        world.decide(0, &call("big-2", "a")).reason
    );
    assert_eq!(Reason::Allowed, world.decide(0, &call("big-2", "b")).reason);
    assert_eq!(Reason::Allowed, world.decide(0, &call("small", "a")).reason);
}

/// Peek takes nothing, and says the same as the call would.
#[test]
fn peek_takes_nothing() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 5), Plan::DAY);
    let peek = CheckRequest {
        mode: Mode::Peek,
        ..request("t", "m", 5)
    };
    for _ in 0..3 {
        assert_eq!(Reason::Allowed, world.decide(0, &peek).reason);
    }
    assert_eq!(
        Reason::Allowed,
        world.decide(0, &request("t", "m", 1)).reason
    );
    assert_eq!(Reason::QuotaExhausted, world.decide(0, &peek).reason);
}

/// The next window begins with its own units, leased before it began; the old ones die.
#[test]
fn next_window_is_leased_early() {
    let mut world = World::new(5, 1);
    world.declare(
        "t",
        None,
        vec![(window_rule("limit", "m", 10), Plan::MINUTE)],
    );
    let left_us = 60_000_000 - u64::try_from(world.now().ledger_us.rem_euclid(60_000_000)).unwrap();
    world.run_for(left_us - 6 * SECOND_US);
    assert_eq!(
        Reason::Allowed,
        world.decide(0, &request("t", "m", 10)).reason
    );
    for _ in 0..5 {
        world.run_for(SECOND_US);
        assert_eq!(
            Reason::QuotaExhausted,
            world.decide(0, &request("t", "m", 1)).reason
        );
    }
    world.run_for(SECOND_US);
    let before = world.commands.clone();
    let ticket = world.check(0, &request("t", "m", 1));
    assert_eq!(
        Reason::Allowed,
        world.decisions[&ticket].reason,
        "decided without waiting"
    );
    assert_eq!(before, world.commands);
    assert_eq!(2, world.ledger.rows.windows.len());
}

/// A rolling window begins with the first use after the last one ended, never before: nothing is leased ahead for it.
#[test]
fn rolling_windows_begin_at_first_use() {
    let mut rule = window_rule("limit", "m", 10);
    rule.is_rolling = true;
    let mut world = World::new(7, 2);
    let plan = Plan {
        is_rolling: true,
        ..Plan::MINUTE
    };
    world.declare("t", None, vec![(rule, plan)]);
    let first_us = world.now().ledger_us;
    for _ in 0..58 {
        world.decide(0, &request("t", "m", 0));
        let decision = world.decide(0, &request("t", "m", 1));
        assert!(decision.reason.allowed() || decision.reason == Reason::QuotaExhausted);
        world.run_for(SECOND_US);
    }
    assert_eq!(1, world.ledger.rows.windows.len());
    world.run_for(20 * SECOND_US);
    assert_eq!(1, world.ledger.rows.windows.len(), "nobody used it");
    assert_eq!(
        Reason::Allowed,
        world.decide(1, &request("t", "m", 10)).reason
    );
    let [one, two] = [0, 1].map(|place| world.ledger.rows.windows[place].start_us);
    assert!((first_us..first_us + 1_000).contains(&one));
    assert!(two > one + 70_000_000, "{}", two - one);
}

/// Units idle for two seconds are there for others again.
#[test]
fn idle_units_go_back() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 1_000), Plan::DAY);
    for _ in 0..200 {
        world.decide(0, &request("t", "m", 1));
        world.run_for(1_000);
    }
    world.run_for(5 * SECOND_US);
    assert_eq!(
        Reason::Allowed,
        world.decide(1, &request("t", "m", 800)).reason
    );
    assert_eq!(
        Reason::QuotaExhausted,
        world.decide(0, &request("t", "m", 1)).reason
    );
}

/// A clean stop returns everything, and then nothing is outstanding.
#[test]
fn drain_returns_everything() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 1_000), Plan::DAY);
    for _ in 0..50 {
        world.decide(0, &request("t", "m", 1));
    }
    let now = world.now();
    world.nodes[0].engine.drain(now);
    world.carry(0);
    world.run_for(SECOND_US);
    assert_eq!(0, world.nodes[0].engine.outstanding());
    assert_eq!(
        Reason::Allowed,
        world.decide(1, &request("t", "m", 950)).reason
    );
}

/// What others used is heard of within two seconds.
#[test]
fn fleet_use_is_reported() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 1_000), Plan::DAY);
    world.decide(0, &request("t", "m", 30));
    world.decide(1, &request("t", "m", 12));
    world.run_for(2 * SECOND_US);
    let now = world.now();
    world.nodes[1].engine.quota(now, "t", &[]);
    world.run_for(2 * SECOND_US);
    let now = world.now();
    assert_eq!(
        42,
        world.nodes[1].engine.quota(now, "t", &[]).unwrap()[0].used
    );
}

/// A caller that went away takes nothing.
#[test]
fn cancelled_check_takes_nothing() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 10), Plan::DAY);
    let ticket = world.check(0, &request("t", "m", 10));
    world.nodes[0].engine.cancel(ticket);
    world.run_for(SECOND_US);
    assert!(!world.decisions.contains_key(&ticket));
    assert_eq!(
        Reason::Allowed,
        world.decide(0, &request("t", "m", 10)).reason
    );
}

/// A token bucket admits burst + rate × t over all sidecars together, and says truly when to come again.
#[test]
fn token_bucket_holds_its_rate() {
    let mut rule = window_rule("limit", "m", 100);
    rule.kind = LimitKind::TokenBucket {
        refill_interval_us: 1_000_000,
        burst: 50,
    };
    let mut world = World::quiet(7, 2, rule, Plan::DAY);
    let (mut admitted, mut waited) = (0_u64, 0);
    let begun_us = world.real_us;
    for turn in 0..4_000_u64 {
        let decision = world.decide((turn % 2) as usize, &request("t", "m", 1));
        admitted += u64::from(decision.reason.allowed());
        if !decision.reason.allowed() {
            assert_eq!(Reason::RateLimited, decision.reason);
            let retry_us = u64::try_from(decision.retry_after_us.unwrap()).unwrap();
            if turn % 50 == 0 {
                waited += 1;
                world.run_for(retry_us.max(1));
                let again = world.decide((turn % 2) as usize, &request("t", "m", 1));
                admitted += u64::from(again.reason.allowed());
            }
        }
        world.run_for(500);
        let elapsed_us = world.real_us - begun_us;
        assert!(
            admitted <= 50 + elapsed_us / 10_000 + 1,
            "{admitted} in {elapsed_us} µs"
        );
    }
    let elapsed_us = world.real_us - begun_us;
    assert!(waited > 3);
    assert!(
        admitted * 10 >= (50 + elapsed_us / 10_000) * 9,
        "{admitted} of {}",
        50 + elapsed_us / 10_000
    );
}

/// A recall brings back what is not used within a second.
#[test]
fn recall_brings_units_back() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 1_000), Plan::DAY);
    world.decide(0, &reserve(900, 1, i64::MAX));
    let now = world.now();
    world.nodes[0]
        .engine
        .settle(now, ReservationId([1; 16]), &[])
        .unwrap();
    world.handle(
        0,
        Event::Recall {
            tenant: "t".into(),
            limit: "limit".into(),
            key_hash: None,
            units: 0,
        },
    );
    world.run_for(10_000);
    assert_eq!(
        Reason::Allowed,
        world.decide(1, &request("t", "m", 1_000)).reason
    );
}

/// Invented tenant names are forgotten again, and a real tenant is still served after them.
#[test]
fn invented_tenants_are_forgotten() {
    let mut world = World::quiet(7, 2, window_rule("limit", "m", 10), Plan::DAY);
    for name in 0..70_000 {
        let name: std::sync::Arc<str> = format!("nobody-{name}").into();
        let now = world.now();
        world.nodes[0].engine.tenant_known(now, &name);
        world.nodes[0]
            .engine
            .handle(now, Event::TenantUnknown(name));
    }
    let now = world.now();
    let known =
        |world: &mut World, name: &str| world.nodes[0].engine.tenant_known(now, &name.into());
    assert_eq!(Some(false), known(&mut world, "nobody-69999"));
    assert_eq!(None, known(&mut world, "nobody-1"));
    assert_eq!(Some(true), known(&mut world, "t"));
}
