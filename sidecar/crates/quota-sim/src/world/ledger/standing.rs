//! Levels and units in flight: the rules of the ledger's `domain/standing.py` and `services/standing.py`, line by line.

use std::collections::BTreeMap;

use quota_core::{
    AllotAsk, Holder, LimitKind, WindowId,
    mutant::{self, Mutant},
};

use super::{
    Ledger,
    window::{Answer, Window},
};
use crate::world::fact::Fact;

/// Units in flight may be used for so long after their renewal was sent, real µs.
pub const LEASE_US: u64 = 30_000_000;
/// A lease of units in flight is reclaimed when it stood still for so long, real µs.
const RECLAIM_US: u64 = 40_000_000;
/// A look counts for at most so long, real µs.
const STEP_US_MAX: u64 = 2_000_000;
/// A lease has at most this part of what is left beyond what is needed now.
const AHEAD_SHARE: u64 = 16;

/// Units as a figure that may be below 0.
fn signed(units: u64) -> i64 {
    i64::try_from(units).expect("far below the bound")
}

/// What a window without end counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Units that are stored.
    Level,
    /// Units in flight.
    Flight,
}

impl Standing {
    /// What a limit's window without end counts; `None` where its windows end.
    pub(super) const fn of(kind: LimitKind) -> Option<Self> {
        match kind {
            LimitKind::Level => Some(Self::Level),
            LimitKind::Concurrency => Some(Self::Flight),
            _ => None,
        }
    }
}

/// What a record in a sidecar's log says of levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// A level rose by units that a holder had leased, or beyond the limit.
    Rise {
        /// Names it.
        id: u64,
        /// Whose lease.
        holder: Holder,
        /// Units.
        units: u64,
        /// Of these, without a lease.
        over: u64,
    },
    /// A level fell.
    Fall {
        /// Names it.
        id: u64,
        /// Units.
        units: u64,
    },
    /// A process has ended: nothing of it comes after this.
    Ended(Holder),
}

/// A lease as one look of the ledger found it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    renewals: u64,
    at_us: u64,
    still_us: u64,
}

/// What the ledger remembers of leases between looks.
pub(super) type Looks = BTreeMap<(WindowId, Holder, u64), Seen>;

impl Window {
    /// Answers an ask of a level or of units in flight.
    pub(super) fn decide_standing(
        &mut self,
        kind: Standing,
        holder: Holder,
        ask: &AllotAsk,
    ) -> Answer {
        let (left, ahead) = (self.left(), self.left() / AHEAD_SHARE);
        let lease = self.leases.entry(holder).or_default();
        let before = lease.held();
        let left = left + before - (lease.granted_cum - lease.returned_cum);
        if left < ask.need.max(1) {
            return Answer::Denied;
        }
        let give = left.min(ask.need.max(ask.want.min(ahead)));
        lease.granted_cum += give;
        self.allotted += lease.held() - before;
        if kind == Standing::Flight {
            lease.epoch = lease.epoch.max(1);
        }
        Answer::Leased {
            give,
            granted_cum: lease.granted_cum,
        }
    }

    /// Units stored or in flight, rises included that were reported and not recorded yet.
    pub(super) fn standing_use(&self, kind: Standing) -> u64 {
        if kind == Standing::Flight {
            return self.leases.values().map(|lease| lease.in_flight).sum();
        }
        let unrecorded: u64 = self
            .leases
            .iter()
            .filter(|(_, lease)| !lease.is_ended)
            .map(|(holder, lease)| {
                let reported = self.consumed.get(holder).map_or(0, |own| own.0);
                reported.saturating_sub(lease.recorded)
            })
            .sum();
        u64::try_from(self.stored).unwrap_or(0) + unrecorded
    }

    /// Takes in a rise; answers the units that left the limit by it.
    fn rise(&mut self, holder: Holder, units: u64, over: u64) -> u64 {
        let leased = units - over;
        self.stored += signed(units);
        self.stored_over += over;
        let lease = self.leases.get_mut(&holder);
        let Some(lease) = lease.filter(|lease| !lease.is_ended) else {
            return self.take_anew(leased);
        };
        let before = lease.held();
        lease.recorded += leased;
        let beyond = lease.held() - before;
        self.take_anew(beyond)
    }

    fn take_anew(&mut self, units: u64) -> u64 {
        let paid = self.owed.min(units);
        self.owed -= paid;
        self.allotted += units - paid;
        self.ceiling = self.ceiling.max(self.allotted);
        units - paid
    }

    /// Whether a level may fall by so much.
    const fn may_fall(&self, units: u64) -> bool {
        units + self.owed <= self.allotted + self.stored_over
    }

    /// Takes in a fall; answers the units that came back to the limit.
    fn fall(&mut self, units: u64) -> u64 {
        let over = units.min(self.stored_over);
        self.stored -= signed(units);
        self.stored_over -= over;
        self.put_back(units - over)
    }

    /// Takes back what an ended process had leased and never recorded, once; answers the units that came back.
    fn take_back(&mut self, holder: Holder) -> u64 {
        let Some(lease) = self.leases.get_mut(&holder) else {
            return 0;
        };
        if lease.is_ended {
            return 0;
        }
        lease.is_ended = true;
        let units = lease.held() - lease.recorded;
        lease.returned_cum += units;
        self.put_back(units)
    }

    /// Sets what is stored. What is leased stays leased.
    fn set_level(&mut self, units: u64) {
        let within = self.stored - signed(self.stored_over);
        let leased = signed(self.allotted) - signed(self.owed) - within;
        let allotted = (signed(units) + leased).max(0);
        self.allotted = allotted.unsigned_abs();
        (self.stored, self.stored_over, self.owed) = (signed(units), 0, 0);
        self.ceiling = self.amount.max(self.allotted);
    }
}

impl Ledger {
    /// Takes in a record, once however often it comes.
    pub fn append(&mut self, record: Record) {
        let (Record::Rise { id, .. } | Record::Fall { id, .. }) = record else {
            if let Record::Ended(holder) = record {
                self.end(holder);
            }
            return;
        };
        let Some(window) = self.rows.windows.first_mut() else {
            return;
        };
        if !self.rows.recorded.insert(id) && !mutant::is(Mutant::RecordRepeated) {
            return;
        }
        let name = window.id;
        match record {
            Record::Rise {
                holder,
                units,
                over,
                ..
            } => {
                let lease = window.leases.get(&holder);
                let is_owed = lease.is_some_and(|lease| !lease.is_ended);
                let units = window.rise(holder, units, over);
                self.let_out(name, units, is_owed);
            }
            Record::Fall { id, units } if window.may_fall(units) => {
                let credited = window.fall(units);
                self.note(Fact::Fell { id, units });
                self.credit(name, credited);
            }
            Record::Fall { id, .. } => self.note(Fact::FallRefused { id }),
            Record::Ended(_) => {}
        }
        self.notice_if_due(0);
    }

    /// Takes back what a process that has ended had leased and neither recorded nor returned.
    pub(crate) fn end(&mut self, holder: Holder) {
        let Some(window) = self.rows.windows.first_mut() else {
            return;
        };
        if window.standing != Some(Standing::Level) {
            return;
        }
        let (name, units) = (window.id, window.take_back(holder));
        self.credit(name, units);
        self.notice_if_due(0);
    }

    /// Sets the only level to what an operator says.
    pub fn set_level(&mut self, units: u64) {
        let Some(window) = self.rows.windows.first_mut() else {
            return;
        };
        window.set_level(units);
        let (window, allotted) = (window.id, window.allotted);
        self.note(Fact::LevelSet { window, allotted });
        self.notice_if_due(0);
    }

    /// Whether a window has no end.
    #[must_use]
    pub fn is_standing(&self, id: WindowId) -> bool {
        self.window(id)
            .is_some_and(|window| window.standing.is_some())
    }

    fn credit(&mut self, window: WindowId, units: u64) {
        if units > 0 {
            self.note(Fact::Credited {
                window,
                generation: 0,
                is_unspent: false,
                units,
            });
        }
    }

    fn let_out(&mut self, window: WindowId, units: u64, is_owed: bool) {
        if units > 0 {
            self.note(Fact::Recorded {
                window,
                units,
                is_owed,
            });
        }
    }

    /// Renews a lease of units in flight, if it still is the one that is named; answers which lease the holder has.
    pub(super) fn renew(
        &mut self,
        place: usize,
        holder: Holder,
        (epoch, in_flight): (u64, u64),
        real_us: u64,
    ) -> u64 {
        let Some(lease) = self.rows.windows[place].leases.get_mut(&holder) else {
            return 0;
        };
        if epoch != 0 && lease.epoch == epoch {
            lease.renewals += 1;
            lease.in_flight = in_flight;
            self.note(Fact::Renewed { holder, real_us });
        }
        self.rows.windows[place]
            .leases
            .get(&holder)
            .map_or(0, |lease| lease.epoch)
    }

    /// Looks at leases of units in flight, and reclaims those that stood still for 40 s.
    pub(super) fn look(&mut self, real_us: u64) {
        let mut looks = Looks::new();
        let mut reclaimed = Vec::new();
        let after_us = if mutant::is(Mutant::ReclaimTooEarly) {
            RECLAIM_US / 2
        } else {
            RECLAIM_US
        };
        for (place, window) in self.rows.windows.iter().enumerate() {
            if window.standing != Some(Standing::Flight) {
                continue;
            }
            for (holder, lease) in &window.leases {
                if lease.epoch == 0 || lease.granted_cum <= lease.returned_cum {
                    continue;
                }
                let key = (window.id, *holder, lease.epoch);
                let mut seen = Seen {
                    renewals: lease.renewals,
                    at_us: real_us,
                    still_us: 0,
                };
                if let Some(before) =
                    (self.looks.get(&key)).filter(|before| before.renewals == lease.renewals)
                {
                    seen.still_us = before.still_us + (real_us - before.at_us).min(STEP_US_MAX);
                }
                if seen.still_us >= after_us {
                    reclaimed.push((place, *holder));
                } else {
                    looks.insert(key, seen);
                }
            }
        }
        self.looks = looks;
        for (place, holder) in reclaimed {
            let window = &mut self.rows.windows[place];
            let lease = window.leases.entry(holder).or_default();
            let units = lease.granted_cum - lease.returned_cum;
            lease.returned_cum = lease.granted_cum;
            lease.epoch += 1;
            lease.in_flight = 0;
            lease.last_give = None;
            window.put_back(units);
            let name = window.id;
            self.credit(name, units);
            self.notice_if_due(place);
        }
    }
}
