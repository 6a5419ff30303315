//! Records of levels in sidecars' logs: they outlive their process, and reach the ledger in their order, once or more.

use std::sync::Arc;

use quota_core::{
    Cost, HoldKind, Holder, Mode, Reason, Reservation, ReservationId,
    mutant::{self, Mutant},
    rise,
};

use super::{World, ledger::Record};

/// Names of records that end reservations begin with this bit: a reservation has one, whoever writes it.
const ENDS: u64 = 1 << 63;

impl World {
    /// Writes the record of an admitted rise before its caller hears of it, and ends the hold. No effect for other calls.
    pub(super) fn log_rise(&mut self, node: usize, mode: Mode, reason: Reason) {
        let Mode::Record { id, .. } = mode else {
            return;
        };
        let reservation = self.nodes[node].engine.reservation(id).cloned();
        let Some(reservation) = reservation.filter(|_| reason.allowed()) else {
            return;
        };
        let units = reservation.costs.first().map_or(0, |cost| cost.units);
        self.record_rise(node, &reservation, units);
        let _ = self.settle_here(node, id, units);
    }

    /// Writes what the end of a reservation makes levels rise by.
    pub(super) fn record_rise(&mut self, node: usize, reservation: &Reservation, actual: u64) {
        let reserved = reservation.costs.first().map_or(0, |cost| cost.units);
        for hold in &reservation.holds {
            if let Some(change) = rise(hold, reserved, actual) {
                let record = Record::Rise {
                    id: name_of_end(reservation.id),
                    holder: reservation.holder,
                    units: change.units,
                    over: change.over,
                };
                self.nodes[node].disk.records.push(record);
            }
        }
    }

    /// Lets a caller take away what is stored; answers the record, once that is durable.
    pub fn fall(&mut self, node: usize, tenant: &str, units: u64) -> Option<u64> {
        let tenant: Arc<str> = tenant.into();
        let meter = self.meters.first().cloned().unwrap_or_else(|| "m".into());
        let costs = [Cost { meter, units }];
        let now = self.now_of(node);
        let engine = &mut self.nodes[node].engine;
        let changes = engine.levels(now, &tenant, &costs, &[]).unwrap_or_default();
        let change = changes.first()?;
        self.nodes[node].engine.fell(change);
        self.serial += 1;
        let (id, units) = (self.serial, change.units);
        let record = Record::Fall { id, units };
        self.nodes[node].disk.records.push(record);
        self.carry(node);
        Some(id)
    }

    /// What records that some log holds and the ledger does not know yet will make the level rise and fall by.
    #[must_use]
    pub fn unrecorded(&self) -> (u64, u64) {
        let mut sums = (0, 0);
        // Copies of a volume hold the same records.
        let mut seen = self.ledger.rows.recorded.clone();
        for record in self.nodes.iter().flat_map(|node| &node.disk.records) {
            match *record {
                Record::Rise { id, units, .. } if seen.insert(id) => sums.0 += units,
                Record::Fall { id, units } if seen.insert(id) => sums.1 += units,
                _ => {}
            }
        }
        sums
    }

    /// Sends what is in logs to the ledger, again where its answer was lost.
    pub(super) fn ship_records(&mut self) {
        for node in 0..self.nodes.len() {
            let disk = &self.nodes[node].disk;
            let is_joined = self.is_ledger_up && !self.nodes[node].cut && !self.is_paused(node);
            if !is_joined || disk.records.len() == disk.shipped {
                continue;
            }
            for place in disk.shipped..disk.records.len() {
                self.ledger.append(self.nodes[node].disk.records[place]);
            }
            if !self.rng.chance(self.weather.loss) {
                let disk = &mut self.nodes[node].disk;
                disk.shipped = disk.records.len();
            }
            self.spread_notices();
        }
    }

    /// Lets every log be sent anew, since the ledger has forgotten what it had.
    pub fn send_again(&mut self) {
        for node in &mut self.nodes {
            node.disk.shipped = 0;
        }
    }

    /// A process starts on the volume of those before it: it says that they have ended, after all that they wrote. One
    /// whose open reservations hold units of levels is left for a later start.
    pub(super) fn succeed(&mut self, node: usize) {
        let disk = &mut self.nodes[node].disk;
        let open = &disk.open;
        let owes = |holder: &Holder| {
            let mut own = open.values().filter(|one| one.holder == *holder);
            own.any(|one| one.holds.iter().any(|hold| hold.kind == HoldKind::Level))
        };
        let (later, ended): (Vec<_>, Vec<_>) = disk.ended.iter().copied().partition(owes);
        disk.records.extend(ended.into_iter().map(Record::Ended));
        disk.ended = later;
    }

    /// Notes that a process has ended, for the next one on its volume.
    pub(super) fn note_end(&mut self, node: usize) {
        let holder = self.nodes[node].holder;
        if mutant::is(Mutant::EndedEarly) {
            self.ledger.end(holder);
        }
        self.nodes[node].disk.ended.push(holder);
    }
}

/// What the record that ends a reservation is called.
fn name_of_end(id: ReservationId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&id.0[..8]);
    ENDS | u64::from_be_bytes(first)
}
