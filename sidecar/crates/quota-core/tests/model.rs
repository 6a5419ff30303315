//! One engine against a slow, obvious model: a counter per limit and window.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use std::collections::BTreeMap;

use quota_core::{CheckRequest, Cost, Mode, Reason, ReservationId};
use quota_sim::{
    rng::Rng,
    world::{
        World,
        ledger::{Plan, window_rule},
        request,
    },
};

const LENGTH_US: i64 = 20_000_000;
const PLAN: Plan = Plan {
    length_us: LENGTH_US,
    is_rolling: false,
};

/// What was used of each limit in the window that is on, held units included.
struct Model {
    amounts: [u64; 2],
    used: [u64; 2],
    window: i64,
    held: BTreeMap<ReservationId, (i64, u64)>,
}

impl Model {
    fn turn(&mut self, ledger_us: i64) {
        let window = ledger_us.div_euclid(LENGTH_US);
        if window != self.window {
            self.window = window;
            self.used = [0, 0];
        }
    }

    fn decide(&mut self, units: u64, mode: Mode) -> Reason {
        for limit in 0..2 {
            if units > self.amounts[limit] {
                return Reason::CostExceedsLimit;
            }
            if self.used[limit] + units > self.amounts[limit] {
                return Reason::QuotaExhausted;
            }
        }
        if mode != Mode::Peek {
            self.used = self.used.map(|used| used + units);
        }
        if let Mode::Reserve { id, .. } = mode {
            self.held.insert(id, (self.window, units));
        }
        Reason::Allowed
    }

    fn settle(&mut self, id: ReservationId, actual: u64) {
        let (window, units) = self.held.remove(&id).expect("a reservation");
        if window == self.window {
            self.used = self.used.map(|used| used - (units - actual));
        }
    }

    fn remaining(&self) -> [u64; 2] {
        [0, 1].map(|limit| self.amounts[limit] - self.used[limit])
    }
}

fn mode_of(rng: &mut Rng, turn: u64) -> Mode {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&turn.to_be_bytes());
    match rng.below(10) {
        0 => Mode::Peek,
        1..4 => Mode::Reserve {
            id: ReservationId(id),
            expires_us: i64::MAX,
        },
        _ => Mode::Consume,
    }
}

fn seeds() -> std::ops::Range<u64> {
    let first = std::env::var("QUOTA_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    first.map_or(0..300, |seed: u64| seed..seed + 1)
}

/// A single sidecar admits exactly what the limits allow, over turns of the window, peeks, reservations and settlements,
/// and always says what remains to the unit.
#[test]
fn one_engine_is_exact() {
    for seed in seeds() {
        let mut rng = Rng::new(seed);
        let amounts = [rng.between(1, 300), rng.between(1, 300)];
        let mut world = World::new(seed, 1);
        let rules = [("a", amounts[0]), ("b", amounts[1])];
        let limits = rules.map(|(name, amount)| (window_rule(name, "m", amount), PLAN));
        world.declare("t", None, limits.to_vec());
        world.weather.delay_max_us = rng.below(400);
        // From the first heartbeat on the amounts are known to be the present ones.
        world.run_for(100_000);
        let mut model = Model {
            amounts,
            used: [0, 0],
            window: 0,
            held: BTreeMap::new(),
        };
        for turn in 0..150 {
            let units = if rng.chance(300) {
                rng.between(1, 120)
            } else {
                rng.below(4)
            };
            let mode = mode_of(&mut rng, turn);
            let check = CheckRequest {
                mode,
                all_limits: true,
                ..request("t", "m", units)
            };
            let decision = world.decide(0, &check);
            model.turn(world.now().ledger_us);
            let expected = model.decide(units, mode);
            assert_eq!(
                expected,
                decision.reason,
                "seed {seed} turn {turn}: {units} of {:?}",
                model.remaining()
            );
            let remaining: Vec<_> = decision
                .limits
                .iter()
                .map(|state| state.remaining.unwrap())
                .collect();
            assert_eq!(
                model.remaining().to_vec(),
                remaining,
                "seed {seed} turn {turn}"
            );
            if rng.chance(250)
                && let Some((id, (_, held))) =
                    model.held.first_key_value().map(|(id, held)| (*id, *held))
            {
                let actual = rng.below(held + 1);
                let now = world.now();
                model.turn(now.ledger_us);
                model.settle(id, actual);
                let used = [Cost {
                    meter: "m".into(),
                    units: actual,
                }];
                world.nodes[0].engine.settle(now, id, &used).unwrap();
                world.carry(0);
            }
            let span_us = [1_000, 100_000, 3_000_000][usize::try_from(rng.below(3)).unwrap()];
            world.run_for(rng.below(span_us));
            model.turn(world.now().ledger_us);
        }
    }
}
