//! Reservations that end elsewhere than at home: any sidecar or the ledger takes the settlement, the ledger keeps the
//! first and tells the home until that acknowledges, and only the home refunds.

use quota_core::{
    Cost, Holder, Now, ReservationId, SettleRefusal, Settled,
    mutant::{self, Mutant},
};

use super::{World, network::Message};

/// An outcome that the ledger has committed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    actual: u64,
    home: Holder,
    is_acknowledged: bool,
}

/// What a home made of a settlement that it was told of.
#[derive(Debug)]
pub struct Told {
    /// After so many verdicts of those that were not taken yet.
    pub after: usize,
    /// After so many facts of those that were not taken yet.
    pub facts: usize,
    /// Where.
    pub node: usize,
    /// By which process.
    pub holder: Holder,
    /// Of which reservation.
    pub id: ReservationId,
    /// Units used.
    pub actual: u64,
    /// What came of it.
    pub result: Result<Settled, SettleRefusal>,
    /// When, by the home's clocks.
    pub at: Now,
}

impl World {
    /// Where a reservation is at home: at the process that made it, or at one that found it on that process' volume.
    #[must_use]
    pub fn home_of(&self, id: ReservationId, holder: Holder) -> Option<usize> {
        let found = |node: &super::Node| node.disk.open.contains_key(&id);
        self.node_of(holder)
            .or_else(|| self.nodes.iter().position(found))
    }

    /// Lets a client settle at a sidecar that is not the home, or at the ledger (`None`): it is recorded there. No effect
    /// where the ledger can't be reached.
    pub fn settle_elsewhere(
        &mut self,
        at: Option<usize>,
        id: ReservationId,
        home: Holder,
        actual: u64,
    ) {
        self.homes.insert(id, home);
        match at {
            Some(node) => self.nodes[node].disk.ends.push((id, actual)),
            None if self.is_ledger_up => self.commit_outcome(id, actual),
            None => {}
        }
    }

    /// The first that is committed stands.
    fn commit_outcome(&mut self, id: ReservationId, actual: u64) {
        let Some(home) = self.homes.get(&id).copied() else {
            return;
        };
        let outcome = Outcome {
            actual,
            home,
            is_acknowledged: false,
        };
        self.outcomes.entry(id).or_insert(outcome);
    }

    /// Sends what sidecars recorded to the ledger, again where its answer was lost.
    pub(super) fn ship_ends(&mut self) {
        for node in 0..self.nodes.len() {
            let is_joined = self.is_ledger_up && !self.nodes[node].cut && !self.is_paused(node);
            if !is_joined || self.nodes[node].disk.ends.is_empty() {
                continue;
            }
            for (id, actual) in self.nodes[node].disk.ends.clone() {
                self.commit_outcome(id, actual);
            }
            if !self.rng.chance(self.weather.loss) {
                self.nodes[node].disk.ends.clear();
            }
        }
    }

    /// Tells homes of outcomes that they have not acknowledged.
    pub(super) fn tell_outcomes(&mut self) {
        let waiting: Vec<_> = self
            .outcomes
            .iter()
            .filter(|(_, outcome)| !outcome.is_acknowledged)
            .map(|(id, outcome)| (*id, *outcome))
            .collect();
        for (id, outcome) in waiting {
            let Some(node) = self.home_of(id, outcome.home) else {
                continue;
            };
            if mutant::is(Mutant::OutcomeToldOnce) {
                self.acknowledge(id);
            }
            let is_twice = self.rng.chance(self.weather.repeat);
            for _ in 0..=u8::from(is_twice) {
                if !self.nodes[node].watch_up || self.rng.chance(self.weather.loss) {
                    continue;
                }
                let (life, actual) = (self.nodes[node].life, outcome.actual);
                let at_us = self.in_order(node, true);
                let message = Message::Outcome {
                    node,
                    life,
                    id,
                    actual,
                };
                self.post(at_us, message);
            }
        }
    }

    /// A home hears of an outcome: it ends the reservation, and says that it knows.
    pub(super) fn hear_outcome(&mut self, node: usize, life: u64, id: ReservationId, actual: u64) {
        if self.nodes[node].life != life {
            return;
        }
        let after = self.verdicts.as_ref().map_or(0, Vec::len);
        let facts = self.facts_noted();
        let result = self.settle_here(node, id, actual);
        self.told.push(Told {
            after,
            facts,
            node,
            holder: self.nodes[node].holder,
            id,
            actual,
            result,
            at: self.now_of(node),
        });
        self.carry(node);
        if !self.nodes[node].cut && self.is_ledger_up && !self.rng.chance(self.weather.loss) {
            self.acknowledge(id);
        }
    }

    fn acknowledge(&mut self, id: ReservationId) {
        if let Some(outcome) = self.outcomes.get_mut(&id) {
            outcome.is_acknowledged = true;
        }
    }

    /// Ends a reservation at home; what the engine wants next is left to `carry`.
    ///
    /// # Errors
    /// `Unknown` where it is not open there.
    pub fn settle_here(
        &mut self,
        node: usize,
        id: ReservationId,
        actual: u64,
    ) -> Result<Settled, SettleRefusal> {
        if let Some(reservation) = self.nodes[node].disk.open.remove(&id) {
            self.record_rise(node, &reservation, actual);
        }
        let meter = self.meters.first().cloned().unwrap_or_else(|| "m".into());
        let costs = [Cost {
            meter,
            units: actual,
        }];
        let now = self.now_of(node);
        self.nodes[node].engine.settle(now, id, &costs)
    }

    /// A reservation that has ended at the ledger, whose home goes on and has not ended it.
    #[must_use]
    pub fn untold(&self) -> Option<ReservationId> {
        let is_untold = |(id, outcome): &(&ReservationId, &Outcome)| {
            let home = self.node_of(outcome.home);
            home.is_some_and(|node| self.nodes[node].engine.reservation(**id).is_some())
        };
        self.outcomes.iter().find(is_untold).map(|(id, _)| *id)
    }
}
