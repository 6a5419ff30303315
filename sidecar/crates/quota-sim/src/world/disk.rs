//! A sidecar's volume: the marks of what a restart may take over, open reservations, settlements to be told.

use std::collections::{BTreeMap, VecDeque};

use quota_core::{
    Holder, Kept, Reservation, ReservationId, WindowId,
    mutant::{self, Mutant},
};

use super::ledger::Record;
use crate::rng::Rng;

/// A mark that is written and not durable yet: its name, the window, what it says.
type Written = (u64, WindowId, Option<(Holder, Box<Kept>)>);

/// Marks and reservations as the log keeps them: marks are durable in order, the last of a window counts.
#[derive(Clone, Default)]
pub struct Disk {
    /// It was copied to another machine: boot and device are not those that its marks name.
    is_copy: bool,
    durable: BTreeMap<WindowId, (Holder, Kept)>,
    written: VecDeque<Written>,
    /// Reservations that are open, as their log entries say.
    pub open: BTreeMap<ReservationId, Reservation>,
    /// Rises and falls of levels, and ends of processes, in their order.
    pub records: Vec<Record>,
    /// Of these, how many the ledger has said that it knows.
    pub shipped: usize,
    /// Processes of this volume that have ended, of which the ledger has not been told.
    pub ended: Vec<Holder>,
    /// What was used of reservations that ended here, for the ledger: it is told until it says that it knows.
    pub ends: Vec<(ReservationId, u64)>,
}

impl Disk {
    /// Writes a mark; not durable yet.
    pub fn write(&mut self, id: u64, holder: Holder, window: WindowId, kept: Option<Box<Kept>>) {
        self.written
            .push_back((id, window, kept.map(|kept| (holder, kept))));
    }

    /// Units that it keeps.
    #[must_use]
    pub fn units(&self) -> u64 {
        self.durable.values().map(|(_, kept)| kept.units).sum()
    }

    /// Makes a mark durable, and all before it.
    pub fn sync(&mut self, id: u64) {
        while let Some((first, window, kept)) = self.written.pop_front() {
            match kept {
                Some((holder, kept)) => drop(self.durable.insert(window, (holder, *kept))),
                None => drop(self.durable.remove(&window)),
            }
            if first == id {
                return;
            }
        }
    }

    /// The process dies: of what was written any beginning is durable. Gives what the next one may take over and who kept
    /// it; the marks are gone, but for what they say is owed. A copy on another machine forfeits them.
    pub fn restart(&mut self, rng: &mut Rng) -> Vec<(Holder, Kept)> {
        self.settle_down(rng);
        let kept = self.durable.values().cloned().collect();
        let is_copy = std::mem::take(&mut self.is_copy);
        if !mutant::is(Mutant::MarksTakenTwice) {
            self.durable.retain(|_, (_, kept)| {
                (kept.units, kept.parts) = (0, Box::default());
                kept.debt > 0 && !is_copy
            });
        }
        if is_copy && !mutant::is(Mutant::CloneAdopted) {
            return Vec::new();
        }
        kept
    }

    /// A copy of it as another machine finds it, while the original goes on.
    #[must_use]
    pub fn copy(&self, rng: &mut Rng) -> Self {
        let mut copy = self.clone();
        copy.settle_down(rng);
        copy.is_copy = true;
        if !mutant::is(Mutant::CloneNamesEnded) {
            // Those before it may live on.
            copy.ended.clear();
        }
        copy
    }

    fn settle_down(&mut self, rng: &mut Rng) {
        let count = u64::try_from(self.written.len()).expect("in range");
        for _ in 0..rng.between(0, count) {
            if let Some(id) = self.written.front().map(|(id, ..)| *id) {
                self.sync(id);
            }
        }
        self.written.clear();
    }
}
