//! Entries of the log as columns of the wire.

use std::{collections::HashMap, hash::Hash};

use prost::Message as _;
use quota_proto::{
    bridge::LoggedUsage,
    content::content_hash,
    ledger::{LevelChange, LevelName, UsageColumns, UsageHole},
};
use usage_log::{Batch, EntryBody};

/// A payload that is no record.
#[derive(Debug)]
pub(super) struct BadEntry {
    pub(super) seq: u64,
    pub(super) cause: prost::DecodeError,
}

/// Encodes a batch: records as columns, holes beside them.
pub(super) fn encode(batch: &Batch) -> Result<(UsageColumns, Vec<UsageHole>), BadEntry> {
    let mut columns = Columns::default();
    let mut holes = Vec::new();
    for entry in &batch.entries {
        match &entry.body {
            EntryBody::Usage(payload) => {
                let record = LoggedUsage::decode(payload.as_slice());
                columns.push(record.map_err(|cause| BadEntry {
                    seq: entry.seq,
                    cause,
                })?);
            }
            EntryBody::Hole(hole) => holes.push(UsageHole {
                first_seq: hole.first_seq,
                last_seq: hole.last_seq,
                reason: hole.reason.clone().into_owned(),
                content_hash: Vec::new(),
            }),
        }
    }
    let Columns {
        wire: mut columns,
        tenants,
        meters,
        names,
        values,
        homes,
        levels,
        holders,
        ..
    } = columns;
    columns.tenants = tenants.words;
    columns.meters = meters.words;
    columns.attribute_names = names.words;
    columns.attribute_values = values.words;
    columns.homes = homes.words;
    // Most batches end no reservation of another home.
    if columns.homes.is_empty() {
        columns.home.clear();
    }
    columns.level_names = levels.words;
    columns.level_holders = holders.words;
    Ok((columns, holes))
}

/// Encodes a batch of one entry that the ledger can't take: as its content hash, which stands for it in h.
pub(super) fn skip(
    batch: &Batch,
    reason: &str,
) -> Result<(UsageColumns, Vec<UsageHole>), BadEntry> {
    let Some(entry) = batch.entries.first() else {
        return encode(batch);
    };
    let EntryBody::Usage(payload) = &entry.body else {
        return encode(batch);
    };
    let record = LoggedUsage::decode(payload.as_slice()).map_err(|cause| BadEntry {
        seq: entry.seq,
        cause,
    })?;
    let hole = UsageHole {
        first_seq: entry.seq,
        last_seq: entry.seq,
        reason: reason.to_owned(),
        content_hash: content_hash(&record).to_vec(),
    };
    Ok((UsageColumns::default(), vec![hole]))
}

#[derive(Default)]
struct Columns {
    wire: UsageColumns,
    tenants: Dictionary<String>,
    meters: Dictionary<String>,
    names: Dictionary<String>,
    values: Dictionary<String>,
    homes: Dictionary<Vec<u8>>,
    levels: Dictionary<LevelName>,
    holders: Dictionary<Vec<u8>>,
    event_time_us: i64,
    received_us: i64,
}

impl Columns {
    fn push(&mut self, record: LoggedUsage) {
        let columns = &mut self.wire;
        let place = length(columns.ids.len());
        columns.ids.push(record.id);
        columns.tenant.push(self.tenants.index(record.tenant));
        // Differences wrap: adding them up with wrapping gives every time back.
        columns
            .event_time_us
            .push(record.event_time_us.wrapping_sub(self.event_time_us));
        columns
            .received_us
            .push(record.received_us.wrapping_sub(self.received_us));
        (self.event_time_us, self.received_us) = (record.event_time_us, record.received_us);
        columns.flags.push(record.flags);
        columns.quantity_count.push(length(record.quantities.len()));
        columns
            .attribute_count
            .push(length(record.attributes.len()));
        for quantity in record.quantities {
            columns.meter.push(self.meters.index(quantity.meter));
            columns.units.push(quantity.units);
        }
        for attribute in record.attributes {
            columns
                .attribute_name
                .push(self.names.index(attribute.name));
            columns
                .attribute_value
                .push(self.values.index(attribute.value));
        }
        columns.home.push(if record.home.is_empty() {
            0
        } else {
            self.homes.index(record.home.to_vec()).saturating_add(1)
        });
        for level in record.levels {
            let name = LevelName {
                tenant: level.tenant,
                limit: level.limit,
                key_hash: level.key_hash.to_vec(),
            };
            columns.level_changes.push(LevelChange {
                record: place,
                level: self.levels.index(name),
                holder: self.holders.index(record.holder.to_vec()),
                units: level.units,
                over: level.over,
            });
        }
    }
}

/// Words in the order in which they came first.
struct Dictionary<T> {
    words: Vec<T>,
    places: HashMap<T, u32>,
}

impl<T> Default for Dictionary<T> {
    fn default() -> Self {
        Self {
            words: Vec::new(),
            places: HashMap::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Dictionary<T> {
    fn index(&mut self, word: T) -> u32 {
        if let Some(place) = self.places.get(&word) {
            return *place;
        }
        let place = length(self.words.len());
        self.words.push(word.clone());
        self.places.insert(word, place);
        place
    }
}

/// Converts a count that the bounds of a batch keep small.
fn length(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
