//! Live state of one limit for one key.

pub(crate) mod balance;
pub(crate) mod demand;
pub(crate) mod saved;
pub(crate) mod shard;
pub(crate) mod source;
pub(crate) mod token;
pub(crate) mod values;
pub(crate) mod window;

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::{
    bucket::{demand::Demand, token::Tokens, window::Window},
    check::aside::{Aside, Turn},
    hash::key_hash,
    id::KeyHash,
    links::Links,
    proof::Sent,
    request::Units,
    slab::{Key, Slab},
    time::Now,
};

/// A first ask for a window that is not known yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    /// The window contains this ledger time.
    pub(crate) at_us: i64,
    /// The ask.
    pub(crate) sent: Sent,
    /// Its number.
    pub(crate) request_seq: u64,
    /// It is under way; else its outcome is unknown.
    pub(crate) is_flying: bool,
    /// It was sent before, and nobody knows what came of that.
    pub(crate) is_repeat: bool,
}

/// Live state of one limit for one key.
#[allow(clippy::struct_excessive_bools)] // independent facts, not one state
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Index of the limit.
    pub(crate) limit: u32,
    /// Its place in the limit's list.
    pub(crate) place: u32,
    /// Key as others know it.
    pub(crate) key_hash: KeyHash,
    /// Key values in the rule's order.
    pub(crate) key_values: Box<[Box<str>]>,
    /// The window that is on.
    pub(crate) current: Option<Window>,
    /// The next one, leased early.
    pub(crate) next: Option<Box<Window>>,
    /// A first ask for a window.
    pub(crate) opening: Option<Opening>,
    /// State as a token bucket.
    pub(crate) tokens: Option<Box<Tokens>>,
    /// Sizes leases.
    pub(crate) demand: Demand,
    /// Units that all holders together are to keep apart, as the rule has it.
    pub(crate) apart: Units,
    /// Checks that wait for units, with their cost here, first come first.
    pub(crate) waiters: VecDeque<(Key, Units)>,
    /// Units set aside for checks that wait for another limit; `None` = none.
    pub(crate) aside: Option<Box<Aside>>,
    /// Distinct values are counted: its units are never ahead of values.
    pub(crate) counts_values: bool,
    /// More units are being asked for although nobody waits; so many steps are left to get them.
    pub(crate) ahead_steps: u8,
    /// Such an ask is for so many units at least.
    pub(crate) ahead: Units,
    /// Notices that units may be there.
    pub(crate) notices: u32,
    /// The ledger refused to answer: don't ask before this real time.
    pub(crate) refused_until_us: u64,
    /// Something happened that its waiters want to know.
    pub(crate) is_dirty: bool,
    /// Use is to be reported.
    pub(crate) has_moved: bool,
    /// It was used lately, so that it is looked after every second.
    pub(crate) is_active: bool,
    /// Real time before which nobody is asked again for an answer that was lost.
    pub(crate) again_us: u64,
    /// Real time of the last call that asked.
    pub(crate) asked_us: u64,
    /// Real time of the last use.
    pub(crate) used_us: u64,
    /// Real time at which it is looked after next.
    pub(crate) due_us: u64,
    /// (own use, real time) when it was last looked after.
    pub(crate) mark: (Units, u64),
    /// Units used in the second before that.
    pub(crate) second_use: Units,
    /// Largest call in this window or the one before.
    pub(crate) largest: Units,
    /// Largest call in this window.
    pub(crate) largest_lately: Units,
    /// What is held goes back as soon as nothing is under way, all but one second of use.
    pub(crate) recalled: bool,
    /// Channel that it follows.
    pub(crate) channel: Option<Arc<str>>,
    /// Units admitted beyond the limit before the window was known.
    pub(crate) over_early: Units,
    /// Ledger time for which an early lease was asked.
    pub(crate) early_at_us: i64,
    /// Concurrency: so many units go back as soon as they are free, because somebody else lacks them.
    pub(crate) lacking_elsewhere: Units,
}

impl Bucket {
    fn new(limit: u32, place: u32, key_values: Box<[Box<str>]>) -> Self {
        Self {
            limit,
            place,
            key_hash: key_hash(&key_values),
            key_values,
            current: None,
            next: None,
            opening: None,
            tokens: None,
            demand: Demand::default(),
            apart: 0,
            waiters: VecDeque::new(),
            aside: None,
            counts_values: false,
            ahead_steps: 0,
            ahead: 0,
            notices: 0,
            refused_until_us: 0,
            is_dirty: false,
            has_moved: false,
            is_active: false,
            again_us: 0,
            asked_us: 0,
            used_us: 0,
            due_us: u64::MAX,
            mark: (0, 0),
            second_use: 0,
            largest: 0,
            largest_lately: 0,
            recalled: false,
            channel: None,
            over_early: 0,
            early_at_us: i64::MIN,
            lacking_elsewhere: 0,
        }
    }

    /// Units that a call of this turn leaves alone, because they are set aside for earlier ones.
    pub(crate) fn set_aside(&self, turn: Turn) -> Units {
        self.aside.as_ref().map_or(0, |aside| aside.before(turn))
    }

    /// Takes note of how large a call is.
    pub(crate) fn note_size(&mut self, units: Units) {
        self.largest = self.largest.max(units);
        self.largest_lately = self.largest_lately.max(units);
    }

    /// Forgets the calls of the window before the one that ends.
    pub(crate) const fn forget_sizes(&mut self) {
        self.largest = self.largest_lately;
        self.largest_lately = 0;
    }

    /// Whether asking the ledger about this bucket is of no use now: it is known to be down, or has just refused.
    pub(crate) const fn is_ledger_away(&self, links: &Links, now: Now) -> bool {
        links.ledger.is_down(now.real_us) || now.real_us < self.refused_until_us
    }

    /// Real µs that the window of this name is still on.
    pub(crate) fn left_us(&mut self, now: Now, id: crate::WindowId) -> u64 {
        self.window_mut(id)
            .and_then(|window| now.real_us_until(window.info.end_us))
            .unwrap_or(u64::MAX)
    }

    /// The window of this name, current or next.
    pub(crate) fn window_mut(&mut self, id: crate::WindowId) -> Option<&mut Window> {
        if self
            .current
            .as_ref()
            .is_some_and(|window| window.info.id == id)
        {
            return self.current.as_mut();
        }
        self.next
            .as_deref_mut()
            .filter(|window| window.info.id == id)
    }

    /// Whether anything is asked for and not answered yet.
    pub(crate) fn has_flight(&self) -> bool {
        let flying = |window: &Window| window.flight.is_some() || window.returning;
        self.opening.is_some_and(|opening| opening.is_flying)
            || self.current.as_ref().is_some_and(flying)
            || self.next.as_deref().is_some_and(flying)
            || self
                .tokens
                .as_ref()
                .is_some_and(|tokens| tokens.flight.is_some())
    }
}

/// All buckets, found by limit and key values.
#[derive(Debug)]
pub(crate) struct Buckets {
    slab: Slab<Box<Bucket>>,
    index: HashTable<Key>,
    state: FixedState,
}

impl Buckets {
    /// Makes an empty one.
    pub(crate) fn new(state: FixedState) -> Self {
        Self {
            slab: Slab::new(),
            index: HashTable::with_capacity(1_024),
            state,
        }
    }

    fn hash<'a>(state: &FixedState, limit: u32, values: impl Iterator<Item = &'a str>) -> u64 {
        let mut hasher = state.build_hasher();
        hasher.write_u32(limit);
        for value in values {
            value.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The bucket of a limit for these key values.
    pub(crate) fn find<'a>(
        &self,
        limit: u32,
        values: &(impl Iterator<Item = &'a str> + Clone),
    ) -> Option<Key> {
        let hash = Self::hash(&self.state, limit, values.clone());
        let same = |key: &Key| {
            self.slab.get(*key).is_some_and(|bucket| {
                bucket.limit == limit
                    && bucket
                        .key_values
                        .iter()
                        .map(|value| &**value)
                        .eq(values.clone())
            })
        };
        self.index.find(hash, same).copied()
    }

    /// Makes the bucket of a limit for these key values; `find` has seen that there is none.
    pub(crate) fn insert(&mut self, limit: u32, place: u32, values: Box<[Box<str>]>) -> Key {
        let hash = Self::hash(&self.state, limit, values.iter().map(|value| &**value));
        let key = self
            .slab
            .insert(Box::new(Bucket::new(limit, place, values)));
        let (slab, state) = (&self.slab, &self.state);
        self.index.insert_unique(hash, key, |key| {
            slab.get(*key).map_or(0, |bucket| {
                Self::hash(
                    state,
                    bucket.limit,
                    bucket.key_values.iter().map(|value| &**value),
                )
            })
        });
        key
    }

    /// The bucket, while it is there.
    pub(crate) fn get(&self, key: Key) -> Option<&Bucket> {
        self.slab.get(key).map(|bucket| &**bucket)
    }

    /// The bucket, while it is there.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Bucket> {
        self.slab.get_mut(key).map(|bucket| &mut **bucket)
    }

    /// Forgets a bucket.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Box<Bucket>> {
        let bucket = self.slab.remove(key)?;
        let hash = Self::hash(
            &self.state,
            bucket.limit,
            bucket.key_values.iter().map(|value| &**value),
        );
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == key) {
            entry.remove();
        }
        Some(bucket)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    /// The bucket in a slot, and how many slots there are.
    pub(crate) fn at(&self, index: u32) -> (Option<Key>, u32) {
        self.slab.at(index)
    }

    /// All buckets in slot order.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.slab.keys()
    }
}
