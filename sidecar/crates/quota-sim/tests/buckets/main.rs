//! Token buckets: real engines on the model of the functions. Whatever is lost, split or jumps, what the fleet admits in
//! any interval stays within its bound; what comes back is there again; `retry_after` is true.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

mod times;

use quota_core::{Cost, FailurePolicy, Holder, LimitKind, LimitRule, Mode, Reason, ReservationId};
use quota_sim::world::{
    Weather, World,
    ledger::{Plan, window_rule},
    request,
};

const SECOND_US: u64 = 1_000_000;
const NODES: usize = 3;
/// Times are rounded up to whole microseconds by the shard, at the end of a slice, and for what a slice held.
const ROUNDED_US: u64 = 4;

/// So many tokens a second, so many at once.
#[derive(Clone, Copy, Debug)]
struct Shape {
    rate: u64,
    burst: u64,
}

fn rule(name: &str, meter: &str, shape: Shape) -> LimitRule {
    let mut rule = window_rule(name, meter, shape.rate);
    rule.kind = LimitKind::TokenBucket {
        refill_interval_us: 1_000_000,
        burst: shape.burst,
    };
    rule.failure_policy = FailurePolicy::Standby;
    rule
}

fn world(seed: u64, nodes: usize, rules: Vec<LimitRule>) -> World {
    let mut world = World::new(seed, nodes);
    let plan = Plan {
        length_us: 1_000_000,
        is_rolling: false,
    };
    let limits = rules.into_iter().map(|rule| (rule, plan)).collect();
    world.declare("t", None, limits);
    world
}

/// One admission: ledger time, units that stayed taken.
type History = Vec<(i64, u64)>;

/// What a run may break.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    Nothing,
    /// Messages, processes, links, Redis' data.
    Losses,
    /// Redis' wall clock, both ways.
    Clocks,
    /// Two masters at once.
    Split,
}

struct Run {
    world: World,
    history: History,
    open: Vec<(usize, ReservationId, usize, u64)>,
    /// Admissions that may be given back, by process and place in the history.
    plain: Vec<(Holder, usize)>,
    lives: u64,
    /// Units given back that the process had not used.
    unused_back: u64,
    /// Calls that give back, of a thousand.
    backs: u64,
}

impl Run {
    fn new(seed: u64, shape: Shape, trouble: Trouble) -> Self {
        let mut world = world(seed, NODES, vec![rule("rate", "m", shape)]);
        world.verdicts = Some(Vec::new());
        world.speed_milli = if seed % 7 == 0 { 60_000 } else { 1_000 };
        let loss = if trouble == Trouble::Losses { 20 } else { 0 };
        world.weather = Weather {
            delay_max_us: 300,
            loss,
            repeat: loss,
            late: 0,
        };
        Self {
            world,
            history: Vec::new(),
            open: Vec::new(),
            plain: Vec::new(),
            lives: NODES as u64,
            unused_back: 0,
            backs: if seed % 4 == 3 { 400 } else { 0 },
        }
    }

    fn run_for(&mut self, span_us: u64) {
        let until_us = self.world.real_us + span_us;
        while self.world.step(until_us) {
            self.note();
        }
        self.world.real_us = self.world.real_us.max(until_us);
    }

    /// Notes what was decided until now, at this moment.
    fn note(&mut self) {
        let at_us = self.world.now().ledger_us;
        for verdict in std::mem::take(self.world.verdicts.as_mut().expect("kept")) {
            if verdict.decision.reason == Reason::Allowed {
                let units = verdict.request.costs[0].units;
                if verdict.request.mode == Mode::GiveBack {
                    self.take_back(verdict.holder, units);
                    continue;
                }
                if verdict.request.mode == Mode::Consume {
                    self.plain.push((verdict.holder, self.history.len()));
                }
                if let Mode::Reserve { id, .. } = verdict.request.mode {
                    self.open
                        .push((verdict.node, id, self.history.len(), units));
                }
                self.history.push((at_us, units));
            }
        }
    }

    /// Notes that a process gave units back: its newest admissions took so much less.
    fn take_back(&mut self, holder: Holder, mut units: u64) {
        for (by, place) in self.plain.iter().rev() {
            if *by == holder {
                let part = units.min(self.history[*place].1);
                self.history[*place].1 -= part;
                units -= part;
            }
        }
        self.unused_back += units;
    }

    fn use_something(&mut self, shape: Shape, serial: u64) {
        let node = usize::try_from(self.world.rng.below(NODES as u64)).unwrap();
        let cost = match self.world.rng.below(10) {
            0 => self.world.rng.between(1, shape.burst),
            1 | 2 => self.world.rng.between(1, shape.burst / 4 + 1),
            _ => 1,
        };
        let mut check = request("t", "m", cost);
        if self.backs > 0 && self.world.rng.chance(self.backs) {
            check.mode = Mode::GiveBack;
        } else if self.world.rng.chance(300) {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&serial.to_be_bytes());
            let expires_us = self.world.now().ledger_us + 3_600_000_000;
            check.mode = Mode::Reserve {
                id: ReservationId(id),
                expires_us,
            };
        }
        self.world.check(node, &check);
        self.note();
        if self.world.rng.chance(250) && !self.open.is_empty() {
            let place = self.world.rng.below(self.open.len() as u64);
            let (node, id, entry, units) = self.open.swap_remove(usize::try_from(place).unwrap());
            let used = self.world.rng.below(units + 1);
            let actual = [Cost {
                meter: "m".into(),
                units: used,
            }];
            let now = self.world.now_of(node);
            if let Ok(settled) = self.world.nodes[node].engine.settle(now, id, &actual) {
                let back: u64 = settled.refunded.iter().map(|cost| cost.units).sum();
                self.history[entry].1 -= back;
                self.plain.push((self.world.holder(node), entry));
            }
            self.world.carry(node);
            self.note();
        }
    }

    fn trouble(&mut self, trouble: Trouble) {
        let world = &mut self.world;
        let node = usize::try_from(world.rng.below(NODES as u64)).unwrap();
        match (trouble, world.rng.below(8)) {
            (Trouble::Nothing, _) => {}
            (Trouble::Clocks, 0..=3) => world.redis.jump(7_200_000_000),
            (Trouble::Clocks, _) => world.redis.jump(-3_600_000_000),
            (Trouble::Split, 0 | 1) => world.redis.split(),
            (Trouble::Split, 2) => world.redis.heal_split(),
            (Trouble::Split, 3..) => {
                let is_astray = world.rng.chance(500);
                world.lead_astray(node, is_astray);
            }
            (Trouble::Losses, 0) => {
                world.crash(node);
                self.open.retain(|(owner, ..)| *owner != node);
                self.lives += 1;
            }
            (Trouble::Losses, 1) => world.redis.flush(),
            (Trouble::Losses, 2) => world.redis.replicate(),
            (Trouble::Losses, 3) => world.redis.fail_over(),
            (Trouble::Losses, 4) => world.cut(node, true),
            (Trouble::Losses, 5) => world.cut(node, false),
            (Trouble::Losses, 6) => world.is_redis_up = !world.is_redis_up,
            (Trouble::Losses, _) => world.is_ledger_up = !world.is_ledger_up,
        }
    }
}

/// The most that any interval admitted beyond `rate_ppm` millionths of the rate times its length, tokens, rounded up.
fn most_beyond(history: &History, shape: Shape, rate_ppm: u64) -> u64 {
    let per_us = i128::from(shape.rate) * i128::from(rate_ppm);
    let (mut total, mut lowest, mut most) = (0_i128, i128::MAX, 0_i128);
    for (at_us, units) in history {
        let before = total - i128::from(*at_us) * per_us;
        lowest = lowest.min(before);
        total += i128::from(*units) * 1_000_000_000_000;
        most = most.max(before + i128::from(*units) * 1_000_000_000_000 - lowest);
    }
    u64::try_from((most + 999_999_999_999) / 1_000_000_000_000).unwrap()
}

fn shape_of(seed: u64) -> Shape {
    let (rate, burst) = [(10, 10), (1_000, 50), (3, 200), (20_000, 20_000)][(seed % 4) as usize];
    Shape { rate, burst }
}

/// Runs one schedule and answers what was admitted beyond the bound that holds under its trouble, and what was given back
/// without having been used; 0 = nothing.
fn overshoot(seed: u64, trouble: Trouble) -> u64 {
    let shape = shape_of(seed);
    let mut run = Run::new(seed, shape, trouble);
    let pause_max_us = 2 * SECOND_US / shape.rate.min(1_000) + 20_000;
    for serial in 0..400 {
        run.use_something(shape, serial);
        if run.world.rng.chance(30) {
            run.trouble(trouble);
        }
        let pause_us = if run.world.rng.chance(20) {
            // Long enough for a bucket to fill.
            let fills_us = (SECOND_US * shape.burst / shape.rate).min(20 * SECOND_US);
            run.world.rng.below(2 * fills_us)
        } else {
            run.world.rng.below(pause_max_us)
        };
        run.run_for(pause_us);
    }
    // An answer takes 0.3 ms; what it brings is spent that much later than it was taken.
    let times = u64::try_from(run.world.speed_milli).unwrap();
    let late = |real_us: u64| (shape.rate * real_us * times).div_ceil(1_000_000_000) + 1;
    let (bound, rate_ppm) = match trouble {
        Trouble::Nothing => (shape.burst + late(400), 1_000_000),
        Trouble::Losses => {
            // Slow answers and repeats: a slice is spent within 200 ms. Standing shares: 2 %, and a token for each life.
            let standing = shape.burst / 50 + 1 + run.lives;
            (shape.burst + late(200_000) + standing, 1_020_000)
        }
        Trouble::Clocks => (
            shape.burst + late(400) + late(1_000_000) + shape.rate,
            1_000_000,
        ),
        Trouble::Split => (2 * shape.burst + late(200_000), 2_000_000),
    };
    most_beyond(&run.history, shape, rate_ppm).saturating_sub(bound) + run.unused_back
}

fn seeds() -> std::ops::Range<u64> {
    let read = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = read("QUOTA_SEED").unwrap_or(0);
    first..first + read("QUOTA_SEEDS").unwrap_or(20)
}

fn assert_holds(trouble: Trouble) {
    for seed in seeds() {
        assert_eq!(
            0,
            overshoot(seed, trouble),
            "{trouble:?} {:?}; replay: QUOTA_SEED={seed} QUOTA_SEEDS=1",
            shape_of(seed)
        );
    }
}

/// Three sidecars, costs up to the burst, reservations that settle below what they held: burst + rate × t.
#[test]
fn any_interval_admits_burst_and_rate() {
    assert_holds(Trouble::Nothing);
}

/// Lost messages, killed sidecars, cut links, a Redis that is flushed, rolled back or away: burst + 1.02 × rate × t, and
/// 2 % of the burst (a token at least) for each that is cut off. A lost Redis refills from empty.
#[test]
fn losses_add_two_per_cent_at_most() {
    assert_holds(Trouble::Losses);
}

/// However Redis' wall clock jumps: not more than what comes in two seconds beyond burst + rate × t, once and for all.
#[test]
fn jumping_clocks_mint_nothing() {
    assert_holds(Trouble::Clocks);
}

/// Two masters serve at most twice the rate.
#[test]
fn a_split_brain_serves_twice_at_most() {
    assert_holds(Trouble::Split);
}

fn admitted(world: &mut World, node: usize, units: u64) -> bool {
    world.decide(node, &request("t", "m", units)).reason == Reason::Allowed
}

/// A lone burst passes, whole, and again when the bucket is full and no slice is out.
#[test]
fn a_lone_burst_passes() {
    let shape = Shape {
        rate: 100,
        burst: 50,
    };
    let mut world = world(1, 2, vec![rule("rate", "m", shape)]);
    assert!(admitted(&mut world, 0, 50));
    assert!(!admitted(&mut world, 1, 1));
    world.run_for(SECOND_US);
    for _ in 0..3 {
        assert!(admitted(&mut world, 1, 1));
    }
    world.run_for(SECOND_US);
    assert!(admitted(&mut world, 0, 50), "slices of the other are over");
}

/// What a reservation did not use is there for everybody as soon as it settles.
#[test]
fn a_settlement_below_gives_tokens_back() {
    let shape = Shape { rate: 1, burst: 20 };
    let mut world = world(3, 2, vec![rule("rate", "m", shape)]);
    let mut check = request("t", "m", 20);
    let id = ReservationId([5; 16]);
    check.mode = Mode::Reserve {
        id,
        expires_us: i64::MAX,
    };
    assert_eq!(Reason::Allowed, world.decide(0, &check).reason);
    assert!(!admitted(&mut world, 1, 15));
    let used = [Cost {
        meter: "m".into(),
        units: 5,
    }];
    let now = world.now_of(0);
    world.nodes[0].engine.settle(now, id, &used).unwrap();
    world.carry(0);
    world.run_for(2_000);
    assert!(admitted(&mut world, 0, 15), "20 were held and 5 used");
    assert!(!admitted(&mut world, 0, 1), "and not one more");
}

/// Whoever only looks leaves the tokens where they are: others can take every one of them.
#[test]
fn a_peek_takes_no_tokens() {
    let shape = Shape { rate: 1, burst: 20 };
    let mut world = world(8, 2, vec![rule("rate", "m", shape)]);
    let mut look = request("t", "m", 20);
    look.mode = Mode::Peek;
    for _ in 0..3 {
        assert_eq!(Reason::Allowed, world.decide(0, &look).reason);
        world.run_for(2_000);
    }
    assert!(admitted(&mut world, 1, 20));
    assert!(!admitted(&mut world, 0, 1));
}

/// Tokens that a call took and its caller gave back are there for everybody, never above the burst, and once.
#[test]
fn given_back_tokens_are_there_again() {
    let shape = Shape { rate: 1, burst: 20 };
    let mut world = world(6, 3, vec![rule("rate", "m", shape)]);
    assert!(admitted(&mut world, 0, 12) && admitted(&mut world, 1, 8));
    let mut back = request("t", "m", 13);
    back.mode = Mode::GiveBack;
    assert_eq!(Reason::NotConsumedHere, world.decide(0, &back).reason);
    back.costs[0].units = 9;
    assert_eq!(Reason::NotConsumedHere, world.decide(1, &back).reason);
    assert_eq!(Reason::Allowed, world.decide(0, &back).reason);
    assert_eq!(
        Reason::NotConsumedHere,
        world.decide(0, &back).reason,
        "3 are left to give back"
    );
    world.run_for(2_000);
    assert!(admitted(&mut world, 1, 9));
    assert!(!admitted(&mut world, 0, 1), "and not one more");
    world.run_for(12_000_000);
    back.costs[0].units = 17;
    assert_eq!(Reason::Allowed, world.decide(1, &back).reason);
    world.run_for(2_000);
    assert!(
        admitted(&mut world, 2, 19),
        "full but for a part of a token"
    );
    assert!(!admitted(&mut world, 1, 2), "and never above the burst");
}

/// Tokens of several calls that are given back together are each worth what would be left of them: those of a call before
/// the bucket was full again nothing, those of a later one all.
#[test]
fn tokens_of_several_calls_go_back_each_for_itself() {
    let shape = Shape { rate: 1, burst: 20 };
    let mut world = world(7, 2, vec![rule("rate", "m", shape)]);
    assert!(admitted(&mut world, 0, 12));
    world.run_for(13 * SECOND_US);
    assert!(admitted(&mut world, 0, 5));
    let mut back = request("t", "m", 9);
    back.mode = Mode::GiveBack;
    assert_eq!(Reason::Allowed, world.decide(0, &back).reason);
    world.run_for(2_000);
    assert!(admitted(&mut world, 1, 20));
    assert!(!admitted(&mut world, 0, 1));
}

/// A call that one limit denies takes nothing from another: what the first bucket lent for it goes back.
#[test]
fn a_denied_call_leaves_other_buckets_as_they_were() {
    let wide = Shape { rate: 1, burst: 20 };
    let narrow = Shape { rate: 1, burst: 4 };
    let rules = vec![rule("a", "m", wide), rule("b", "n", narrow)];
    let mut world = world(4, 2, rules);
    assert_eq!(
        Reason::Allowed,
        world.decide(1, &request("t", "n", 4)).reason
    );
    let mut both = request("t", "m", 20);
    both.costs.push(Cost {
        meter: "n".into(),
        units: 2,
    });
    assert_eq!(Reason::RateLimited, world.decide(0, &both).reason);
    world.run_for(2_000);
    assert!(admitted(&mut world, 1, 20));
}

/// Tokens that come when nobody waits for them any more go back: a call that was denied because no answer came in time
/// burns nothing, where the answer comes at all.
#[test]
fn tokens_that_nobody_waits_for_go_back() {
    let mut unanswered = 0;
    for seed in 0..40 {
        let mut day = rule("rate", "m", Shape { rate: 1, burst: 20 });
        day.kind = LimitKind::TokenBucket {
            refill_interval_us: 86_400_000_000,
            burst: 20,
        };
        day.failure_policy = FailurePolicy::Closed;
        let mut world = world(seed, 1, vec![day]);
        world.weather.delay_max_us = 48_000;
        let (mut left, mut lost_parts) = (20, 0);
        for _ in 0..4 {
            match world.decide(0, &request("t", "m", 3)).reason {
                Reason::Allowed => left -= 3,
                reason => {
                    assert_eq!(Reason::AuthorityUnreachable, reason);
                    lost_parts = 1;
                    unanswered += 1;
                }
            }
            world.run_for(SECOND_US);
        }
        world.weather.delay_max_us = 300;
        world.run_for(SECOND_US);
        // A part of a token that had come in the meantime is not made whole again.
        let whole = left - lost_parts;
        assert!(admitted(&mut world, 0, whole), "seed {seed}: {whole}");
        assert!(!admitted(&mut world, 0, lost_parts + 1), "seed {seed}");
    }
    assert!(
        unanswered > 20,
        "{unanswered} calls without an answer prove little"
    );
}

/// Units that three sidecars admit while they are cut off for so many seconds, after a while of use.
fn admitted_cut_off(shape: Shape, spans: u64) -> u64 {
    let mut run = Run::new(1, shape, Trouble::Nothing);
    for _ in 0..40 {
        for node in 0..NODES {
            run.world.check(node, &request("t", "m", 1));
        }
        run.run_for(SECOND_US);
    }
    for node in 0..NODES {
        run.world.cut(node, true);
    }
    run.run_for(SECOND_US);
    run.note();
    run.history.clear();
    for _ in 0..spans * 200 {
        for node in 0..NODES {
            run.world.check(node, &request("t", "m", 1));
            run.note();
        }
        run.run_for(5_000);
    }
    run.history.iter().map(|(_, units)| units).sum()
}

const STEADY: Shape = Shape {
    rate: 1_000,
    burst: 1_000,
};

/// 2 % of the rate for so many seconds, and what may be saved up: 2 % of the burst, a token at least for each.
const fn share_of(shape: Shape, spans: u64) -> u64 {
    spans * shape.rate / 50 + shape.burst / 50 + 1 + NODES as u64
}

/// Sidecars that are cut off go on with their parts of 2 % of the rate, and together with no more than that.
#[test]
fn cut_off_sidecars_share_two_per_cent() {
    let units = admitted_cut_off(STEADY, 30);
    println!("cut off for 30 s: {units} admitted, 2 % of the rate are 600");
    assert!(units <= share_of(STEADY, 30), "{units}: too much");
    assert!(units >= 540, "{units}: too little");
}

/// Each broken rule of buckets is found by one of these schedules.
#[cfg(feature = "mutants")]
#[test]
fn mutants_of_buckets_are_found() {
    use quota_core::mutant::{self, Mutant};
    let finders = [
        (Mutant::ReturnOverflows, Trouble::Nothing),
        (Mutant::TokensReturnedAndKept, Trouble::Nothing),
        (Mutant::UnspendsTwice, Trouble::Nothing),
        (Mutant::ForwardClockMints, Trouble::Clocks),
        (Mutant::BackwardClockMints, Trouble::Clocks),
        (Mutant::LostBucketIsFull, Trouble::Losses),
    ];
    for (broken, trouble) in finders {
        mutant::set(Some(broken));
        let found = (0..400).find(|seed| overshoot(*seed, trouble) > 0);
        mutant::set(None);
        println!("{broken:?}: seed {found:?}");
        assert!(found.is_some(), "{broken:?} is not found");
    }
    for broken in [Mutant::ShareOfEach, Mutant::ShareUnbounded] {
        mutant::set(Some(broken));
        // Five seconds: what was saved up shows best against little time.
        let units = admitted_cut_off(STEADY, 5);
        mutant::set(None);
        println!("{broken:?}: {units} admitted");
        assert!(units > share_of(STEADY, 5), "{broken:?} is not found");
    }
}
