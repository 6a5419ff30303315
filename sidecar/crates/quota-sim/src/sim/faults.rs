//! What breaks, and how it is mended.

use std::sync::Arc;

use quota_core::mutant::{self, Mutant};

use super::plan::Schedule;
use crate::world::World;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A sidecar is killed; another starts in its place.
    Crash,
    /// A sidecar is stopped cleanly and started again.
    Restart,
    /// A machine is replaced by a copy of another one's volume; that one goes on.
    Clone,
    /// A sidecar stands still for up to 3 s.
    Pause,
    /// A sidecar is cut off, or joined again.
    Cut,
    /// Some sidecars are cut off one after the other and joined in another order.
    Swizzle,
    /// Redis answers nobody, or does again.
    RedisDown,
    /// The ledger answers nobody, or does again.
    LedgerDown,
    /// The ledger doesn't reach Redis, or does again.
    LineDown,
    /// The replica catches up.
    Replicate,
    /// The replica is promoted: a suffix is lost.
    FailOver,
    /// Demoted, resynchronised, promoted again.
    RePromote,
    /// The replica is promoted while the old master serves some sidecars; or the split heals.
    Split,
    /// Redis is flushed.
    Flush,
    /// Redis restarts without its data.
    RestartEmpty,
    /// Redis' wall clock goes back.
    RedisClock,
    /// The wall clock of Redis jumps ahead.
    RedisAhead,
    /// Ledger time jumps forward; sidecars hear of it one by one.
    LedgerClock,
    /// The limit is raised.
    Raise,
    /// The limit is lowered.
    Lower,
    /// Postgres is backed up.
    BackUp,
    /// Postgres is set back to its backup, knowingly.
    Restore,
    /// The network becomes worse or better.
    Weather,
}

impl Fault {
    /// All kinds.
    pub const ALL: &[Self] = &[
        Self::Crash,
        Self::Restart,
        Self::Clone,
        Self::Pause,
        Self::Cut,
        Self::Swizzle,
        Self::RedisDown,
        Self::LedgerDown,
        Self::LineDown,
        Self::Replicate,
        Self::FailOver,
        Self::RePromote,
        Self::Split,
        Self::Flush,
        Self::RestartEmpty,
        Self::RedisClock,
        Self::RedisAhead,
        Self::LedgerClock,
        Self::Raise,
        Self::Lower,
        Self::BackUp,
        Self::Restore,
        Self::Weather,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

fn some_node(world: &mut World) -> usize {
    usize::try_from(world.rng.below(world.nodes.len() as u64)).expect("small")
}

fn some_limit(world: &mut World) -> (Arc<str>, Arc<str>) {
    let place = world.rng.below(world.ledger.limits.len() as u64);
    let mut names = world.ledger.limits.keys();
    let name = names.nth(usize::try_from(place).expect("small"));
    name.expect("there is a limit").clone()
}

fn clock_span(world: &mut World) -> i64 {
    i64::try_from(world.rng.below(10_000_000)).expect("small")
}

/// Breaks or mends something of this kind.
pub(super) fn strike(world: &mut World, fault: Fault, schedule: &Schedule) {
    let amount = schedule.amount;
    let node = some_node(world);
    match fault {
        Fault::Crash => world.crash(node),
        Fault::Restart => {
            world.stop(node);
            world.run_for(20_000);
            world.crash(node);
        }
        Fault::Clone => {
            let from = some_node(world);
            if from != node {
                world.clone_volume(from, node);
            }
        }
        Fault::Pause => {
            let span_us = world.rng.between(1_000, schedule.pause_max_us);
            world.pause(node, span_us);
            if mutant::is(Mutant::ReclaimByTime) {
                let holder = world.holder(node);
                world.ledger.reclaim(holder);
            }
        }
        Fault::Cut => {
            let is_cut = world.is_cut(node);
            world.cut(node, !is_cut);
        }
        Fault::Swizzle => swizzle(world),
        Fault::RedisDown => world.is_redis_up = !world.is_redis_up,
        Fault::LedgerDown => world.is_ledger_up = !world.is_ledger_up,
        Fault::LineDown => world.is_line_up = !world.is_line_up,
        Fault::LedgerClock => {
            let span_us = i64::try_from(world.rng.below(90_000_000)).expect("small");
            world.jump(span_us);
        }
        Fault::Raise => {
            let amount = world.rng.between(amount, amount * 2);
            let (tenant, limit) = some_limit(world);
            world.set_amount(&tenant, &limit, amount);
        }
        Fault::Lower => {
            let amount = world.rng.between(0, amount);
            let (tenant, limit) = some_limit(world);
            world.set_amount(&tenant, &limit, amount);
        }
        Fault::BackUp => world.ledger.back_up(&mut world.redis.trace),
        Fault::Restore => {
            let now_us = world.now().ledger_us;
            world.ledger.restore(now_us, &mut world.redis.trace);
            world.send_again();
        }
        Fault::Weather => {
            world.weather.loss = world.rng.below(100);
            world.weather.delay_max_us = world.rng.between(50, 5_000);
        }
        other => strike_redis(world, other),
    }
}

/// Breaks or mends something of this kind in Redis; no effect for other kinds.
fn strike_redis(world: &mut World, fault: Fault) {
    match fault {
        Fault::Replicate => world.redis.replicate(),
        Fault::FailOver => {
            world.redis.fail_over();
            reconnect_all(world);
        }
        Fault::RePromote => {
            world.redis.fail_over();
            world.redis.replicate();
            world.redis.fail_over();
            reconnect_all(world);
        }
        Fault::Split => split(world),
        Fault::Flush => world.redis.flush(),
        Fault::RestartEmpty => {
            world.redis.restart_empty();
            reconnect_all(world);
        }
        Fault::RedisClock => {
            let span_us = clock_span(world);
            world.redis.jump(-span_us);
        }
        Fault::RedisAhead => {
            let span_us = clock_span(world);
            world.redis.jump(span_us);
        }
        _ => {}
    }
}

fn swizzle(world: &mut World) {
    let mut group: Vec<usize> = (0..world.nodes.len())
        .filter(|_| world.rng.chance(500))
        .collect();
    for is_cut in [true, false] {
        for place in (1..group.len()).rev() {
            let other = usize::try_from(world.rng.below(place as u64 + 1)).expect("small");
            group.swap(place, other);
        }
        for node in group.clone() {
            world.cut(node, is_cut);
            let span_us = world.rng.below(100_000);
            world.run_for(span_us);
        }
    }
}

fn split(world: &mut World) {
    if world.redis.is_split {
        return heal_split(world);
    }
    world.redis.split();
    for node in 0..world.nodes.len() {
        let is_astray = world.rng.chance(500);
        world.lead_astray(node, is_astray);
        if !is_astray {
            world.reconnect(node);
        }
    }
}

/// Ends a split: whoever spoke to the old master loses that connection.
fn heal_split(world: &mut World) {
    let was_split = world.redis.is_split;
    world.redis.heal_split();
    for node in (0..world.nodes.len()).filter(|_| was_split) {
        if world.is_astray(node) {
            world.lead_astray(node, false);
            world.reconnect(node);
        }
    }
}

fn reconnect_all(world: &mut World) {
    for node in 0..world.nodes.len() {
        world.lead_astray(node, false);
        world.reconnect(node);
    }
}

/// Ends every fault, and lets what is under way arrive.
pub(super) fn heal(world: &mut World) {
    heal_split(world);
    world.is_redis_up = true;
    world.is_ledger_up = true;
    world.is_line_up = true;
    world.weather.loss = 0;
    world.weather.repeat = 0;
    world.weather.late = 0;
    world.weather.delay_max_us = world.weather.delay_max_us.min(1_000);
    let paused_us = world.paused_us();
    world.run_for(paused_us.max(3_000_000));
    for node in 0..world.nodes.len() {
        world.cut(node, false);
        world.tell_time(node);
    }
}
