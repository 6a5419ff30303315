//! Several sidecars under contention against an obvious model: what was admitted, added up per limit and key.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use std::collections::BTreeMap;

use quota_core::{AttributeMatch, CheckRequest, Cost, Enforcement, LimitRule, MatchRule, Mode};
use quota_sim::{
    rng::Rng,
    world::{
        World,
        ledger::{Plan, window_rule},
    },
};

const METERS: [&str; 2] = ["m", "n"];
const TURNS: usize = 120;

/// A limit as drawn: whose it is, its rule, and the user that it counts, where it counts one only.
struct Drawn {
    tenant: &'static str,
    rule: LimitRule,
    only: Option<&'static str>,
    per_user: bool,
}

fn draw(rng: &mut Rng, tenant: &'static str, place: u64) -> Drawn {
    let meter = METERS[usize::from(rng.chance(300))];
    let mut rule = window_rule(&format!("{tenant}{place}"), meter, rng.between(1, 400));
    if rng.chance(100) {
        rule.amount = None;
    }
    rule.enforcement = match rng.below(10) {
        0 => Enforcement::Soft,
        1 => Enforcement::Shadow,
        _ => Enforcement::Hard,
    };
    let only = rng.chance(300).then_some("u1");
    if let Some(user) = only {
        rule.matches = Box::new([AttributeMatch {
            attribute: "user".into(),
            rule: MatchRule::Exact(user.into()),
        }]);
    }
    let per_user = rng.chance(300);
    if per_user {
        rule.key = Box::new(["user".into()]);
    }
    Drawn {
        tenant,
        rule,
        only,
        per_user,
    }
}

fn ask(rng: &mut Rng) -> CheckRequest {
    let units = |rng: &mut Rng| match rng.below(4) {
        0 => rng.between(1, 60),
        _ => rng.between(1, 6),
    };
    let mut costs = vec![Cost {
        meter: "m".into(),
        units: units(rng),
    }];
    if rng.chance(500) {
        costs.push(Cost {
            meter: "n".into(),
            units: units(rng),
        });
    }
    let user = ["u0", "u1", "u2"].get(usize::try_from(rng.below(4)).unwrap());
    let attributes = user.map(|user| ("user".into(), Box::from(*user)));
    CheckRequest {
        tenant: "child".into(),
        costs,
        features: Vec::new(),
        attributes: attributes.into_iter().collect(),
        mode: if rng.chance(80) {
            Mode::Peek
        } else {
            Mode::Consume
        },
        all_limits: false,
    }
}

/// Adds what an admitted call takes of each limit, per user where the limit is split.
fn count(limits: &[Drawn], request: &CheckRequest, taken: &mut BTreeMap<(usize, String), u64>) {
    let user = request.attributes.first().map_or("", |(_, value)| value);
    for (place, drawn) in limits.iter().enumerate() {
        if drawn.only.is_some_and(|only| only != user) {
            continue;
        }
        let cost = request
            .costs
            .iter()
            .find(|cost| cost.meter == drawn.rule.meter);
        let key = if drawn.per_user { user } else { "" };
        *taken.entry((place, key.to_owned())).or_default() += cost.map_or(0, |cost| cost.units);
    }
}

/// Units that left a limit and are not in a pool: after everything came back, exactly what was consumed.
fn out(world: &World, drawn: &Drawn) -> u64 {
    let windows = world.ledger.rows.windows.iter();
    windows
        .filter(|window| {
            *window.identity.0 == *drawn.tenant && window.identity.1 == drawn.rule.name
        })
        .map(|window| window.allotted - world.redis.pool_free(window.pool_key()))
        .sum()
}

/// Sidecars that know the limits, on slow ways that repeat messages.
fn world_of(seed: u64, nodes: usize, limits: &[Drawn], rng: &mut Rng) -> World {
    let mut world = World::new(seed, nodes);
    let of = |tenant| {
        let mine = limits.iter().filter(|drawn| drawn.tenant == tenant);
        mine.map(|drawn| (drawn.rule.clone(), Plan::DAY)).collect()
    };
    // So that every meter exists.
    let others = METERS.map(|meter| (window_rule(meter, meter, 1), Plan::DAY));
    world.declare("other", None, others.to_vec());
    world.declare("parent", None, of("parent"));
    world.declare("child", Some("parent"), of("child"));
    world.weather.delay_max_us = rng.between(100, 20_000);
    world.weather.repeat = rng.below(100);
    world
}

/// Compares what left each limit with what was admitted.
fn compare(seed: u64, world: &World, limits: &[Drawn], used: &BTreeMap<(usize, String), u64>) {
    for (place, drawn) in limits.iter().enumerate() {
        let Some(amount) = drawn.rule.amount else {
            continue;
        };
        let name = &drawn.rule.name;
        let of_limit = used.iter().filter(|((at, _), _)| *at == place);
        let total: u64 = of_limit.clone().map(|(_, units)| units).sum();
        if drawn.rule.enforcement != Enforcement::Hard {
            assert!(out(world, drawn) <= total, "seed {seed} {name}");
            continue;
        }
        let most = of_limit.map(|(_, units)| *units).max().unwrap_or(0);
        assert!(most <= amount, "seed {seed} {name}: {most} of {amount}");
        assert_eq!(total, out(world, drawn), "seed {seed} {name}");
    }
}

fn seeds() -> std::ops::Range<u64> {
    let first = std::env::var("QUOTA_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    first.map_or(0..120, |seed: u64| seed..seed + 1)
}

/// Random limits of a tenant and its parent, two to four sidecars, calls that wait for units and callers that go away
/// meanwhile: a call takes from every limit that counts it or from none, no hard limit admits more than its amount, who
/// went away took nothing, and when the sidecars have stopped every unit that nobody consumed is back.
#[test]
fn contention_loses_and_invents_no_unit() {
    let (mut waited, mut left, mut denied) = (0, 0, 0);
    for seed in seeds() {
        let mut rng = Rng::new(seed);
        let nodes = usize::try_from(rng.between(2, 4)).unwrap();
        let own = rng.between(1, 4);
        let inherited = rng.below(3);
        let mut limits: Vec<Drawn> = (0..own).map(|at| draw(&mut rng, "child", at)).collect();
        limits.extend((0..inherited).map(|at| draw(&mut rng, "parent", at)));
        let mut world = world_of(seed, nodes, &limits, &mut rng);
        let mut open: Vec<(u64, usize, CheckRequest)> = Vec::new();
        let mut calls: Vec<(u64, CheckRequest)> = Vec::new();
        let mut gone: Vec<u64> = Vec::new();
        for _ in 0..TURNS {
            let node = usize::try_from(rng.below(nodes as u64)).unwrap();
            let request = ask(&mut rng);
            let ticket = world.check(node, &request);
            open.push((ticket, node, request));
            if rng.chance(200) {
                let place = usize::try_from(rng.below(open.len() as u64)).unwrap();
                let (ticket, node, request) = open.swap_remove(place);
                if world.decisions.contains_key(&ticket) {
                    calls.push((ticket, request));
                } else {
                    world.nodes[node].engine.cancel(ticket);
                    world.carry(node);
                    gone.push(ticket);
                }
            }
            waited += usize::from(!world.decisions.contains_key(&ticket));
            world.run_for(rng.below(8_000));
        }
        world.run_for(1_000_000);
        calls.extend(
            open.into_iter()
                .map(|(ticket, _, request)| (ticket, request)),
        );
        let mut used = BTreeMap::new();
        for (ticket, request) in &calls {
            let decision = world.decisions.get(ticket).expect("a call is decided");
            if decision.reason.allowed() && request.mode == Mode::Consume {
                count(&limits, request, &mut used);
            }
            denied += usize::from(!decision.reason.allowed());
        }
        for ticket in &gone {
            assert!(!world.decisions.contains_key(ticket), "seed {seed}");
        }
        left += gone.len();
        for node in 0..nodes {
            world.stop(node);
        }
        world.run_for(5_000_000);
        compare(seed, &world, &limits, &used);
    }
    // What is to be shown happened, often.
    if seeds().end - seeds().start > 1 {
        assert!(
            waited > 500 && left > 100 && denied > 500,
            "{waited} {left} {denied}"
        );
    }
}
