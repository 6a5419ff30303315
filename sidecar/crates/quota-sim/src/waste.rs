//! How much of a limit is admitted before the first false denial: fifty sidecars, Zipf demand.

use crate::{
    rng::Rng,
    world::{
        World,
        ledger::{Plan, window_rule},
        request,
    },
};

/// Tokens of a call to a language model, input and output: 64 quantiles of the traces in `examples/data`.
pub const LLM_COSTS: [u64; 64] = [
    61, 112, 160, 210, 264, 297, 327, 355, 378, 408, 429, 447, 464, 478, 486, 492, 499, 505, 513,
    523, 536, 558, 637, 788, 911, 998, 1_072, 1_163, 1_279, 1_357, 1_389, 1_409, 1_424, 1_438,
    1_450, 1_461, 1_471, 1_482, 1_493, 1_504, 1_516, 1_529, 1_545, 1_563, 1_587, 1_618, 1_664,
    1_732, 1_835, 1_984, 2_125, 2_279, 2_436, 2_609, 2_772, 3_033, 3_490, 4_101, 4_126, 4_148,
    4_197, 4_765, 6_193, 7_447,
];

const NODES: usize = 50;

/// A run's parameters.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The limit.
    pub amount: u64,
    /// Costs, drawn alike.
    pub costs: &'a [u64],
    /// Sidecars killed on the way, each replaced by a fresh one.
    pub kills: u64,
}

/// Share of the limit admitted before somebody is denied although the limit less what was admitted would do.
#[must_use]
#[allow(clippy::float_arithmetic, clippy::cast_precision_loss)] // a share, for people
pub fn share_admitted(seed: u64, load: Load<'_>) -> f64 {
    let mut world = World::new(seed, NODES);
    let plan = Plan {
        length_us: 3_600_000_000_000,
        is_rolling: false,
    };
    world.declare(
        "t",
        None,
        vec![(window_rule("limit", "m", load.amount), plan)],
    );
    world.weather.delay_max_us = 300;
    let mut rng = Rng::new(seed ^ 0x3A57E);
    let weights: Vec<u64> = (1..=NODES as u64).map(|rank| 1_000_000 / rank).collect();
    let total: u64 = weights.iter().sum();
    let mut dead = 0;
    let mut admitted = 0;
    loop {
        if dead < load.kills && admitted >= load.amount * (dead + 1) / (load.kills + 1) {
            dead += 1;
            let node = usize::try_from(rng.below(NODES as u64)).expect("small");
            world.crash(node);
        }
        let mut draw = rng.below(total);
        let holds = |weight: &u64| draw.checked_sub(*weight).map(|rest| draw = rest).is_none();
        let node = weights.iter().position(holds).expect("below the total");
        let cost = load.costs[usize::try_from(rng.below(load.costs.len() as u64)).expect("small")];
        let is_there = load.amount - admitted >= cost;
        let decision = world.decide(node, &request("t", "m", cost));
        if decision.reason.allowed() {
            admitted += cost;
        } else if is_there {
            return admitted as f64 / load.amount as f64;
        }
        if load.amount - admitted < *load.costs.iter().min().expect("costs") {
            return 1.0;
        }
        world.decisions.clear();
        world.run_for(50);
    }
}
