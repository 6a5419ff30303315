//! What operators order of a sidecar, and what callers see of a parent's limits, in a quiet world.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use std::sync::Arc;

use quota_core::{FailurePolicy, LimitKind, LimitRule, LimitState, Reason};
use quota_sim::world::{
    World,
    ledger::{Plan, window_rule},
    request,
};

const SECOND_US: u64 = 1_000_000;

fn closed(amount: u64) -> LimitRule {
    LimitRule {
        failure_policy: FailurePolicy::Closed,
        ..window_rule("limit", "m", amount)
    }
}

fn world(rule: LimitRule) -> World {
    World::quiet(11, 2, rule, Plan::DAY)
}

fn order(world: &mut World, node: usize, what: &str, tenant: Option<&str>) -> usize {
    let now = world.now_of(node);
    let tenant: Option<Arc<str>> = tenant.map(Arc::from);
    let engine = &mut world.nodes[node].engine;
    let touched = if what == "warm" {
        engine.warm(now, tenant.as_ref())
    } else {
        engine.invalidate(now, tenant.as_ref())
    };
    world.carry(node);
    touched
}

fn quota(world: &mut World, tenant: &str) -> Vec<LimitState> {
    let now = world.now_of(0);
    world.nodes[0].engine.quota(now, tenant, &[]).unwrap()
}

/// A named tenant's limit is leased from although nobody asked: a check passes then with nobody to ask. An unknown tenant
/// is fetched, and nothing is leased for it.
#[test]
fn a_warm_key_needs_no_authority() {
    let mut world = world(closed(1_000));
    assert_eq!(0, order(&mut world, 1, "warm", None), "no key is known");
    assert_eq!(1, order(&mut world, 1, "warm", Some("t")));
    world.run_for(SECOND_US / 10);
    assert_eq!(1, order(&mut world, 1, "warm", Some("t")), "a repeat");
    world.is_ledger_up = false;
    world.is_redis_up = false;
    assert_eq!(
        Reason::Allowed,
        world.decide(1, &request("t", "m", 1)).reason
    );
    let asked = world.commands.get("watch").copied().unwrap_or(0);
    assert_eq!(0, order(&mut world, 0, "warm", Some("nobody")));
    assert_eq!(Some(&(asked + 1)), world.commands.get("watch"));
}

/// Where a pool is known, warming leases at least a second of use from it; unknown keys, levels and unlimited limits are
/// left alone.
#[test]
fn warming_leases_a_second_of_use() {
    let mut world = world(closed(100_000));
    for _ in 0..40 {
        for node in 0..2 {
            assert_eq!(
                Reason::Allowed,
                world.decide(node, &request("t", "m", 5)).reason
            );
        }
        world.run_for(SECOND_US / 10);
    }
    assert_eq!(1, order(&mut world, 0, "invalidate", None));
    world.run_for(SECOND_US / 10);
    assert_eq!(1, order(&mut world, 0, "warm", None));
    world.run_for(SECOND_US / 10);
    world.is_ledger_up = false;
    world.is_redis_up = false;
    for _ in 0..10 {
        assert_eq!(
            Reason::Allowed,
            world.decide(0, &request("t", "m", 5)).reason
        );
    }
    let mut level = closed(10);
    level.kind = LimitKind::Level;
    world.is_ledger_up = true;
    world.is_redis_up = true;
    world.declare("levels", None, vec![(level, Plan::DAY)]);
    order(&mut world, 0, "warm", Some("levels"));
    world.run_for(SECOND_US);
    assert_eq!(0, order(&mut world, 0, "warm", Some("levels")));
}

/// After an invalidation nothing is held here that nobody used: another sidecar can take all the rest, and not one more.
#[test]
fn invalidation_gives_everything_back() {
    let mut world = world(closed(1_000));
    for _ in 0..20 {
        assert_eq!(
            Reason::Allowed,
            world.decide(0, &request("t", "m", 10)).reason
        );
    }
    assert_eq!(1, order(&mut world, 0, "invalidate", Some("t")));
    // What was under way at that moment goes back within a second.
    world.run_for(SECOND_US + SECOND_US / 10);
    assert_eq!(
        Reason::Allowed,
        world.decide(1, &request("t", "m", 800)).reason
    );
    assert_eq!(
        Reason::QuotaExhausted,
        world.decide(1, &request("t", "m", 1)).reason
    );
    assert_eq!(
        Reason::QuotaExhausted,
        world.decide(0, &request("t", "m", 1)).reason
    );
}

fn family(is_shared: bool) -> World {
    let mut world = World::new(12, 1);
    let parents = LimitRule {
        is_shared,
        ..window_rule("parents", "m", 100)
    };
    world.declare("parent", None, vec![(parents, Plan::DAY)]);
    let own = window_rule("own", "m", 1_000);
    world.declare("child", Some("parent"), vec![(own, Plan::DAY)]);
    world
}

/// A parent's limit counts and denies its children's calls, but its figures are not told to their callers unless it is
/// shared; the parent itself sees them.
#[test]
fn a_parents_figures_are_hidden_unless_shared() {
    for is_shared in [false, true] {
        let mut world = family(is_shared);
        let ask = request("child", "m", 40);
        let admitted = world.decide(0, &ask);
        let binding = admitted.binding.unwrap();
        // The parent's is nearer to its end; what may not be seen does not stand for the call.
        let nearest = if is_shared { "parents" } else { "own" };
        assert_eq!((nearest, false), (&*binding.name, binding.is_hidden));
        let states = quota(&mut world, "child");
        let state = states.iter().find(|state| &*state.name == "parents");
        let state = state.unwrap();
        let told = (state.is_hidden, state.amount, state.used, state.remaining);
        let expected = if is_shared {
            (false, Some(100), 40, Some(60))
        } else {
            (true, None, 0, None)
        };
        assert_eq!(expected, told);
        assert_eq!(!is_shared, state.source.is_empty());
        let denied = world.decide(0, &request("child", "m", 61));
        assert_eq!(Reason::QuotaExhausted, denied.reason);
        assert_eq!("parents", &*denied.binding.unwrap().name);
        assert!(denied.retry_after_us.is_some());
        let now = world.now_of(0);
        let explained = world.nodes[0]
            .engine
            .explain(now, "child", &ask.costs, &[])
            .unwrap();
        let parents = explained
            .iter()
            .find(|one| &*one.state.name == "parents")
            .unwrap();
        let figures = (parents.consumed, parents.allotted, parents.pool.is_some());
        assert_eq!(is_shared, figures.0 == 40 && figures.1 >= 40);
        assert!(is_shared || figures == (0, 0, false));
        let own = quota(&mut world, "parent");
        assert_eq!((Some(100), 40), (own[0].amount, own[0].used));
    }
}
