//! Reservations of this home, from opening to well after their end, besides the units (those are the engine's).

use std::collections::VecDeque;

use hashbrown::{HashMap, hash_map::Entry};
use quota_core::{Cost, ReservationId};
use quota_proto::Attributes;
use tokio::sync::oneshot;

use crate::refusal::{Answer, Refusal};

/// How long an end is remembered at least, real µs, unless there are too many.
const KEPT_US: u64 = 60_000_000;
/// Ends and expiries remembered.
const KEPT_MAX: usize = 65_536;

/// What is kept of an open reservation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Opened {
    /// What was reserved.
    pub(crate) costs: Vec<Cost>,
    /// Attributes of its usage record.
    pub(crate) attributes: Attributes,
    /// Ledger time at which it expires.
    pub(crate) expires_us: i64,
}

/// How a reservation ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ended {
    /// Released, not settled.
    pub(crate) released: bool,
    /// Units per meter that went back.
    pub(crate) refunded: Vec<Cost>,
    /// Units per meter above the reserve.
    pub(crate) excess: Vec<Cost>,
    /// It had expired.
    pub(crate) expired: bool,
    /// Id of its usage record.
    pub(crate) record_id: String,
}

enum Stage {
    Open(Opened),
    /// Being ended.
    Ending(Ending),
    Ended(Ended),
    /// Expired unsettled; a late settlement is still recorded.
    Expired(Opened),
}

struct Ending {
    opened: Option<Opened>,
    /// It was open, neither expired nor unknown.
    was_open: bool,
    /// These wait for the same outcome.
    waiting: Vec<oneshot::Sender<Answer<Ended>>>,
}

impl Ending {
    const fn of(opened: Option<Opened>, was_open: bool) -> Stage {
        Stage::Ending(Self {
            opened,
            was_open,
            waiting: Vec::new(),
        })
    }
}

/// Where an end finds a reservation.
pub(crate) enum Found {
    /// Ready to be ended; [`Reservations::finish`] or [`Reservations::abandon`] must follow.
    Ready(Option<Opened>),
    /// Somebody is ending it.
    Joined(oneshot::Receiver<Answer<Ended>>),
    /// Ended before.
    Before(Ended),
}

/// Reservations by id.
#[derive(Default)]
pub(crate) struct Reservations {
    stages: HashMap<ReservationId, Stage>,
    open: usize,
    /// (since when, which) of ends and expiries, oldest first.
    order: VecDeque<(u64, ReservationId)>,
}

impl Reservations {
    /// Notes an open reservation.
    pub(crate) fn open(&mut self, id: ReservationId, opened: Opened) {
        self.open = self.open.saturating_add(1);
        self.stages.insert(id, Stage::Open(opened));
    }

    /// Open reservations.
    pub(crate) const fn count(&self) -> usize {
        self.open
    }

    /// Begins to end a reservation, known or not.
    pub(crate) fn begin(&mut self, id: ReservationId) -> Found {
        match self.stages.entry(id) {
            Entry::Vacant(place) => {
                place.insert(Ending::of(None, false));
                Found::Ready(None)
            }
            Entry::Occupied(mut place) => match place.get_mut() {
                Stage::Ended(ended) => Found::Before(ended.clone()),
                Stage::Ending(ending) => {
                    let (sender, receiver) = oneshot::channel();
                    ending.waiting.push(sender);
                    Found::Joined(receiver)
                }
                stage @ (Stage::Open(_) | Stage::Expired(_)) => {
                    let was_open = matches!(stage, Stage::Open(_));
                    let (Stage::Open(opened) | Stage::Expired(opened)) = &*stage else {
                        return Found::Ready(None);
                    };
                    let opened = opened.clone();
                    place.insert(Ending::of(Some(opened.clone()), was_open));
                    Found::Ready(Some(opened))
                }
            },
        }
    }

    /// Remembers how it ended and tells those who joined.
    pub(crate) fn finish(&mut self, id: ReservationId, ended: &Ended, real_us: u64) {
        let before = self.stages.insert(id, Stage::Ended(ended.clone()));
        if let Some(Stage::Ending(ending)) = before {
            if ending.was_open {
                self.open = self.open.saturating_sub(1);
            }
            for sender in ending.waiting {
                let _ = sender.send(Ok(ended.clone()));
            }
        }
        self.remember(id, real_us);
    }

    /// Puts it back as it was and tells those who joined why.
    pub(crate) fn abandon(&mut self, id: ReservationId, refusal: &Refusal) {
        if let Some(Stage::Ending(ending)) = self.stages.remove(&id) {
            if let Some(opened) = ending.opened {
                self.stages.insert(
                    id,
                    if ending.was_open {
                        Stage::Open(opened)
                    } else {
                        Stage::Expired(opened)
                    },
                );
            }
            for sender in ending.waiting {
                let _ = sender.send(Err(refusal.clone()));
            }
        }
    }

    /// Notes that it expired; true = its end is still to be logged.
    pub(crate) fn expire(&mut self, id: ReservationId, real_us: u64) -> bool {
        match self.stages.remove(&id) {
            Some(Stage::Open(opened)) => {
                self.open = self.open.saturating_sub(1);
                self.stages.insert(id, Stage::Expired(opened));
                self.remember(id, real_us);
                true
            }
            Some(other) => {
                self.stages.insert(id, other);
                false
            }
            None => false,
        }
    }

    fn remember(&mut self, id: ReservationId, real_us: u64) {
        self.order.push_back((real_us, id));
        while let Some((since, oldest)) = self.order.front().copied() {
            if self.order.len() <= KEPT_MAX && real_us.saturating_sub(since) < KEPT_US {
                return;
            }
            self.order.pop_front();
            if matches!(
                self.stages.get(&oldest),
                Some(Stage::Ended(_) | Stage::Expired(_))
            ) {
                self.stages.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ReservationId = ReservationId([1; 16]);

    fn opened() -> Opened {
        Opened {
            costs: Vec::new(),
            attributes: Vec::new(),
            expires_us: 9,
        }
    }

    fn ended(record_id: &str) -> Ended {
        Ended {
            record_id: record_id.into(),
            ..Ended::default()
        }
    }

    /// Who comes while it is being ended gets the first one's outcome; who comes later as well.
    #[test]
    fn one_outcome_for_all() {
        let mut all = Reservations::default();
        all.open(ID, opened());
        assert!(matches!(all.begin(ID), Found::Ready(Some(_))));
        let Found::Joined(mut joined) = all.begin(ID) else {
            panic!("not joined")
        };
        all.finish(ID, &ended("r/1"), 0);
        assert_eq!(Ok(ended("r/1")), joined.try_recv().unwrap());
        let Found::Before(before) = all.begin(ID) else {
            panic!("forgotten")
        };
        assert_eq!((ended("r/1"), 0), (before, all.count()));
    }

    /// An end that failed leaves the reservation open for the next try.
    #[test]
    fn failed_ends_can_be_tried_again() {
        let mut all = Reservations::default();
        all.open(ID, opened());
        assert!(matches!(all.begin(ID), Found::Ready(_)));
        all.abandon(ID, &Refusal::full());
        assert!(matches!(all.begin(ID), Found::Ready(Some(_))));
        assert_eq!(1, all.count());
    }

    /// An expiry in the middle of a settlement changes nothing; otherwise it is logged once.
    #[test]
    fn expiry_never_overtakes_a_settlement() {
        let mut all = Reservations::default();
        all.open(ID, opened());
        let _ready = all.begin(ID);
        assert!(!all.expire(ID, 0));
        all.abandon(ID, &Refusal::full());
        assert!(all.expire(ID, 0));
        assert!(!all.expire(ID, 0));
        assert!(matches!(all.begin(ID), Found::Ready(Some(_))));
    }

    /// Ends are forgotten after their time, open ones never.
    #[test]
    fn ends_are_forgotten_open_ones_never() {
        let mut all = Reservations::default();
        let other = ReservationId([2; 16]);
        all.open(ID, opened());
        all.open(other, opened());
        let _ready = all.begin(ID);
        all.finish(ID, &ended("r/1"), 0);
        let _ready = all.begin(ReservationId([3; 16]));
        all.finish(ReservationId([3; 16]), &ended("r/3"), KEPT_US);
        assert!(matches!(all.begin(ID), Found::Ready(None)));
        assert!(matches!(all.begin(other), Found::Ready(Some(_))));
    }
}
