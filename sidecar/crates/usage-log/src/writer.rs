//! The one thread that writes: groups, commit records, watermark, recycling.

use std::{io, sync::Arc, time::Instant};

use parking_lot::Mutex;

use crate::{
    again::Outage,
    api::{Committed, Config, ContentHash, Hash, Hole, Key, LogError},
    chain::{chain_next, hole_hash},
    directory::Directory,
    fold::{Live, LiveMap, apply_live},
    format::{
        COMMIT_BYTES, Kind, SEGMENT_HEADER, SegmentHeader, Watermark, key_of, narrow, parse, peek,
        push_commit, seal_record, u64_at, wide,
    },
    front::{Front, Group, Update, Work},
    index::{Index, Point, Segment},
    mutant::{self, Mutant},
    recover::{Recovery, read_live},
};

/// Segments older than this are reused though a restore of the ledger would not have their records.
const KEEP_US: u64 = 24 * 3_600 * 1_000_000;

/// Why a group could not be written.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// No free segment; later perhaps.
    NoRoom,
    /// Twice in a row.
    Io(io::Error),
}

/// Owns the directory.
pub(crate) struct Writer {
    pub(crate) directory: Directory,
    pub(crate) config: Config,
    pub(crate) hash: ContentHash,
    pub(crate) index: Arc<Mutex<Index>>,
    pub(crate) front: Arc<Front>,
    pub(crate) live: LiveMap,
    pub(crate) live_bytes: u64,
    /// Open reservations.
    open: u64,
    pub(crate) last_seq: u64,
    pub(crate) h: Hash,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    /// Up to here every byte of the present segment was written.
    pub(crate) filled: u64,
    pub(crate) watermark: Watermark,
    now_us: u64,
    pub(crate) scratch: Vec<u8>,
    waiting: Option<Group>,
    /// Writing failed on two segments.
    pub(crate) broken: Option<Outage>,
    /// The present segment's header, where this process wrote it.
    pub(crate) header: Option<Vec<u8>>,
    /// Nothing was written after it.
    pub(crate) is_untouched: bool,
    pub(crate) figures: Update,
}

/// Tells everyone who waits when the thread ends, however it does.
struct TellOnEnd(Arc<Front>);

impl Drop for TellOnEnd {
    fn drop(&mut self) {
        self.0.fail(&LogError::Closed);
    }
}

/// What sealing a chunk of records found out.
struct Sealed {
    last_seq: u64,
    h: Hash,
    count: u32,
    lives: Vec<(Kind, Key, bool, u64, u64)>,
    holes: Vec<Hole>,
}

impl Writer {
    /// Takes over a recovered directory. The index is published as the shared one.
    pub(crate) fn new(
        directory: Directory,
        config: Config,
        hash: ContentHash,
        front: Arc<Front>,
        index: Arc<Mutex<Index>>,
        recovery: Recovery,
    ) -> Self {
        let fold = recovery.fold;
        *index.lock() = fold.index;
        let live_bytes = fold
            .live
            .values()
            .fold(0, |sum: u64, live| sum.saturating_add(live.total));
        let open = wide(fold.live.values().filter(|live| !live.mark).count());
        let mut writer = Self {
            directory,
            config,
            hash,
            index,
            front,
            live: fold.live,
            live_bytes,
            open,
            last_seq: fold.last_seq,
            h: fold.h,
            segment: recovery.segment,
            offset: recovery.offset,
            filled: 0,
            watermark: recovery.watermark,
            now_us: 0,
            scratch: Vec::new(),
            waiting: None,
            broken: None,
            header: None,
            is_untouched: false,
            figures: Update::default(),
        };
        let figures = writer.figures();
        writer.front.update(&figures);
        writer
    }

    /// Works until closed.
    pub(crate) fn run(mut self) {
        let _told = TellOnEnd(Arc::clone(&self.front));
        while self.step(true) {}
    }

    /// Does what there is to do once; false when closed.
    pub(crate) fn step(&mut self, wait: bool) -> bool {
        self.try_again();
        // A group that waits for room waits for the ledger to take something, not for time to pass.
        let until = self.broken.map(|outage| outage.again);
        let takes_groups = self.waiting.is_none() && until.is_none();
        let work = self.front.take_work(wait, takes_groups, until);
        self.carry_out(work)
    }

    fn carry_out(&mut self, work: Work) -> bool {
        let wrote = work.group.is_some();
        if let Some(group) = work.group {
            self.write_group(group);
        }
        if let Some(committed) = work.committed {
            self.advance(committed);
        }
        if let Some(found) = work.scrubbed {
            self.take_scrub(found);
        }
        if let Some(seq) = work.rescan {
            self.rescan(seq);
        }
        if let Some(renewal) = work.renewal {
            let outcome = self.renew(renewal.new_producer, renewal.from_seq);
            (renewal.reply)(outcome);
        }
        if let Some(group) = self.waiting.take() {
            self.write_group(group);
        }
        let stuck = self.waiting.is_some() || self.broken.is_some();
        if work.closing && (!wrote || stuck) {
            self.front.fail(&LogError::Closed);
            return false;
        }
        true
    }

    fn write_group(&mut self, mut group: Group) {
        match self.write(&mut group, false) {
            Ok(()) => {
                let figures = self.figures();
                self.front.finish_group(group, &figures);
            }
            Err(WriteError::NoRoom) => self.waiting = Some(group),
            Err(WriteError::Io(error)) => {
                self.broken = Some(Outage::begin(self.config.retry));
                let figures = self.figures();
                self.front.update(&figures);
                self.front.fail(&LogError::Io(error.to_string()));
            }
        }
    }

    /// Makes a group durable: as one piece, or as more where a segment ends.
    pub(crate) fn write(&mut self, group: &mut Group, internal: bool) -> Result<(), WriteError> {
        while group.done.0 < group.bytes.len() {
            let room = self
                .directory
                .segment_bytes()
                .saturating_sub(self.offset)
                .saturating_sub(wide(COMMIT_BYTES));
            let take = fitting(
                group.bytes.get(group.done.0..).unwrap_or_default(),
                narrow(room),
            );
            if take == 0 {
                self.roll(internal)?;
                continue;
            }
            self.write_chunk(group, take)?;
        }
        Ok(())
    }

    fn write_chunk(&mut self, group: &mut Group, take: usize) -> Result<(), WriteError> {
        let start = group.done.0;
        let mut sealed = self.seal(group, start, take);
        if let Err(error) = self.put() {
            // What fdatasync could not write may be gone from the page cache though a second call says otherwise:
            // the file is left as it is and the group goes to another.
            self.figures.io_errors = self.figures.io_errors.saturating_add(1);
            self.roll(true).map_err(|_| WriteError::Io(error))?;
            sealed = self.seal(group, start, take);
            if let Err(error) = self.put() {
                self.figures.io_errors = self.figures.io_errors.saturating_add(1);
                return Err(WriteError::Io(error));
            }
        }
        let usages = self.publish(sealed);
        group.done = (
            start.saturating_add(take),
            group.done.1.saturating_add(usages),
        );
        Ok(())
    }

    /// Numbers and seals a chunk for the present segment into the scratch buffer, with its commit record.
    fn seal(&mut self, group: &mut Group, start: usize, take: usize) -> Sealed {
        let seed = self.directory.meta.identity.seed(self.segment);
        let incarnation = self.watermark.incarnation;
        let mut sealed = Sealed {
            last_seq: self.last_seq,
            h: self.h,
            count: 0,
            lives: Vec::new(),
            holes: Vec::new(),
        };
        let mut hashes = group.hashes.get(group.done.1..).unwrap_or_default().iter();
        self.scratch.clear();
        let chunk = start..start.saturating_add(take);
        self.scratch
            .extend_from_slice(group.bytes.get(chunk).unwrap_or_default());
        let mut at = 0;
        while let Some((kind, total)) = peek(self.scratch.get(at..).unwrap_or_default()) {
            let end = at.saturating_add(total);
            let Some(record) = self.scratch.get_mut(at..end) else {
                break;
            };
            let place = (self.offset.saturating_add(wide(at)), wide(total));
            sealed.add(kind, record, hashes.next_if(kind), seed, incarnation, place);
            at = end;
        }
        push_commit(
            &mut self.scratch,
            seed,
            sealed.last_seq,
            incarnation,
            sealed.count,
            &sealed.h,
        );
        sealed
    }

    fn put(&mut self) -> io::Result<()> {
        self.is_untouched = false;
        self.fill_ahead()?;
        let file = self.directory.file(self.segment);
        file.write_at(&self.scratch, self.offset)?;
        let started = Instant::now();
        if mutant::is(Mutant::AcknowledgedBeforeSync) {
            return Ok(());
        }
        let synced = file.sync();
        let took = started.elapsed();
        self.figures.sync_max = self.figures.sync_max.max(took);
        self.figures.sync_total = self.figures.sync_total.saturating_add(took);
        self.figures.groups = self.figures.groups.saturating_add(1);
        if mutant::is(Mutant::FailedSyncPasses) {
            return Ok(());
        }
        synced
    }

    /// Makes a durable chunk visible; returns how many usage records it had.
    fn publish(&mut self, sealed: Sealed) -> usize {
        let segment = self.segment;
        self.offset = self.offset.saturating_add(wide(self.scratch.len()));
        self.figures.written_bytes = self
            .figures
            .written_bytes
            .saturating_add(wide(self.scratch.len()));
        let mut usages = sealed.last_seq.saturating_sub(self.last_seq);
        for hole in &sealed.holes {
            usages = usages.saturating_sub(
                hole.last_seq
                    .saturating_sub(hole.first_seq)
                    .saturating_add(1),
            );
        }
        for (kind, key, empty, offset, total) in sealed.lives {
            let mark = kind == Kind::Mark;
            let before = self.live.get(&(mark, key)).map_or(0, |live| live.total);
            let at = Live {
                segment,
                offset,
                total,
                mark,
            };
            apply_live(&mut self.live, kind, key, empty, at);
            let after = self.live.get(&(mark, key)).map_or(0, |live| live.total);
            self.count_live(before, after, mark);
        }
        (self.last_seq, self.h) = (sealed.last_seq, sealed.h);
        let mut index = self.index.lock();
        index.durable_seq = self.last_seq;
        index
            .holes
            .extend(sealed.holes.into_iter().map(|hole| (hole.first_seq, hole)));
        if let Some(current) = index.segment_mut(segment) {
            current.end = self.offset;
        }
        index.note(Point {
            segment,
            offset: self.offset,
            last_seq: self.last_seq,
            h: self.h,
        });
        narrow(usages)
    }

    fn count_live(&mut self, before: u64, after: u64, mark: bool) {
        self.live_bytes = self.live_bytes.saturating_sub(before).saturating_add(after);
        if !mark {
            self.open = self
                .open
                .saturating_sub(u64::from(before > 0))
                .saturating_add(u64::from(after > 0));
        }
    }

    /// Seals the present segment and begins the next. Only what the log itself must write may take the last one.
    pub(crate) fn roll(&mut self, internal: bool) -> Result<(), WriteError> {
        let number = self.segment.saturating_add(1);
        let used = number
            .saturating_sub(self.watermark.oldest_segment)
            .saturating_add(1);
        let spare = u64::from(!internal);
        if used.saturating_add(spare) > self.directory.count() {
            return Err(WriteError::NoRoom);
        }
        let header = SegmentHeader {
            identity: self.directory.meta.identity,
            number,
            first_seq: self.last_seq.saturating_add(1),
            previous_h: self.h,
            previous_end: self.offset,
        };
        // Without it the next start reads this segment as well. It holds only what is durable.
        if self.directory.write_snapshot(&self.live, &header).is_err() {
            self.figures.io_errors = self.figures.io_errors.saturating_add(1);
        }
        let encoded = header.encode();
        self.directory
            .file(number)
            .write_at(&encoded, 0)
            .map_err(|error| {
                self.figures.io_errors = self.figures.io_errors.saturating_add(1);
                WriteError::Io(error)
            })?;
        let segment = Segment {
            number,
            file: self.directory.file(number).clone(),
            first_seq: header.first_seq,
            h: self.h,
            end: wide(SEGMENT_HEADER),
            sealed_us: 0,
        };
        let mut index = self.index.lock();
        if let Some(sealed) = index.segment_mut(self.segment) {
            sealed.sealed_us = self.now_us;
        }
        index.note(Index::segment_start(&segment));
        index.segments.push_back(segment);
        drop(index);
        (self.segment, self.offset) = (number, wide(SEGMENT_HEADER));
        self.filled = 0;
        (self.header, self.is_untouched) = (Some(encoded.to_vec()), true);
        Ok(())
    }

    /// Moves the watermark: carries what lives on out of passed segments, syncs a slot, then frees segments.
    fn advance(&mut self, committed: Committed) {
        self.now_us = self.now_us.max(committed.now_us);
        let goal = self
            .index
            .lock()
            .segment_of(committed.seq.saturating_add(1))
            .unwrap_or(self.segment);
        let mut next = self.watermark;
        while next.scan_segment < goal
            && self.broken.is_none()
            && self.carry(next.scan_segment).is_ok()
        {
            next.scan_segment = next.scan_segment.saturating_add(1);
        }
        if let Some(segment) = self.index.lock().segment(next.scan_segment) {
            (next.scan_first_seq, next.scan_h) = (segment.first_seq, segment.h);
        }
        (next.committed_seq, next.committed_h) = (committed.seq, committed.h);
        next.safe_seq = committed.safe_seq;
        next.oldest_segment = self.oldest_needed(&next);
        next.counter = next.counter.saturating_add(1);
        match self.directory.write_slot(&next) {
            Ok(()) => {
                self.watermark = next;
                self.index.lock().drop_below(next.oldest_segment);
            }
            // The old watermark stays in force: more is scanned and sent again, nothing is lost.
            Err(_) => self.figures.io_errors = self.figures.io_errors.saturating_add(1),
        }
        let figures = self.figures();
        self.front.update(&figures);
    }

    /// Finds the oldest segment that must stay.
    fn oldest_needed(&self, next: &Watermark) -> u64 {
        let index = self.index.lock();
        let in_use = |oldest: u64| self.segment.saturating_sub(oldest).saturating_add(1);
        let mut oldest = next.oldest_segment;
        while oldest < next.scan_segment {
            let Some(segment) = index.segment(oldest) else {
                break;
            };
            let last_seq = index.last_seq_of(oldest);
            let old =
                segment.sealed_us > 0 && self.now_us.saturating_sub(segment.sealed_us) > KEEP_US;
            let tight = in_use(oldest).saturating_mul(2) > self.directory.count();
            if last_seq > next.committed_seq || !(last_seq <= next.safe_seq || old || tight) {
                break;
            }
            oldest = oldest.saturating_add(1);
        }
        oldest
    }

    /// Writes everything that lives on in a segment again, into the present one.
    fn carry(&mut self, segment: u64) -> Result<(), WriteError> {
        let group_bytes = usize::try_from(self.config.group_bytes).unwrap_or(usize::MAX);
        let here: Vec<_> = self
            .live
            .iter()
            .filter(|(_, live)| live.segment == segment)
            .map(|(k, l)| (*k, *l))
            .collect();
        let mut group = Group::default();
        for ((mark, key), live) in here {
            let Some(payload) = read_live(&self.directory, &live) else {
                // Its bytes went bad since it was written. Nothing can be carried; it ends here, counted.
                self.figures.io_errors = self.figures.io_errors.saturating_add(1);
                self.live.remove(&(mark, key));
                self.count_live(live.total, 0, mark);
                continue;
            };
            group.push(
                if mark { Kind::Mark } else { Kind::Open },
                Some(&key),
                &payload,
                None,
            );
            if group.bytes.len() >= group_bytes {
                self.write(&mut group, true)?;
                group.clear();
            }
        }
        self.write(&mut group, true)
    }

    /// Continues in another writer's directory; returns the one left. Figures and waiting work stay.
    pub(crate) fn take_over(&mut self, successor: Self) -> Directory {
        self.live = successor.live;
        (self.live_bytes, self.open) = (successor.live_bytes, successor.open);
        (self.last_seq, self.h) = (successor.last_seq, successor.h);
        (self.segment, self.offset) = (successor.segment, successor.offset);
        self.filled = successor.filled;
        self.watermark = successor.watermark;
        (self.header, self.is_untouched) = (successor.header, successor.is_untouched);
        *self.index.lock() = successor.index.lock().clone();
        std::mem::replace(&mut self.directory, successor.directory)
    }

    /// Returns the figures as they are now.
    pub(crate) fn figures(&mut self) -> Update {
        let segment_bytes = self.directory.segment_bytes();
        let count = self.directory.count();
        // One segment for what the log itself must write; of many, one more for unused ends.
        let reserve = if count >= 32 { 2 } else { 1 };
        let sealed = self.segment.saturating_sub(self.watermark.oldest_segment);
        self.figures.durable_seq = self.last_seq;
        self.figures.used_bytes = sealed
            .saturating_mul(segment_bytes)
            .saturating_add(self.offset);
        self.figures.capacity_bytes = count.saturating_sub(reserve).saturating_mul(segment_bytes);
        self.figures.live_bytes = self.live_bytes;
        self.figures.open = self.open;
        self.figures
    }
}

impl Sealed {
    fn add(
        &mut self,
        kind: Kind,
        record: &mut [u8],
        content: Option<&Hash>,
        seed: u32,
        incarnation: u64,
        (offset, total): (u64, u64),
    ) {
        let mut seq = self.last_seq;
        if let Some(content) = content {
            seq = seq.saturating_add(1);
            self.last_seq = seq;
            self.h = chain_next(&self.h, content);
        } else if kind == Kind::Hole {
            seq = seq.saturating_add(1);
        }
        seal_record(record, seed, seq, incarnation);
        self.count = self.count.saturating_add(1);
        if let Some((key, is_bare)) = key_of(record) {
            self.lives.push((kind, key, is_bare, offset, total));
        }
        if kind != Kind::Hole {
            return;
        }
        if let Some(hole) = parse(record, seed) {
            let last_seq = u64_at(hole.payload, 0).max(seq);
            let reason =
                String::from_utf8_lossy(hole.payload.get(8..).unwrap_or_default()).into_owned();
            self.h = chain_next(&self.h, &hole_hash(seq, last_seq));
            self.last_seq = last_seq;
            self.holes.push(Hole {
                first_seq: seq,
                last_seq,
                reason: reason.into(),
            });
        }
    }
}

/// Gives the next content hash to usage records only.
trait NextIf<'a> {
    fn next_if(&mut self, kind: Kind) -> Option<&'a Hash>;
}

impl<'a> NextIf<'a> for std::slice::Iter<'a, Hash> {
    fn next_if(&mut self, kind: Kind) -> Option<&'a Hash> {
        if kind == Kind::Usage {
            self.next()
        } else {
            None
        }
    }
}

/// Finds how many bytes of whole records fit.
fn fitting(records: &[u8], room: usize) -> usize {
    if records.len() <= room {
        return records.len();
    }
    let mut at: usize = 0;
    while let Some((_, total)) = peek(records.get(at..).unwrap_or_default()) {
        let end = at.saturating_add(total);
        if end > room {
            break;
        }
        at = end;
    }
    at
}
