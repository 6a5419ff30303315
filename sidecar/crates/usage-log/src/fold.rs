//! Folds scanned segments, in order, into what the log needs to know: numbers, h, what is still open, what is damaged.

use std::collections::HashMap;

use crate::{
    api::{ContentHash, Damage, Hash, Hole, Key},
    chain::{chain_next, hole_hash},
    format::{Kind, Record, commit_body, decode, u64_at, wide},
    index::{Index, Point},
    scan::{Piece, Scan},
};

/// Where something that lives on is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Live {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) total: u64,
    /// A mark; else a reservation.
    pub(crate) mark: bool,
}

/// Open reservations and marks.
pub(crate) type LiveMap = HashMap<(bool, Key), Live>;

/// Applies one record to what lives on.
pub(crate) fn apply_live(live: &mut LiveMap, kind: Kind, key: Key, empty: bool, at: Live) {
    match kind {
        Kind::Open => {
            live.insert((false, key), at);
        }
        Kind::Mark if !empty => {
            live.insert((true, key), at);
        }
        Kind::Mark => {
            live.remove(&(true, key));
        }
        Kind::Usage | Kind::Expire => {
            live.remove(&(false, key));
        }
        Kind::Hole | Kind::Commit => {}
    }
}

/// Returns the last number that a record uses; 0 of one without numbers.
fn last_number(record: &Record<'_>) -> u64 {
    match record.kind {
        Kind::Usage | Kind::Commit => record.seq,
        Kind::Hole => record.seq.max(u64_at(record.payload, 0)),
        Kind::Open | Kind::Expire | Kind::Mark => 0,
    }
}

/// What has been folded so far.
pub(crate) struct Fold {
    hash: ContentHash,
    /// Extended as the fold proceeds.
    pub(crate) index: Index,
    /// Last number.
    pub(crate) last_seq: u64,
    /// h at it, as the ledger computes it: with holes.
    pub(crate) h: Hash,
    /// h at it as the records themselves have it; differs from `h` after damage.
    written_h: Option<Hash>,
    /// What lives on.
    pub(crate) live: LiveMap,
    /// What doesn't validate.
    pub(crate) damage: Vec<Damage>,
    /// Highest incarnation seen.
    pub(crate) incarnation: u64,
    /// Records after the last commit.
    pub(crate) uncommitted: u32,
    /// Number at the commit before the last one; holes above it are in the last group.
    group_before: u64,
    group_start: u64,
    /// The ledger's word: at this number h is known.
    known: Option<(u64, Hash)>,
}

impl Fold {
    /// Starts at a segment: the number before its first entry and h there.
    pub(crate) fn new(
        hash: ContentHash,
        index: Index,
        last_seq: u64,
        h: Hash,
        known: Option<(u64, Hash)>,
    ) -> Self {
        let mut index = index;
        index.indexed_from = last_seq.saturating_add(1);
        Self {
            hash,
            index,
            last_seq,
            h,
            written_h: Some(h),
            live: LiveMap::new(),
            damage: Vec::new(),
            incarnation: 0,
            uncommitted: 0,
            group_before: last_seq,
            group_start: last_seq,
            known,
        }
    }

    /// Begins a segment whose header says what h is before it.
    pub(crate) fn begin_segment(&mut self, previous_h: Option<Hash>) {
        if let Some(previous_h) = previous_h {
            self.written_h = Some(previous_h);
        }
    }

    /// Folds one segment's records, which the scan has checked. A number above `seq_max`, which the next segment's header
    /// tells, is damage.
    pub(crate) fn segment(
        &mut self,
        number: u64,
        file: &str,
        image: &[u8],
        (scan, seq_max): (&Scan, u64),
    ) {
        for piece in &scan.pieces {
            match *piece {
                Piece::Bad { offset, bytes } => self.bad(number, file, offset, bytes),
                Piece::Record { offset, total } => {
                    self.note(number, offset);
                    let bytes = image
                        .get(offset..offset.saturating_add(total))
                        .unwrap_or_default();
                    match decode(bytes) {
                        Some(record) if last_number(&record) > seq_max => {
                            self.bad(number, file, offset, total);
                        }
                        Some(record) => self.record(number, offset, file, &record),
                        None => {}
                    }
                }
            }
        }
        self.note(number, scan.end);
    }

    /// Fills the numbers up to one that is known to have been used.
    pub(crate) fn fill_to(&mut self, last_seq: u64, reason: &'static str) {
        if last_seq > self.last_seq {
            let first_seq = self.last_seq.saturating_add(1);
            self.hole(Hole {
                first_seq,
                last_seq,
                reason: reason.into(),
            });
            self.written_h = None;
        }
    }

    /// Ends the fold: holes in the last group may never have been acknowledged, and say so.
    pub(crate) fn finish(mut self) -> Self {
        let before = if self.uncommitted > 0 {
            self.group_start
        } else {
            self.group_before
        };
        for hole in self.index.holes.values_mut() {
            if hole.first_seq > before && hole.reason == "CRC" {
                hole.reason = "LAST_GROUP".into();
            }
        }
        self.index.durable_seq = self.last_seq;
        self
    }

    fn note(&mut self, segment: u64, offset: usize) {
        self.index.note(Point {
            segment,
            offset: wide(offset),
            last_seq: self.last_seq,
            h: self.h,
        });
    }

    fn bad(&mut self, number: u64, file: &str, offset: usize, bytes: usize) {
        self.index.skips.insert((number, wide(offset)), wide(bytes));
        self.written_h = None;
        self.damage.push(Damage {
            file: file.to_owned(),
            offset: wide(offset),
            bytes: wide(bytes),
            what: "bytes don't validate",
        });
    }

    fn record(&mut self, segment: u64, offset: usize, file: &str, record: &Record<'_>) {
        self.incarnation = self.incarnation.max(record.incarnation);
        let at = Live {
            segment,
            offset: wide(offset),
            total: wide(record.total),
            mark: record.kind == Kind::Mark,
        };
        match record.kind {
            Kind::Commit => return self.commit(file, offset, record),
            Kind::Usage | Kind::Hole => {
                if record.seq <= self.last_seq {
                    return;
                }
                self.fill_to(record.seq.saturating_sub(1), "CRC");
                self.sequenced(file, offset, record);
            }
            Kind::Open | Kind::Expire | Kind::Mark => {}
        }
        self.uncommitted = self.uncommitted.saturating_add(1);
        if let Some(key) = record.key {
            apply_live(
                &mut self.live,
                record.kind,
                key,
                record.payload.is_empty(),
                at,
            );
        }
    }

    fn sequenced(&mut self, file: &str, offset: usize, record: &Record<'_>) {
        if record.kind == Kind::Hole {
            let last_seq = u64_at(record.payload, 0).max(record.seq);
            let reason =
                String::from_utf8_lossy(record.payload.get(8..).unwrap_or_default()).into_owned();
            self.written_h = self
                .written_h
                .map(|h| chain_next(&h, &hole_hash(record.seq, last_seq)));
            self.hole(Hole {
                first_seq: record.seq,
                last_seq,
                reason: reason.into(),
            });
            return;
        }
        let Some(content) = (self.hash)(record.payload) else {
            self.damage.push(Damage {
                file: file.to_owned(),
                offset: wide(offset),
                bytes: wide(record.total),
                what: "the payload can't be decoded",
            });
            return self.fill_to(record.seq, "CONTENT");
        };
        let before = self.h;
        let after = self.advance(record.seq, &content);
        self.written_h = self.written_h.map(|h| {
            if h == before {
                after
            } else {
                chain_next(&h, &content)
            }
        });
    }

    fn hole(&mut self, hole: Hole) {
        let content = hole_hash(hole.first_seq, hole.last_seq);
        let last_seq = hole.last_seq;
        self.index.holes.insert(hole.first_seq, hole);
        self.advance(last_seq, &content);
    }

    /// Moves on by one entry; gives h as it follows from the one before.
    fn advance(&mut self, last_seq: u64, content: &Hash) -> Hash {
        let after = chain_next(&self.h, content);
        self.h = after;
        self.last_seq = last_seq;
        if let Some((seq, h)) = self.known {
            if seq == last_seq {
                self.h = h;
            }
        }
        after
    }

    fn commit(&mut self, file: &str, offset: usize, record: &Record<'_>) {
        let (_, h) = commit_body(record.payload);
        if record.seq < self.last_seq {
            return;
        }
        self.fill_to(record.seq, "CRC");
        if self.written_h.is_some_and(|written| written != h) && self.h != h {
            self.damage.push(Damage {
                file: file.to_owned(),
                offset: wide(offset),
                bytes: wide(record.total),
                what: "records validate but their hash chain differs",
            });
        }
        self.written_h = Some(h);
        self.uncommitted = 0;
        self.group_before = self.group_start;
        self.group_start = self.last_seq;
    }
}
