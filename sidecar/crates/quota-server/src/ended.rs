//! Which processes before this one wrote to its log and have ended, so that the ledger takes back what they held of
//! levels.
//!
//! Each process writes its name into the log before it leases anything. The next one on the same boot, in the same
//! directory, holds the log's lock: the one before has ended, and every record that it wrote lies in the log. Elsewhere
//! nothing is claimed, since the process of which a volume is a copy may live on.

use hashbrown::HashSet;
use prost::{Message as _, bytes::Bytes};
use quota_core::{HoldKind, Holder};
use quota_proto::bridge::{LoggedHolder, LoggedHolders};
use usage_log::{Append, Key, Recovered, UsageLog};

use crate::{marks::BootId, records::read_reservation};

/// Names the mark of these names; windows have random ones.
pub(crate) const KEY: Key = *b"tollkeeper/ended";
/// Names kept at most; beyond it the oldest are dropped, and what they held stays counted.
const HOLDERS_MAX: usize = 64;

/// Processes that have ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ended {
    /// Their names, for the ledger.
    pub(crate) holders: Vec<[u8; 16]>,
    /// Last number that one of them can have written.
    pub(crate) seq: u64,
    /// What the mark says once the ledger has taken note.
    rest: Vec<u8>,
}

impl Ended {
    /// Forgets them once the ledger has taken note, so that a later start names them no more.
    pub(crate) fn told(&mut self, log: &UsageLog) {
        if !self.holders.is_empty() {
            self.holders.clear();
            // Not written: the next start names them again, which changes nothing.
            let _ = log.append(Append::Mark {
                key: KEY,
                payload: &self.rest,
            });
        }
    }

    /// Forgets them: their log goes on under another producer, where their numbers mean nothing.
    pub(crate) fn forget(&mut self) {
        self.holders.clear();
    }
}

/// Enters this process into the log, durably, and names those before it that have ended. Blocks; for the start.
///
/// One whose open reservations hold units of levels is left for a later start: their settlements are records to come.
/// A log that can't be written names nobody.
pub(crate) fn succeed(
    log: &UsageLog,
    recovered: &Recovered,
    boot_id: Option<BootId>,
    holder: Holder,
) -> Ended {
    let Some(boot_id) = boot_id else {
        return Ended::default();
    };
    let before: Vec<[u8; 16]> = if recovered.moved {
        Vec::new()
    } else {
        known(recovered, boot_id)
    };
    let owing = owing(recovered);
    let (later, holders): (Vec<_>, Vec<_>) = before
        .iter()
        .copied()
        .partition(|holder| owing.contains(holder));
    let all = logged(before.iter().chain([&holder.0]), boot_id);
    let entry = Append::Mark {
        key: KEY,
        payload: &all,
    };
    let is_written = log
        .append(entry)
        .and_then(|position| log.wait_durable(position))
        .is_ok();
    if !is_written {
        return Ended::default();
    }
    Ended {
        holders,
        seq: recovered.next_seq.saturating_sub(1),
        rest: logged(later.iter().chain([&holder.0]), boot_id),
    }
}

fn known(recovered: &Recovered, boot_id: BootId) -> Vec<[u8; 16]> {
    let mark = recovered.marks.iter().find(|mark| mark.key == KEY);
    let logged = mark.and_then(|mark| LoggedHolders::decode(&*mark.payload).ok());
    let here = logged
        .unwrap_or_default()
        .holders
        .into_iter()
        .filter(|one| *one.boot_id == boot_id);
    let mut names: Vec<[u8; 16]> = here
        .filter_map(|one| one.holder.as_ref().try_into().ok())
        .collect();
    let surplus = names.len().saturating_sub(HOLDERS_MAX);
    names.drain(..surplus);
    names
}

/// Processes whose open reservations hold units of levels.
fn owing(recovered: &Recovered) -> HashSet<[u8; 16]> {
    let open = recovered.open.iter();
    open.filter_map(|kept| read_reservation(&kept.payload))
        .filter(|(reservation, _)| {
            let mut holds = reservation.holds.iter();
            holds.any(|hold| hold.kind == HoldKind::Level)
        })
        .map(|(reservation, _)| reservation.holder.0)
        .collect()
}

fn logged<'a>(holders: impl Iterator<Item = &'a [u8; 16]>, boot_id: BootId) -> Vec<u8> {
    let one = |holder: &[u8; 16]| LoggedHolder {
        holder: Bytes::copy_from_slice(holder),
        boot_id: Bytes::copy_from_slice(&boot_id),
    };
    LoggedHolders {
        holders: holders.map(one).collect(),
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quota_proto::content::payload_hash;
    use usage_log::{Config, NewProducer};

    use super::*;

    const BOOT: BootId = [7; 16];

    fn start(
        folder: &std::path::Path,
        boot_id: BootId,
        holder: u8,
        moved: bool,
    ) -> (UsageLog, Ended) {
        let (id, salt) = ([1; 16], [2; 16]);
        let config = Config {
            segment_bytes: 256 << 10,
            segments: 4,
            ..Config::new(folder, NewProducer { id, salt })
        };
        let (log, mut recovered) = UsageLog::open(config, Arc::new(payload_hash)).unwrap();
        recovered.moved |= moved;
        let ended = succeed(&log, &recovered, Some(boot_id), Holder([holder; 16]));
        (log, ended)
    }

    /// Every process before is named until the ledger has taken note, and by nobody afterwards.
    #[test]
    fn a_start_names_those_before_it_until_they_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let (log, ended) = start(folder.path(), BOOT, 1, false);
        assert_eq!(Vec::<[u8; 16]>::new(), ended.holders);
        log.close().unwrap();
        drop(log);
        let (log, ended) = start(folder.path(), BOOT, 2, false);
        assert_eq!(vec![[1; 16]], ended.holders);
        log.close().unwrap();
        drop(log);
        let (log, mut ended) = start(folder.path(), BOOT, 3, false);
        assert_eq!(vec![[1; 16], [2; 16]], ended.holders);
        ended.told(&log);
        log.close().unwrap();
        drop(log);
        let (_, ended) = start(folder.path(), BOOT, 4, false);
        assert_eq!(vec![[3; 16]], ended.holders);
    }

    /// On another boot, or on a copy of the volume, nobody is said to have ended: the one before may live.
    #[test]
    fn a_copy_and_another_boot_claim_nothing() {
        for (boot_id, moved) in [([8; 16], false), (BOOT, true)] {
            let folder = tempfile::tempdir().unwrap();
            let (log, _) = start(folder.path(), BOOT, 1, false);
            log.close().unwrap();
            drop(log);
            let (_, ended) = start(folder.path(), boot_id, 2, moved);
            assert_eq!(Vec::<[u8; 16]>::new(), ended.holders);
        }
    }
}
