//! A small, obvious ledger: keeps producers and records, refuses what it must, and can be set back.

use std::collections::{BTreeMap, HashMap};

use prost::Message as _;
use quota_proto::{
    bridge::{Failure, FailureKind, LoggedAttribute, LoggedLevel, LoggedQuantity, LoggedUsage},
    content::content_hash,
    ledger::{
        AppendUsageRequest, AppendUsageResponse, LevelChange, OpenProducerRequest,
        OpenProducerResponse, RecordVerdict, UsageColumns,
    },
    quota::RecordOutcome,
};
use usage_log::{Hash, chain_next, chain_start, hole_hash};

#[derive(Clone, Debug)]
pub(super) struct Producer {
    incarnation: u64,
    holder: Vec<u8>,
    committed_seq: u64,
    h: Hash,
}

/// What the ledger knows; cloned to take a backup.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    pub(super) producers: HashMap<Vec<u8>, Producer>,
    /// Content by id.
    pub(super) records: BTreeMap<String, LoggedUsage>,
    /// Ids in the order in which they were stored first.
    pub(super) order: Vec<String>,
    pub(super) conflicts: Vec<String>,
    pub(super) holes: Vec<(u64, u64)>,
    pub(super) tenants: Vec<String>,
    pub(super) watermark_us: i64,
    pub(super) closed: bool,
    pub(super) batches: Vec<usize>,
    pub(super) largest_bytes: usize,
    /// `safe_seq` that it tells, at most what is committed.
    pub(super) safe_seq: u64,
    /// Refuses batches that hold this id, with this reason.
    pub(super) poison: Option<(String, &'static str)>,
    /// Why records are not stored under their number, by producer and number.
    pub(super) verdicts: BTreeMap<(Vec<u8>, u64), RecordOutcome>,
}

type Answered = Result<Vec<u8>, Failure>;

fn refused(reason: &str, metadata: &[(&str, String)]) -> Failure {
    Failure {
        kind: FailureKind::Refused as i32,
        message: format!("refused: {reason}"),
        reason: reason.into(),
        metadata: metadata
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect(),
    }
}

impl Ledger {
    pub(super) fn open(&mut self, bytes: &[u8]) -> Answered {
        let request = OpenProducerRequest::decode(bytes).unwrap();
        let id: [u8; 16] = request.producer_id[..].try_into().unwrap();
        let known = self
            .producers
            .entry(id.to_vec())
            .or_insert_with(|| Producer {
                incarnation: request.incarnation,
                holder: request.holder.clone(),
                committed_seq: 0,
                h: chain_start(&id),
            });
        let same = request.incarnation == known.incarnation && request.holder == known.holder;
        if request.incarnation < known.incarnation
            || (request.incarnation == known.incarnation && !same)
        {
            return Err(refused("PRODUCER_FENCED", &[]));
        }
        (known.incarnation, known.holder) = (request.incarnation, request.holder.clone());
        let answer = OpenProducerResponse {
            committed_seq: known.committed_seq,
            h: known.h.to_vec(),
            safe_seq: self.safe_seq.min(known.committed_seq),
        };
        Ok(answer.encode_to_vec())
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Answered {
        self.largest_bytes = self.largest_bytes.max(bytes.len());
        let request = AppendUsageRequest::decode(bytes).unwrap();
        let Some(mut producer) = self.producers.get(&request.producer_id[..]).cloned() else {
            return Err(refused("PRODUCER_UNKNOWN", &[]));
        };
        if request.incarnation != producer.incarnation {
            let fenced = request.incarnation < producer.incarnation;
            return Err(refused(
                if fenced {
                    "PRODUCER_FENCED"
                } else {
                    "PRODUCER_UNKNOWN"
                },
                &[],
            ));
        }
        let records = rows(request.records.as_ref().unwrap());
        if records
            .iter()
            .any(|record| self.poison.as_ref().is_some_and(|(id, _)| *id == record.id))
        {
            let reason = self.poison.as_ref().map_or("", |(_, reason)| reason);
            return Err(refused(reason, &[]));
        }
        let next = producer.committed_seq + 1;
        if request.first_seq > next {
            return Err(refused("PRODUCER_GAP", &[("expected", next.to_string())]));
        }
        let entries = numbered(&request, records);
        let known = producer.committed_seq;
        if entries
            .last()
            .map_or(request.first_seq - 1, |entry| entry.1)
            >= known
        {
            self.commit(&request, &entries, &mut producer)?;
        }
        let answer = AppendUsageResponse {
            committed_seq: producer.committed_seq,
            h: producer.h.to_vec(),
            safe_seq: self.safe_seq.min(producer.committed_seq),
            trimmed: entries.iter().filter(|entry| entry.1 <= known).count() as u32,
            verdicts: entries
                .iter()
                .filter_map(|entry| {
                    let key = (request.producer_id.clone(), entry.0);
                    self.verdicts.get(&key).map(|outcome| RecordVerdict {
                        seq: entry.0,
                        outcome: (*outcome).into(),
                        ..RecordVerdict::default()
                    })
                })
                .collect(),
            ..AppendUsageResponse::default()
        };
        self.producers.insert(request.producer_id.clone(), producer);
        Ok(answer.encode_to_vec())
    }

    fn commit(
        &mut self,
        request: &AppendUsageRequest,
        entries: &[(u64, u64, Option<LoggedUsage>)],
        producer: &mut Producer,
    ) -> Result<(), Failure> {
        let known = producer.committed_seq;
        let mut h: Hash = request.h_before[..].try_into().unwrap();
        let mut agrees = request.first_seq - 1 == known && h == producer.h;
        let mut fresh = Vec::new();
        for (first, last, record) in entries {
            let content = record
                .as_ref()
                .map_or_else(|| hole_content(request, *first, *last), content_hash);
            h = chain_next(&h, &content);
            agrees |= *last == known && h == producer.h;
            if *first > known {
                fresh.push((*first, *last, record));
            }
        }
        if !agrees {
            return Err(refused("PRODUCER_FORKED", &[]));
        }
        for (first, last, record) in fresh {
            match record {
                Some(record) => {
                    if let Some(outcome) = self.store(record) {
                        self.verdicts
                            .insert((request.producer_id.clone(), first), outcome);
                    }
                }
                None => self.holes.push((first, last)),
            }
        }
        self.tenants.extend(request.tenants_served.iter().cloned());
        self.watermark_us = request.watermark_us;
        self.closed = request.closing;
        self.batches.push(entries.len());
        producer.committed_seq = entries.last().map_or(known, |entry| entry.1);
        producer.h = h;
        Ok(())
    }

    fn store(&mut self, record: &LoggedUsage) -> Option<RecordOutcome> {
        match self.records.get(&record.id) {
            None => {
                self.order.push(record.id.clone());
                self.records.insert(record.id.clone(), record.clone());
                None
            }
            Some(other) if content_hash(other) == content_hash(record) => {
                Some(RecordOutcome::Duplicate)
            }
            Some(_) => {
                self.conflicts.push(record.id.clone());
                Some(RecordOutcome::Conflict)
            }
        }
    }
}

/// What stands for a hole in h: the one entry that it skips, or its numbers.
fn hole_content(request: &AppendUsageRequest, first: u64, last: u64) -> Hash {
    let hole = request.holes.iter().find(|hole| hole.first_seq == first);
    hole.and_then(|hole| hole.content_hash[..].try_into().ok())
        .unwrap_or_else(|| hole_hash(first, last))
}

/// Puts records and holes in the order of their numbers: (first, last, record).
fn numbered(
    request: &AppendUsageRequest,
    records: Vec<LoggedUsage>,
) -> Vec<(u64, u64, Option<LoggedUsage>)> {
    let mut out = Vec::new();
    let mut holes = request.holes.iter().peekable();
    let mut records = records.into_iter();
    let mut next = request.first_seq;
    loop {
        if let Some(hole) = holes.next_if(|hole| hole.first_seq == next) {
            out.push((hole.first_seq, hole.last_seq, None));
            next = hole.last_seq + 1;
        } else if let Some(record) = records.next() {
            out.push((next, next, Some(record)));
            next += 1;
        } else {
            assert!(holes.next().is_none(), "a hole that doesn't follow on");
            return out;
        }
    }
}

/// Reads columns back.
pub(super) fn rows(columns: &UsageColumns) -> Vec<LoggedUsage> {
    let (mut event_time_us, mut received_us) = (0, 0);
    let (mut quantity, mut attribute) = (0..columns.meter.len(), 0..columns.attribute_name.len());
    let rows = (0..columns.ids.len()).map(|at| {
        event_time_us += columns.event_time_us[at];
        received_us += columns.received_us[at];
        let quantities = quantity
            .by_ref()
            .take(columns.quantity_count[at] as usize)
            .map(|q| LoggedQuantity {
                meter: columns.meters[columns.meter[q] as usize].clone(),
                units: columns.units[q],
            });
        let attributes = attribute
            .by_ref()
            .take(columns.attribute_count[at] as usize)
            .map(|a| LoggedAttribute {
                name: columns.attribute_names[columns.attribute_name[a] as usize].clone(),
                value: columns.attribute_values[columns.attribute_value[a] as usize].clone(),
            });
        LoggedUsage {
            tenant: columns.tenants[columns.tenant[at] as usize].clone(),
            id: columns.ids[at].clone(),
            event_time_us,
            received_us,
            quantities: quantities.collect(),
            attributes: attributes.collect(),
            flags: columns.flags[at],
            reservation_id: bytes::Bytes::new(),
            home: match columns.home.get(at) {
                None | Some(0) => bytes::Bytes::new(),
                Some(place) => columns.homes[*place as usize - 1].clone().into(),
            },
            holder: levels(columns, at)
                .next()
                .map(|change| columns.level_holders[change.holder as usize].clone().into())
                .unwrap_or_default(),
            levels: levels(columns, at)
                .map(|change| {
                    let name = &columns.level_names[change.level as usize];
                    LoggedLevel {
                        tenant: name.tenant.clone(),
                        limit: name.limit.clone(),
                        key_hash: name.key_hash.clone().into(),
                        units: change.units,
                        over: change.over,
                    }
                })
                .collect(),
        }
    });
    rows.collect()
}

/// What a record changes of levels.
fn levels(columns: &UsageColumns, record: usize) -> impl Iterator<Item = &LevelChange> {
    columns
        .level_changes
        .iter()
        .filter(move |change| change.record as usize == record)
}
