//! What the ledger said of records that it did not store, for whoever waits for its word or repeats a record.
//!
//! Bounded and in memory, as what is known of recent ids: a record that is not named here and is committed was stored.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use quota_proto::quota::RecordOutcome;

/// Verdicts remembered; the oldest records' go first.
const VERDICTS_MAX: usize = 262_144;

/// Why a record is not stored under its number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Verdict {
    /// DUPLICATE, CONFLICT or INVALID.
    pub(crate) outcome: RecordOutcome,
    /// INVALID: a stable reason.
    pub(crate) reason: Box<str>,
    /// INVALID: path of the field within the record; empty for the whole record.
    pub(crate) field: Box<str>,
}

/// Verdicts by the number that records have in this process; clones share them.
#[derive(Clone, Default)]
pub(crate) struct Verdicts(Arc<Mutex<BTreeMap<u64, Verdict>>>);

impl Verdicts {
    /// Notes verdicts, before anybody hears that their records are committed.
    pub(crate) fn note(&self, verdicts: impl Iterator<Item = (u64, Verdict)>) {
        let mut known = self.0.lock();
        known.extend(verdicts);
        while known.len() > VERDICTS_MAX {
            known.pop_first();
        }
    }

    /// Whether there are any.
    pub(crate) fn any(&self) -> bool {
        !self.0.lock().is_empty()
    }

    /// Tells the verdict on a record; none where it was stored, or the ledger has not said.
    pub(crate) fn on(&self, number: u64) -> Option<Verdict> {
        self.0.lock().get(&number).cloned()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// At the bound the verdicts on the oldest records go, and nothing else.
    #[test]
    fn the_oldest_go_first() {
        let verdicts = Verdicts::default();
        let conflict = Verdict {
            outcome: RecordOutcome::Conflict,
            reason: Box::default(),
            field: Box::default(),
        };
        let last = u64::try_from(VERDICTS_MAX).unwrap();
        verdicts.note((0..=last).map(|number| (number, conflict.clone())));
        assert_eq!(None, verdicts.on(0));
        assert_eq!(Some(conflict.clone()), verdicts.on(1));
        assert_eq!(Some(conflict), verdicts.on(last));
    }
}
