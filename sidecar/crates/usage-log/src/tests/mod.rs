//! Tests of the log as an enemy would: torn, flipped, dropped, refused, repeated.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::float_arithmetic
)]

mod crash;
mod damage;
mod disk;
mod full;
mod fuzz;
mod grown;
mod larger;
mod memory;
mod model;
mod mutants;
mod outage;
mod renewal;
mod start;

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::{
    Append, Batch, Committed, Config, ContentHash, EntryBody, Hash, Key, LogError, NewProducer,
    Position, Recovered, UsageLog, chain_next, chain_start, hole_hash, storage::Storage,
};
use memory::Memory;

/// Content hash of the tests: of the payload, except that payloads beginning with `?` can't be decoded.
pub(crate) fn content() -> ContentHash {
    Arc::new(|payload| (payload.first() != Some(&b'?')).then(|| Sha256::digest(payload).into()))
}

pub(crate) fn producer(byte: u8) -> NewProducer {
    NewProducer {
        id: [byte; 16],
        salt: [byte ^ 0xa5; 16],
    }
}

/// Eight segments of 64 KiB.
pub(crate) fn config() -> Config {
    let mut config = Config::new("/log", producer(1));
    (config.segments, config.segment_bytes) = (8, 64 << 10);
    (config.group_records, config.group_bytes) = (64, 16 << 10);
    config
}

pub(crate) fn open(memory: &Memory, config: Config) -> (UsageLog, Recovered) {
    try_open(memory, config).unwrap()
}

pub(crate) fn try_open(memory: &Memory, config: Config) -> Result<(UsageLog, Recovered), LogError> {
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    UsageLog::open_on(&storage, config, content())
}

pub(crate) fn usage(log: &UsageLog, payload: &[u8]) -> Result<Position, LogError> {
    log.append(Append::Usage {
        payload,
        content_hash: Sha256::digest(payload).into(),
        ends: None,
    })
}

pub(crate) fn settle(log: &UsageLog, payload: &[u8], key: Key) -> Result<Position, LogError> {
    log.append(Append::Usage {
        payload,
        content_hash: Sha256::digest(payload).into(),
        ends: Some(key),
    })
}

pub(crate) fn reserve(log: &UsageLog, key: Key, payload: &[u8]) -> Result<Position, LogError> {
    log.append(Append::Open { key, payload })
}

/// Makes everything pending durable.
pub(crate) fn flush(log: &UsageLog) {
    while log.stats().pending_bytes > 0 {
        let before = log.stats().pending_bytes;
        assert!(log.pump(), "the log was closed");
        assert!(log.stats().pending_bytes < before, "the writer is stuck");
    }
}

/// Commits up to a number, everything safe.
pub(crate) fn commit(log: &UsageLog, seq: u64) {
    let h = log.h_at(seq).unwrap();
    log.set_committed(Committed {
        seq,
        h,
        safe_seq: seq,
        now_us: 0,
    });
    log.pump();
}

/// Reads everything from a number on, as a shipper would, and checks h on the way.
pub(crate) fn read_all(log: &UsageLog, from: u64) -> Vec<(u64, EntryBody)> {
    read_hashed(log, from, &content())
}

/// Likewise, with another way to the same content hashes.
pub(crate) fn read_hashed(
    log: &UsageLog,
    from: u64,
    content: &ContentHash,
) -> Vec<(u64, EntryBody)> {
    let mut seq = from;
    let mut out = Vec::new();
    let mut h: Option<Hash> = None;
    let mut scans = 0;
    loop {
        let batch = match log.read_from(seq, 7, 2_000) {
            Ok(batch) => batch,
            Err(LogError::Scanning { .. }) if scans < 80 => {
                scans += 1;
                h = None;
                log.pump();
                continue;
            }
            Err(error) => panic!("reading {seq}: {error}"),
        };
        if let Some(h) = h {
            assert_eq!(h, batch.h_before, "h breaks between batches at {seq}");
        }
        check_chain(&batch, content);
        h = Some(batch.h_after);
        if batch.entries.is_empty() {
            return out;
        }
        for entry in batch.entries {
            assert_eq!(seq, entry.seq);
            seq = match &entry.body {
                EntryBody::Usage(_) => entry.seq + 1,
                EntryBody::Hole(hole) => hole.last_seq + 1,
            };
            out.push((entry.seq, entry.body));
        }
    }
}

/// Payloads of what was read; holes as `None`.
pub(crate) fn payloads(entries: &[(u64, EntryBody)]) -> Vec<Option<Vec<u8>>> {
    entries
        .iter()
        .map(|(_, body)| payload(body).cloned())
        .collect()
}

/// The payload of what was read; of a hole `None`.
pub(crate) fn payload(body: &EntryBody) -> Option<&Vec<u8>> {
    match body {
        EntryBody::Usage(payload) => Some(payload),
        EntryBody::Hole(_) => None,
    }
}

/// h after these payloads, the slow way.
pub(crate) fn chain_of(producer: &[u8; 16], payloads: &[Vec<u8>]) -> Hash {
    payloads.iter().fold(chain_start(producer), |h, payload| {
        chain_next(&h, &Sha256::digest(payload).into())
    })
}

fn check_chain(batch: &Batch, content: &ContentHash) {
    let after = batch.entries.iter().fold(batch.h_before, |h, entry| {
        let hash = match &entry.body {
            EntryBody::Usage(payload) => content(payload).unwrap(),
            EntryBody::Hole(hole) => hole_hash(hole.first_seq, hole.last_seq),
        };
        chain_next(&h, &hash)
    });
    assert_eq!(after, batch.h_after);
}
