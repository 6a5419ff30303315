//! The records of one call that are new: they go into the log together, or none of them does.

use std::ops::Range;

use hashbrown::HashMap;
use prost::Message as _;
use quota_core::Now;
use quota_proto::{
    content::raw_content_hash,
    quota::{RecordOutcome, RecordResult},
    raw::{LoggedUsage, Text as _},
    usage::ParsedRecord,
};
use usage_log::{Append, Hash, Position};

use crate::{
    directory::{Directory, Standing},
    handlers::counted::Use,
    recent::{Key, Recent, Seen},
    refusal::{Answer, Refusal},
    service::Service,
};

/// A record as it would be logged.
pub(crate) struct Draft {
    logged: LoggedUsage,
    content_hash: Hash,
    /// What tells it from others of its id here: the hash of what came, which no turn of the tenant's key changes. Never
    /// leaves this process.
    identity: Hash,
    /// Its id is the caller's.
    is_named: bool,
    /// What is to be taken from limits.
    used: Option<Use>,
}

impl Draft {
    /// Makes what is logged of a record that was checked: with an id, without attributes that nobody declared, and with
    /// pseudonyms of those that are hidden.
    ///
    /// # Errors
    /// There is no randomness for an id; the tenant's key of pseudonyms has not come.
    pub(crate) fn of(
        service: &Service,
        directory: &Directory,
        mut record: ParsedRecord,
        now: Now,
    ) -> Answer<Self> {
        let used = record.counts.then(|| Use::of(&record));
        let is_named = !record.id.is_empty();
        let id = if is_named {
            record.id.text().to_owned()
        } else {
            service.record_id(now)?
        };
        let meters = record
            .quantities
            .iter()
            .map(|quantity| quantity.meter.text());
        let attributes = &mut record.attributes;
        attributes
            .retain(|pair| directory.standing(&meters, pair.name.text()) != Standing::Dropped);
        let mut logged = record.logged(id, now.ledger_us);
        let identity = raw_content_hash(&logged);
        let content_hash = if hide(directory, &mut logged)? {
            raw_content_hash(&logged)
        } else {
            identity
        };
        Ok(Self {
            logged,
            content_hash,
            identity,
            is_named,
            used,
        })
    }
}

/// Puts pseudonyms in place of what a record's meters hide; answers whether there was anything.
fn hide(directory: &Directory, logged: &mut LoggedUsage) -> Answer<bool> {
    let mut is_hidden = false;
    let meters = logged
        .quantities
        .iter()
        .map(|quantity| quantity.meter.text());
    for pair in &mut logged.attributes {
        if directory.standing(&meters, pair.name.text()) == Standing::Hidden {
            let (tenant, name) = (logged.tenant.text(), pair.name.text());
            pair.value = directory.pseudonym(tenant, name, pair.value.text())?.into();
            is_hidden = true;
        }
    }
    Ok(is_hidden)
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

/// A new record.
struct Entry {
    payload: Range<usize>,
    content_hash: Hash,
    identity: Hash,
    /// Where its id is the caller's and was not seen before.
    key: Option<Key>,
}

/// New records of one call.
#[derive(Default)]
pub(crate) struct Fresh {
    payloads: Vec<u8>,
    entries: Vec<Entry>,
    named: HashMap<Key, usize>,
    uses: Vec<Use>,
}

impl Fresh {
    /// Takes a record in unless it is known already; tells its result, which holds once all of them are appended.
    ///
    /// # Errors
    /// It can't be encoded.
    pub(crate) fn take(
        &mut self,
        draft: Draft,
        recent: &Recent,
        to_ledger: bool,
    ) -> Answer<(RecordResult, Place)> {
        let Draft {
            logged,
            content_hash,
            identity,
            is_named,
            used,
        } = draft;
        let seen = is_named.then(|| recent.look(logged.tenant.text(), &logged.id, &identity));
        let (seen, place) = match seen {
            Some(Seen::New(key)) => self.look(key, &identity),
            Some(Seen::Same(position)) => (seen, Place::Logged(position)),
            other => (other, Place::Nowhere),
        };
        let result = |outcome: RecordOutcome, id: String| RecordResult {
            outcome: outcome.into(),
            id,
            ..RecordResult::default()
        };
        if place != Place::Nowhere {
            return Ok((result(RecordOutcome::Duplicate, logged.id), place));
        }
        // The ledger may have refused what was seen here first: who waits for it hears its word.
        if seen == Some(Seen::Other) && !to_ledger {
            return Ok((result(RecordOutcome::Conflict, logged.id), place));
        }
        if seen != Some(Seen::Other) {
            self.uses.extend(used);
        }
        let key = match seen {
            Some(Seen::New(key)) => Some(key),
            _ => None,
        };
        let place = Place::Fresh(self.push(&logged, content_hash, identity, key)?);
        Ok((result(RecordOutcome::Recorded, logged.id), place))
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

    fn push(
        &mut self,
        logged: &LoggedUsage,
        content_hash: Hash,
        identity: Hash,
        key: Option<Key>,
    ) -> Answer<usize> {
        let (at, start) = (self.entries.len(), self.payloads.len());
        logged
            .encode(&mut self.payloads)
            .map_err(|_| Refusal::internal())?;
        self.entries.push(Entry {
            payload: start..self.payloads.len(),
            content_hash,
            identity,
            key,
        });
        self.named.extend(key.map(|key| (key, at)));
        Ok(at)
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
    /// Each record's result, and where in the log the record stands that it is about.
    pub(crate) results: Vec<(RecordResult, Option<Position>)>,
    /// The last position that a result rests on.
    pub(crate) last: Option<Position>,
    /// Ids that this call brought.
    pub(crate) fresh: Vec<Key>,
    /// Records that it brought.
    pub(crate) count: u64,
    /// What is to be taken from limits once they are durable.
    pub(crate) uses: Vec<Use>,
}

impl Appended {
    /// Puts positions to the results.
    pub(crate) fn of(
        results: Vec<(RecordResult, Place)>,
        positions: &[Position],
        fresh: Fresh,
    ) -> Self {
        let placed = |place| match place {
            Place::Nowhere => None,
            Place::Logged(position) => Some(position),
            Place::Fresh(at) => positions.get(at).copied(),
        };
        let results: Vec<_> = results
            .into_iter()
            .map(|(result, place)| (result, placed(place)))
            .collect();
        Self {
            last: results.iter().filter_map(|(_, position)| *position).max(),
            results,
            count: u64::try_from(positions.len()).unwrap_or(u64::MAX),
            fresh: fresh.entries.iter().filter_map(|entry| entry.key).collect(),
            uses: fresh.uses,
        }
    }
}
