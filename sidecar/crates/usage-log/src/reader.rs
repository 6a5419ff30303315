//! Reads durable entries back, checking every byte, without stopping the writer.

use parking_lot::Mutex;

use crate::{
    api::{Batch, ContentHash, Entry, EntryBody, Hash, LogError},
    chain::{chain_next, hole_hash},
    format::{Kind, RECORD_HEADER, Record, narrow, parse, peek, u64_at, wide},
    index::{Index, Point, Segment},
};

/// Bytes read at once, at most.
const CHUNK: usize = 256 << 10;
/// Bytes read at first where few are asked for; each further stretch is twice as long.
const FIRST_CHUNK: usize = 4 << 10;

/// How much to read.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) seq: u64,
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

/// Reads a run of entries; see [`crate::UsageLog::read_from`].
pub(crate) fn read(
    index: &Mutex<Index>,
    hash: &ContentHash,
    bounds: Bounds,
) -> Result<Batch, LogError> {
    let mut walk = Walk::begin(&index.lock(), hash, bounds)?;
    let walked = walk.run();
    let mut index = index.lock();
    let oldest_seq = index.oldest_seq();
    if index.identity != walk.index.identity || bounds.seq < oldest_seq {
        return Err(LogError::Gone {
            seq: bounds.seq,
            oldest_seq,
        });
    }
    walked?;
    index.cursor = Some(walk.at).filter(|at| index.segment(at.segment).is_some());
    let h_before = walk.h_before.ok_or(LogError::Gone {
        seq: bounds.seq,
        oldest_seq,
    })?;
    Ok(Batch {
        producer_id: walk.index.identity.producer,
        incarnation: walk.index.incarnation,
        h_before,
        h_after: walk.at.h,
        entries: walk.entries,
    })
}

struct Walk<'a> {
    hash: &'a ContentHash,
    /// What the walk needs of the index, as it was at its beginning.
    index: Index,
    bounds: Bounds,
    at: Point,
    h_before: Option<Hash>,
    entries: Vec<Entry>,
    bytes: usize,
    /// How much to read next.
    chunk: usize,
}

impl<'a> Walk<'a> {
    fn begin(index: &Index, hash: &'a ContentHash, bounds: Bounds) -> Result<Self, LogError> {
        let oldest_seq = index.oldest_seq();
        if bounds.seq < oldest_seq || bounds.seq > index.durable_seq.saturating_add(1) {
            return Err(LogError::Gone {
                seq: bounds.seq,
                oldest_seq,
            });
        }
        let start = (bounds.seq >= index.indexed_from)
            .then(|| index.start_for(bounds.seq))
            .flatten();
        let at = start.ok_or(LogError::Scanning { seq: bounds.seq })?;
        Ok(Self {
            hash,
            index: index.part_from(at.segment),
            bounds,
            at,
            h_before: None,
            entries: Vec::new(),
            bytes: 0,
            chunk: bounds.bytes.clamp(FIRST_CHUNK, CHUNK),
        })
    }

    fn run(&mut self) -> Result<(), LogError> {
        self.arrive();
        while !self.is_done() {
            let Some(segment) = self.index.segment(self.at.segment).cloned() else {
                return Err(self.scanning());
            };
            if self.at.offset < segment.end {
                self.chunk(&segment)?;
            } else if let Some(next) = self
                .at
                .segment
                .checked_add(1)
                .filter(|next| self.index.segment(*next).is_some())
            {
                self.at.segment = next;
                self.at.offset = wide(crate::format::SEGMENT_HEADER);
            } else {
                self.fill_to(self.index.durable_seq)?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Notes h when the walk stands right before the first entry that is asked for.
    fn arrive(&mut self) {
        if self.at.last_seq.saturating_add(1) == self.bounds.seq {
            self.h_before = Some(self.at.h);
        }
    }

    fn is_done(&self) -> bool {
        let read_some = self.at.last_seq.saturating_add(1) >= self.bounds.seq
            && self.entries.len() >= self.bounds.records;
        let full = !self.entries.is_empty() && self.bytes >= self.bounds.bytes;
        read_some || full || self.at.last_seq >= self.index.durable_seq
    }

    fn scanning(&self) -> LogError {
        LogError::Scanning {
            seq: self.at.last_seq.saturating_add(1),
        }
    }

    /// Walks the records of one stretch of a segment.
    fn chunk(&mut self, segment: &Segment) -> Result<(), LogError> {
        let seed = self.index.identity.seed(segment.number);
        let bytes = self.stretch(segment)?;
        let length = bytes.len();
        let mut at = 0;
        while at < length && !self.is_done() {
            if let Some(skip) = self.index.skips.get(&(segment.number, self.at.offset)) {
                self.at.offset = self.at.offset.saturating_add(*skip);
                return Ok(());
            }
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(record) = parse(rest, seed) else {
                let cut = at > 0 && self.at.offset.saturating_add(wide(rest.len())) < segment.end;
                let longer = rest.len() < RECORD_HEADER
                    || peek(rest).is_some_and(|(_, total)| total > rest.len());
                return if cut && longer {
                    Ok(())
                } else {
                    Err(self.scanning())
                };
            };
            if !self.record(&record)? {
                return Ok(());
            }
            at = at.saturating_add(record.total);
            self.at.offset = self.at.offset.saturating_add(wide(record.total));
        }
        Ok(())
    }

    /// Reads the next bytes of a segment: at least one whole record, where one is stored there.
    fn stretch(&mut self, segment: &Segment) -> Result<Vec<u8>, LogError> {
        let stored = narrow(segment.end.saturating_sub(self.at.offset));
        let read = |length: usize| {
            let mut bytes = vec![0; length];
            segment
                .file
                .read_at(&mut bytes, self.at.offset)
                .map_err(|error| LogError::Io(format!("reading: {error}")))?;
            Ok(bytes)
        };
        let bytes = read(stored.min(self.chunk))?;
        self.chunk = self.chunk.saturating_mul(2).min(CHUNK);
        match peek(&bytes) {
            Some((_, total)) if total > bytes.len() && bytes.len() < stored => {
                read(stored.min(total))
            }
            _ => Ok(bytes),
        }
    }

    /// Takes one record; false when the bounds are reached and it must be read again next time.
    fn record(&mut self, record: &Record<'_>) -> Result<bool, LogError> {
        match record.kind {
            Kind::Open | Kind::Expire | Kind::Mark => return Ok(true),
            Kind::Commit => {
                self.fill_to(record.seq)?;
                return Ok(true);
            }
            Kind::Usage | Kind::Hole => {}
        }
        if record.seq <= self.at.last_seq {
            return Ok(true);
        }
        self.fill_to(record.seq.saturating_sub(1))?;
        if self.is_done() {
            return Ok(false);
        }
        if self.index.holes.contains_key(&record.seq) {
            self.fill_to(if record.kind == Kind::Hole {
                u64_at(record.payload, 0)
            } else {
                record.seq
            })?;
            return Ok(true);
        }
        let content = (self.hash)(record.payload).ok_or_else(|| self.scanning())?;
        self.take(
            record.seq,
            &content,
            EntryBody::Usage(record.payload.to_vec()),
            record.payload.len(),
        );
        Ok(true)
    }

    /// Emits the holes up to a number; a gap that is no known hole needs another scan.
    fn fill_to(&mut self, last_seq: u64) -> Result<(), LogError> {
        while self.at.last_seq < last_seq {
            let first = self.at.last_seq.saturating_add(1);
            let Some(hole) = self.index.holes.get(&first).cloned() else {
                return Err(self.scanning());
            };
            let content = hole_hash(hole.first_seq, hole.last_seq);
            self.take(
                hole.last_seq,
                &content,
                EntryBody::Hole(hole),
                RECORD_HEADER,
            );
        }
        Ok(())
    }

    fn take(&mut self, last_seq: u64, content: &Hash, body: EntryBody, bytes: usize) {
        let seq = self.at.last_seq.saturating_add(1);
        if seq >= self.bounds.seq {
            self.entries.push(Entry { seq, body });
            self.bytes = self.bytes.saturating_add(bytes);
        }
        self.at.last_seq = last_seq;
        self.at.h = chain_next(&self.at.h, content);
        self.arrive();
    }
}
