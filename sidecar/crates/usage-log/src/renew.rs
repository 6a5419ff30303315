//! A producer hands over to a new one, after the ledger fenced or forked it.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{
    api::{EntryBody, LogError, NewProducer, Recovered},
    directory::{Directory, RETIRED},
    format::{Kind, hole_payload},
    front::{Front, Group},
    index::Index,
    reader::{Bounds, read},
    recover::{read_live, recover},
    writer::{WriteError, Writer},
};

/// Entries copied at once.
const BATCH: Bounds = Bounds {
    seq: 0,
    records: 4_096,
    bytes: 1 << 20,
};

impl Writer {
    /// Makes a successor with everything from a number on, and becomes it; see [`crate::UsageLog::renew`].
    ///
    /// The successor gets its name only when all of it is durable; until then the old producer is in force.
    pub(crate) fn renew(
        &mut self,
        new_producer: NewProducer,
        from_seq: u64,
    ) -> Result<Recovered, LogError> {
        let predecessor = self.directory.meta.identity.producer;
        let directory = Directory::create(
            &self.directory.storage,
            &self.config,
            new_producer,
            predecessor,
        )?;
        let recovery = recover(&directory, &self.hash)?;
        let index = Arc::new(Mutex::new(Index::new(directory.meta.identity, 0)));
        let front = Arc::new(Front::new(&self.config, directory.segment_bytes()));
        let hash = Arc::clone(&self.hash);
        let mut successor = Self::new(directory, self.config.clone(), hash, front, index, recovery);
        self.copy_entries(&mut successor, from_seq)?;
        self.copy_live(&mut successor)?;
        successor.directory.publish()?;
        self.become_successor(successor);
        Ok(self.describe())
    }

    fn copy_entries(&mut self, successor: &mut Self, from_seq: u64) -> Result<(), LogError> {
        let oldest_seq = self.index.lock().oldest_seq();
        let mut seq = from_seq.max(oldest_seq);
        let mut group = Group::default();
        while seq <= self.last_seq {
            let batch = match read(&self.index, &self.hash, Bounds { seq, ..BATCH }) {
                Err(LogError::Scanning { .. }) => {
                    self.rescan(seq);
                    read(&self.index, &self.hash, Bounds { seq, ..BATCH })?
                }
                other => other?,
            };
            group.clear();
            for entry in batch.entries {
                seq = match &entry.body {
                    EntryBody::Usage(payload) => {
                        group.push(Kind::Usage, None, payload, (self.hash)(payload));
                        entry.seq.saturating_add(1)
                    }
                    EntryBody::Hole(hole) => {
                        let length = hole.last_seq.saturating_sub(hole.first_seq);
                        let first_seq = successor.next_seq_of(&group);
                        let payload = hole_payload(first_seq.saturating_add(length), &hole.reason);
                        group.push(Kind::Hole, None, &payload, None);
                        // Its numbers depend on what stands before it: nothing may follow it in this group.
                        successor
                            .write(&mut group, true)
                            .map_err(|error| failed(&error))?;
                        group.clear();
                        hole.last_seq.saturating_add(1)
                    }
                };
            }
            successor
                .write(&mut group, true)
                .map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    fn copy_live(&mut self, successor: &mut Self) -> Result<(), LogError> {
        let mut group = Group::default();
        for ((mark, key), live) in &self.live {
            if let Some(payload) = read_live(&self.directory, live) {
                group.push(
                    if *mark { Kind::Mark } else { Kind::Open },
                    Some(key),
                    &payload,
                    None,
                );
            }
        }
        successor
            .write(&mut group, true)
            .map_err(|error| failed(&error))
    }

    /// Returns the number that the next record gets when a group is written before it.
    fn next_seq_of(&self, group: &Group) -> u64 {
        self.last_seq
            .saturating_add(crate::format::wide(group.hashes.len()))
            .saturating_add(1)
    }

    fn become_successor(&mut self, successor: Self) {
        let old = self.take_over(successor);
        // Failing here leaves a directory that its successor's description names; the next start removes it.
        retire(&old);
        self.front
            .rebase(self.last_seq, self.watermark.committed_seq);
        let figures = self.figures();
        self.front.update(&figures);
    }

    /// Tells what the log holds now, as after an open.
    fn describe(&self) -> Recovered {
        let (mut open, mut marks) = (Vec::new(), Vec::new());
        for ((mark, key), live) in &self.live {
            if let Some(payload) = read_live(&self.directory, live) {
                if *mark { &mut marks } else { &mut open }
                    .push(crate::api::Kept { key: *key, payload });
            }
        }
        Recovered {
            producer_id: self.directory.meta.identity.producer,
            incarnation: self.watermark.incarnation,
            next_seq: self.last_seq.saturating_add(1),
            committed_seq: self.watermark.committed_seq,
            safe_seq: self.watermark.safe_seq,
            open,
            marks,
            holes: self.index.lock().holes.values().cloned().collect(),
            damage: Vec::new(),
            torn_bytes: 0,
            created: true,
            moved: false,
        }
    }
}

fn failed(error: &WriteError) -> LogError {
    LogError::Io(match error {
        WriteError::NoRoom => "the new producer's directory has no room".into(),
        WriteError::Io(error) => error.to_string(),
    })
}

/// Removes a directory whose successor is in force, by way of a name that says so.
pub(crate) fn retire(old: &Directory) {
    let mut name = old.path.clone().into_os_string();
    name.push(RETIRED);
    let retired = std::path::PathBuf::from(name);
    if old.storage.rename(&old.path, &retired).is_ok() {
        if let Some(root) = old.path.parent() {
            let _ = old.storage.sync_directory(root);
        }
        let _ = old.storage.remove_directory(&retired);
    }
}
