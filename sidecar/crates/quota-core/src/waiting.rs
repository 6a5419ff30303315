//! Checks that wait for units or for a tenant.

use std::{cmp::Reverse, collections::BinaryHeap};

use foldhash::fast::FixedState;

use crate::{
    check::aside::Turn,
    engine::Ticket,
    hash::Map,
    request::CheckRequest,
    slab::{Key, Slab},
};

/// A check that waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// Its owner's name for it.
    pub(crate) ticket: Ticket,
    /// What it asks.
    pub(crate) request: CheckRequest,
    /// When it came, among those that wait.
    pub(crate) turn: Turn,
    /// Real time at which it began.
    pub(crate) since_us: u64,
    /// Real time at which it is decided with what is known then.
    pub(crate) deadline_us: u64,
    /// Buckets in whose queues it stands.
    pub(crate) queues: Vec<Key>,
    /// Token buckets from which units were asked for it.
    pub(crate) lent: Vec<Key>,
    /// Buckets that were asked for a unit of its value.
    pub(crate) brought: Vec<Key>,
    /// Buckets in which units are set aside for it.
    pub(crate) aside: Vec<Key>,
}

/// All checks that wait.
#[derive(Debug)]
pub(crate) struct Waiting {
    slab: Slab<Waiter>,
    tickets: Map<Ticket, Key>,
    deadlines: BinaryHeap<Reverse<(u64, Key)>>,
    /// Of the check that came last.
    turn: Turn,
}

impl Waiting {
    /// Nobody waits.
    pub(crate) const fn new(state: FixedState) -> Self {
        Self {
            slab: Slab::new(),
            tickets: Map::with_hasher(state),
            deadlines: BinaryHeap::new(),
            turn: Turn::LAST,
        }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    /// Takes a check in, and gives it its turn.
    pub(crate) fn insert(&mut self, mut waiter: Waiter) -> Key {
        self.turn = self.turn.next();
        waiter.turn = self.turn;
        let (ticket, deadline_us) = (waiter.ticket, waiter.deadline_us);
        let key = self.slab.insert(waiter);
        self.tickets.insert(ticket, key);
        self.deadlines.push(Reverse((deadline_us, key)));
        key
    }

    /// A check that waits.
    pub(crate) fn get(&self, key: Key) -> Option<&Waiter> {
        self.slab.get(key)
    }

    /// A check that waits.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Waiter> {
        self.slab.get_mut(key)
    }

    /// Lets a check wait longer, never shorter.
    pub(crate) fn extend(&mut self, key: Key, deadline_us: u64) {
        if let Some(waiter) = self.slab.get_mut(key)
            && waiter.deadline_us < deadline_us
        {
            waiter.deadline_us = deadline_us;
            self.deadlines.push(Reverse((deadline_us, key)));
        }
    }

    /// Ends the wait.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Waiter> {
        let waiter = self.slab.remove(key)?;
        self.tickets.remove(&waiter.ticket);
        Some(waiter)
    }

    /// The check of a ticket.
    pub(crate) fn by_ticket(&self, ticket: Ticket) -> Option<Key> {
        self.tickets.get(&ticket).copied()
    }

    /// The next check whose time is up.
    pub(crate) fn pop_due(&mut self, real_us: u64) -> Option<Key> {
        while let Some(Reverse((due_us, key))) = self.deadlines.peek().copied() {
            let is_live = self
                .slab
                .get(key)
                .is_some_and(|waiter| waiter.deadline_us == due_us);
            if is_live && due_us > real_us {
                return None;
            }
            self.deadlines.pop();
            if is_live {
                return Some(key);
            }
        }
        None
    }

    /// Real time of the next deadline; never late.
    pub(crate) fn next_due_us(&self) -> Option<u64> {
        self.deadlines.peek().map(|Reverse((due_us, _))| *due_us)
    }
}
