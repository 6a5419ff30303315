//! Ids of usage records that this sidecar recorded lately, to tell duplicates and conflicts at once.
//!
//! Bounded and in memory: what it has forgotten, the ledger still tells apart.

use std::collections::VecDeque;

use hashbrown::HashMap;
use usage_log::{Hash, Position};

use crate::fingerprint::Fingerprints;

/// Ids remembered.
const IDS_MAX: usize = 262_144;

/// Names a record in the map.
pub(crate) type Key = (u64, u64);

/// What a record is to its predecessors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// Not seen.
    New(Key),
    /// The same record; durable when this position is.
    Same(Position),
    /// Another record under the same id.
    Other,
}

/// Content hashes by (tenant, id).
#[derive(Default)]
pub(crate) struct Recent {
    fingerprints: Fingerprints,
    ids: HashMap<Key, (Hash, Position)>,
    order: VecDeque<Key>,
}

impl Recent {
    /// Looks a record up.
    pub(crate) fn look(&self, tenant: &str, id: &str, content: &Hash) -> Seen {
        let key = self.fingerprints.of(&(tenant, id));
        match self.ids.get(&key) {
            None => Seen::New(key),
            Some((known, position)) if known == content => Seen::Same(*position),
            Some(_) => Seen::Other,
        }
    }

    /// Remembers a record that was appended.
    pub(crate) fn remember(&mut self, key: Key, content: Hash, position: Position) {
        if self.ids.insert(key, (content, position)).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > IDS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.ids.remove(&oldest);
            }
        }
    }

    /// Forgets a record that did not become durable.
    pub(crate) fn forget(&mut self, key: Key) {
        // Its place in the order stays: it only makes another id go a little earlier.
        self.ids.remove(&key);
    }
}
