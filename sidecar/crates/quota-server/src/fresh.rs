//! The records of one call that are new: they go into the log together, or none of them does.

use std::{borrow::Cow, ops::Range};

use hashbrown::HashMap;
use quota_core::Now;
use quota_proto::{
    logged::Logged,
    quota::{RecordOutcome, RecordResult},
    usage::ParsedRecord,
};
use usage_log::{Append, Hash, Position};

use crate::{
    directory::{Directory, Standing},
    handlers::counted::Use,
    ids::UUID,
    recent::{Key, Recent, Seen},
    refusal::Answer,
    service::Service,
};

/// Bytes that most records take in the log.
const USUAL_BYTES: usize = 160;

/// What tells what becomes of a record that was checked.
pub(crate) struct Known<'a> {
    pub(crate) service: &'a Service,
    pub(crate) directory: &'a Directory,
    pub(crate) recent: &'a Recent,
    pub(crate) now: Now,
    /// The caller waits for the ledger's word.
    pub(crate) to_ledger: bool,
}

/// Where the record stands that a result is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// It is none.
    Nowhere,
    /// In the log, since an earlier call.
    Logged(Position),
    /// Among the new ones of this call.
    Fresh(usize),
}

/// What is told of a record.
#[derive(Debug)]
pub(crate) enum Told {
    /// What the record with an id is, see [`Appended::id`].
    Of {
        outcome: RecordOutcome,
        id: Range<usize>,
        place: Place,
    },
    /// It was refused.
    Refused(Box<RecordResult>),
}

impl Told {
    const fn of(outcome: RecordOutcome, id: Range<usize>, place: Place) -> Self {
        Self::Of { outcome, id, place }
    }
}

/// A new record.
struct Entry {
    payload: Range<usize>,
    content_hash: Hash,
    /// What tells it from others of its id here: the hash of what came, which no turn of the tenant's key changes. Never
    /// leaves this process.
    identity: Hash,
    /// Where its id is the caller's and was not seen before.
    key: Option<Key>,
}

/// Where one record at a time is put in order.
#[derive(Default)]
struct Desk<'a> {
    quantities: Vec<(&'a str, i64)>,
    attributes: Vec<(&'a str, Cow<'a, str>)>,
}

impl<'a> Desk<'a> {
    /// Puts there what is logged of a record: no attributes that nobody declared.
    fn put(&mut self, record: &ParsedRecord<'a>, standings: &[Standing]) {
        self.quantities.clear();
        self.quantities.extend(record.quantities());
        self.quantities.sort_unstable();
        let stored = record
            .attributes()
            .zip(standings)
            .filter(|(_, standing)| **standing != Standing::Dropped);
        self.attributes.clear();
        self.attributes
            .extend(stored.map(|((name, value), _)| (name, value.into())));
    }

    /// Puts pseudonyms in place of what the record's meters hide; answers whether there was anything.
    ///
    /// # Errors
    /// The tenant's key of pseudonyms has not come.
    fn hide(
        &mut self,
        directory: &Directory,
        tenant: &str,
        standings: &[Standing],
    ) -> Answer<bool> {
        let mut is_hidden = false;
        let stored = standings
            .iter()
            .filter(|standing| **standing != Standing::Dropped);
        for ((name, value), standing) in self.attributes.iter_mut().zip(stored) {
            if *standing == Standing::Hidden {
                *value = directory.pseudonym(tenant, name, value)?.into();
                is_hidden = true;
            }
        }
        Ok(is_hidden)
    }

    fn logged<'l>(
        &'l self,
        record: &ParsedRecord<'l>,
        id: &'l str,
        received_us: i64,
    ) -> Logged<'l> {
        Logged {
            tenant: record.tenant,
            id,
            event_time_us: record.event_time_us.unwrap_or(received_us),
            received_us,
            quantities: &self.quantities,
            attributes: &self.attributes,
        }
    }
}

/// New records of one call.
pub(crate) struct Fresh<'a> {
    payloads: Vec<u8>,
    entries: Vec<Entry>,
    ids: String,
    named: HashMap<Key, usize>,
    uses: Vec<Use>,
    desk: Desk<'a>,
    scratch: Vec<u8>,
}

impl<'a> Fresh<'a> {
    /// Begins with none, of a call of so many records.
    pub(crate) fn of(count: usize) -> Self {
        Self {
            payloads: Vec::with_capacity(count.saturating_mul(USUAL_BYTES)),
            entries: Vec::with_capacity(count),
            ids: String::with_capacity(count.saturating_mul(UUID)),
            named: HashMap::new(),
            uses: Vec::new(),
            desk: Desk::default(),
            scratch: Vec::new(),
        }
    }

    /// Takes in a record that was checked, unless it is known already: with an id, without attributes that nobody
    /// declared, and with pseudonyms of those that are hidden, as `standings` says of each. What is told of it holds once
    /// all of them are appended.
    ///
    /// # Errors
    /// There is no randomness for an id; the tenant's key of pseudonyms has not come. Nothing was taken in.
    pub(crate) fn take(
        &mut self,
        record: &ParsedRecord<'a>,
        standings: &[Standing],
        known: &Known<'_>,
    ) -> Answer<Told> {
        let (is_named, received_us) = (!record.id.is_empty(), known.now.ledger_us);
        let start = self.ids.len();
        if is_named {
            self.ids.push_str(record.id);
        } else {
            known.service.add_record_id(known.now, &mut self.ids)?;
        }
        let (id, name) = (
            start..self.ids.len(),
            self.ids.get(start..).unwrap_or_default(),
        );
        self.desk.put(record, standings);
        let came = self.desk.logged(record, name, received_us);
        let identity = came.content_hash(&mut self.scratch);
        let is_hidden = self.desk.hide(known.directory, record.tenant, standings)?;
        let logged = self.desk.logged(record, name, received_us);
        let content_hash = if is_hidden {
            logged.content_hash(&mut self.scratch)
        } else {
            identity
        };
        let seen = is_named.then(|| known.recent.look(record.tenant, record.id, &identity));
        let (seen, place) = match seen {
            Some(Seen::New(key)) => self.look(key, &identity),
            Some(Seen::Same(position)) => (seen, Place::Logged(position)),
            other => (other, Place::Nowhere),
        };
        if place != Place::Nowhere {
            return Ok(Told::of(RecordOutcome::Duplicate, id, place));
        }
        let is_other = seen == Some(Seen::Other);
        // The ledger may have refused what was seen here first: who waits for it hears its word.
        if is_other && !known.to_ledger {
            return Ok(Told::of(RecordOutcome::Conflict, id, place));
        }
        if record.counts && !is_other {
            self.uses.push(Use::of(record));
        }
        let key = match seen {
            Some(Seen::New(key)) => Some(key),
            _ => None,
        };
        let (at, start) = (self.entries.len(), self.payloads.len());
        logged.encode(&mut self.payloads);
        self.entries.push(Entry {
            payload: start..self.payloads.len(),
            content_hash,
            identity,
            key,
        });
        self.named.extend(key.map(|key| (key, at)));
        Ok(Told::of(RecordOutcome::Recorded, id, Place::Fresh(at)))
    }

    /// Looks among the call's own records for one that no earlier call had.
    fn look(&self, key: Key, identity: &Hash) -> (Option<Seen>, Place) {
        let twin = self.named.get(&key).copied();
        match twin.and_then(|at| Some((at, self.entries.get(at)?))) {
            None => (Some(Seen::New(key)), Place::Nowhere),
            Some((at, twin)) if twin.identity == *identity => (None, Place::Fresh(at)),
            Some(_) => (Some(Seen::Other), Place::Nowhere),
        }
    }

    /// Gives what to append.
    pub(crate) fn entries(&self) -> Vec<Append<'_>> {
        let entry = |entry: &Entry| Append::Usage {
            payload: self.payloads.get(entry.payload.clone()).unwrap_or_default(),
            content_hash: entry.content_hash,
            ends: None,
        };
        self.entries.iter().map(entry).collect()
    }

    /// Remembers the callers' ids, now that their records are appended.
    pub(crate) fn remember(&self, recent: &mut Recent, positions: &[Position]) {
        for (entry, position) in self.entries.iter().zip(positions) {
            if let Some(key) = entry.key {
                recent.remember(key, entry.identity, *position);
            }
        }
    }
}

/// What came of a call's records.
pub(crate) struct Appended {
    /// What is told of each record.
    pub(crate) told: Vec<Told>,
    ids: String,
    positions: Vec<Position>,
    /// The last position that something told rests on.
    pub(crate) last: Option<Position>,
    /// Ids that this call brought.
    pub(crate) fresh: Vec<Key>,
    /// Records that it brought.
    pub(crate) count: u64,
    /// What is to be taken from limits once they are durable.
    pub(crate) uses: Vec<Use>,
}

impl Appended {
    /// Puts positions to what is told.
    pub(crate) fn of(told: Vec<Told>, positions: Vec<Position>, fresh: Fresh<'_>) -> Self {
        let mut appended = Self {
            told,
            ids: fresh.ids,
            last: None,
            fresh: fresh.entries.iter().filter_map(|entry| entry.key).collect(),
            count: u64::try_from(positions.len()).unwrap_or(u64::MAX),
            positions,
            uses: fresh.uses,
        };
        let rests_on = |told: &Told| match told {
            Told::Of { place, .. } => appended.position(*place),
            Told::Refused(_) => None,
        };
        appended.last = appended.told.iter().filter_map(rests_on).max();
        appended
    }

    /// Tells where in the log a record stands.
    pub(crate) fn position(&self, place: Place) -> Option<Position> {
        match place {
            Place::Nowhere => None,
            Place::Logged(position) => Some(position),
            Place::Fresh(at) => self.positions.get(at).copied(),
        }
    }

    /// Gives an id that is told of.
    pub(crate) fn id(&self, id: &Range<usize>) -> &str {
        self.ids.get(id.clone()).unwrap_or_default()
    }
}
