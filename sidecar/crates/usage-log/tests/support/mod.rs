//! A small log in a folder, and what tests do with it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::{path::Path, sync::Arc, time::Instant};

use sha2::{Digest as _, Sha256};
use usage_log::{Append, Config, EntryBody, LogError, NewProducer, Recovered, UsageLog};

fn config(root: &Path) -> Config {
    let (id, salt) = ([7; 16], [9; 16]);
    let mut config = Config::new(root, NewProducer { id, salt });
    (config.segments, config.segment_bytes) = (4, 64 << 10);
    config
}

/// Opens it.
pub fn start(root: &Path) -> Result<(UsageLog, Recovered), LogError> {
    UsageLog::open(
        config(root),
        Arc::new(|payload: &[u8]| Some(Sha256::digest(payload).into())),
    )
}

/// Makes one record durable.
pub fn append(log: &UsageLog, text: &str) -> Result<(), LogError> {
    let position = log.append(Append::Usage {
        payload: text.as_bytes(),
        content_hash: Sha256::digest(text.as_bytes()).into(),
        ends: None,
    })?;
    log.wait_durable(position)
}

/// Reads all records that are there, by number; waits for a log that was just started to have looked at them.
pub fn records(log: &UsageLog, from: u64) -> Vec<String> {
    let began = Instant::now();
    let batch = loop {
        match log.read_from(from, 10_000, usize::MAX) {
            Err(LogError::Scanning { .. }) if began.elapsed().as_secs() < 60 => {
                std::thread::yield_now();
            }
            outcome => break outcome.unwrap(),
        }
    };
    let text = |body: EntryBody| match body {
        EntryBody::Usage(payload) => String::from_utf8(payload).unwrap(),
        EntryBody::Hole(hole) => panic!("{hole:?}"),
    };
    batch
        .entries
        .into_iter()
        .map(|entry| text(entry.body))
        .collect()
}

/// Whether opening was refused for what the disk said.
pub fn is_io(outcome: &Result<(UsageLog, Recovered), LogError>) -> bool {
    matches!(outcome, Err(LogError::Io(_)))
}
