//! Reads a producer's directory back: which segments count, what they hold, where to go on.
//!
//! Where a snapshot says what lives on at the end of a segment, only what follows is read; the rest is left to the scrub.

use std::sync::Arc;

use crate::{
    api::{ContentHash, Damage, Hash, Kept, LogError},
    directory::{Directory, damaged},
    fold::{Fold, Live, LiveMap},
    format::{
        COMMIT_BYTES, SEGMENT_HEADER, SegmentHeader, Watermark, narrow, parse, push_commit, wide,
    },
    index::{Index, Segment},
    mutant::{self, Mutant},
    scan::{Range, Scan, scan},
    storage::StorageFile,
};

/// What a directory holds.
pub(crate) struct Recovery {
    /// Numbers, h, what lives on, damage, and the index.
    pub(crate) fold: Fold,
    /// The watermark as it is on disk now.
    pub(crate) watermark: Watermark,
    /// The segment to go on in.
    pub(crate) segment: u64,
    /// Where.
    pub(crate) offset: u64,
    /// Bytes cut.
    pub(crate) torn: u64,
    /// Segments that were not read, from the first to before the second.
    pub(crate) unread: Option<(u64, u64)>,
}

/// Recovers a directory, raises its incarnation and makes everything that is kept durable.
pub(crate) fn recover(directory: &Directory, hash: &ContentHash) -> Result<Recovery, LogError> {
    let mut damage = Vec::new();
    let slot = directory.read_slots(&mut damage);
    let survey = Survey::of(directory, slot.as_ref(), &mut damage);
    let incarnation_max = slot.map_or(u64::MAX, |slot| slot.incarnation);
    let known = slot.map(|slot| (slot.committed_seq, slot.committed_h));
    let start = slot
        .map_or(survey.oldest, |slot| slot.scan_segment)
        .clamp(survey.oldest, survey.newest);
    let shortcut = slot.and_then(|_| shortcut(directory, &survey, start));
    let (from, live) = shortcut.unwrap_or((start, LiveMap::new()));
    let plan = Plan {
        start: from,
        newest: survey.newest,
        open_end: None,
        incarnation_max,
    };
    let base = slot
        .filter(|slot| slot.scan_segment == from)
        .map(|slot| (slot.scan_first_seq, slot.scan_h));
    let (fold, tail) = fold_segments(directory, (hash, live), &survey, plan, base, known)?;
    let mut fold = fold.finish();
    // What lived in a passed segment was written again since; if it is not there, it has ended.
    fold.live.retain(|_, live| live.segment >= start);
    fold.damage.splice(0..0, damage);
    fold.index.scrubbing = start < from;
    let mut recovery = settle(directory, fold, &tail, (start, &survey), slot)
        .map_err(|error| LogError::Io(format!("recovering: {error}")))?;
    recovery.unread = (start < from).then_some((start, from));
    if mutant::is(Mutant::HeadersAreTrusted) {
        let index = &mut recovery.fold.index;
        (index.indexed_from, index.scrubbing) = (index.oldest_seq(), false);
    }
    Ok(recovery)
}

/// Finds where to begin after the last snapshot, with what lives on there; none unless every header is as it was
/// written.
fn shortcut(directory: &Directory, survey: &Survey, start: u64) -> Option<(u64, LiveMap)> {
    if (start..=survey.newest).any(|number| survey.header(number).is_none()) {
        return None;
    }
    let (segment, live) = directory.read_snapshot(start, |number| survey.header(number))?;
    Some((segment.checked_add(1)?, live))
}

/// Scans again from an older segment, for reading below the watermark or after bytes went bad.
pub(crate) fn rescan(
    directory: &Directory,
    hash: &ContentHash,
    watermark: &Watermark,
    from: &Segment,
    current: (u64, u64),
) -> Result<Fold, LogError> {
    let mut damage = Vec::new();
    let mut survey = Survey::of(directory, Some(watermark), &mut damage);
    survey.newest = current.0;
    let start = from.number.clamp(survey.oldest, survey.newest);
    let plan = Plan {
        start,
        newest: current.0,
        open_end: Some(current.1),
        incarnation_max: watermark.incarnation,
    };
    let known = Some((watermark.committed_seq, watermark.committed_h));
    // Its header may be older than a hole before it; what is in memory is not.
    let base = (start == from.number).then_some((from.first_seq, from.h));
    let start = (hash, LiveMap::new());
    let (mut fold, _) = fold_segments(directory, start, &survey, plan, base, known)?;
    fold.index.durable_seq = fold.last_seq;
    fold.index.incarnation = watermark.incarnation;
    Ok(fold)
}

/// Reads something that lives on back from its place.
pub(crate) fn read_live(directory: &Directory, live: &Live) -> Option<Vec<u8>> {
    let mut bytes = vec![0; narrow(live.total)];
    directory
        .file(live.segment)
        .read_at(&mut bytes, live.offset)
        .ok()?;
    let payload = parse(&bytes, directory.meta.identity.seed(live.segment))?
        .payload
        .to_vec();
    Some(payload)
}

/// Reads everything that lives on: open reservations and marks.
pub(crate) fn read_kept(directory: &Directory, fold: &Fold) -> (Vec<Kept>, Vec<Kept>) {
    let mut open = Vec::new();
    let mut marks = Vec::new();
    for ((mark, key), live) in &fold.live {
        if let Some(payload) = read_live(directory, live) {
            if *mark { &mut marks } else { &mut open }.push(Kept { key: *key, payload });
        }
    }
    (open, marks)
}

/// Which segments are in use, by their headers.
struct Survey {
    oldest: u64,
    newest: u64,
    headers: Vec<Option<SegmentHeader>>,
}

impl Survey {
    fn of(directory: &Directory, slot: Option<&Watermark>, damage: &mut Vec<Damage>) -> Self {
        let count = directory.count();
        let least = slot.map_or(1, |slot| slot.oldest_segment);
        let found: Vec<SegmentHeader> = (0..count)
            .filter_map(|file| directory.header(file))
            .filter(|header| header.number >= least)
            .collect();
        let fallback = slot.map_or(1, |slot| slot.scan_segment).saturating_sub(1);
        let mut newest = found
            .iter()
            .map(|header| header.number)
            .max()
            .unwrap_or(fallback);
        if holds_records(directory, newest.saturating_add(1)) {
            newest = newest.saturating_add(1);
        }
        let newest = newest.max(1);
        let lowest = newest.saturating_add(1).saturating_sub(count).max(1);
        let oldest = match slot {
            Some(slot) => slot.oldest_segment,
            None => found
                .iter()
                .map(|header| header.number)
                .filter(|number| *number >= lowest)
                .min()
                .unwrap_or(1),
        };
        let oldest = oldest.clamp(lowest, newest);
        let header = |number: u64| found.iter().find(|header| header.number == number).copied();
        let headers: Vec<_> = (oldest..=newest).map(header).collect();
        for (number, header) in (oldest..=newest).zip(&headers) {
            if header.is_none() {
                let file = directory.file_name(number);
                damage.push(damaged(
                    &file,
                    0,
                    SEGMENT_HEADER,
                    "the segment's header doesn't validate",
                ));
            }
        }
        Self {
            oldest,
            newest,
            headers,
        }
    }

    fn header(&self, number: u64) -> Option<SegmentHeader> {
        let at = number.checked_sub(self.oldest)?;
        self.headers.get(narrow(at)).copied().flatten()
    }
}

/// Tells whether a segment with a damaged header follows: its file has no header, but records of that segment.
fn holds_records(directory: &Directory, number: u64) -> bool {
    if directory.header(number).is_some() {
        return false;
    }
    let Ok(image) = directory.image(number) else {
        return false;
    };
    let range = range_of(directory, number, None, u64::MAX);
    !scan(&image, range).pieces.is_empty()
}

fn range_of(directory: &Directory, number: u64, end: Option<u64>, incarnation_max: u64) -> Range {
    Range {
        seed: directory.meta.identity.seed(number),
        start: SEGMENT_HEADER,
        end: end.map(narrow),
        incarnation_max,
    }
}

/// Which segments to scan.
#[derive(Clone, Copy)]
struct Plan {
    start: u64,
    newest: u64,
    /// Where the newest one ends, when that is known.
    open_end: Option<u64>,
    incarnation_max: u64,
}

/// Folds the plan's segments. `base`: number and h at the first one, where its header is not the best witness.
fn fold_segments(
    directory: &Directory,
    (hash, live): (&ContentHash, LiveMap),
    survey: &Survey,
    plan: Plan,
    base: Option<(u64, Hash)>,
    known: Option<(u64, Hash)>,
) -> Result<(Fold, Scan), LogError> {
    let header = survey.header(plan.start);
    let (first_seq, h) = match (base, header) {
        (Some(base), _) => base,
        (None, Some(header)) => (header.first_seq, header.previous_h),
        (None, None) => (
            1,
            crate::chain::chain_start(&directory.meta.identity.producer),
        ),
    };
    let index = index_before(directory, survey, plan, first_seq, h);
    let mut fold = Fold::new(hash.clone(), index, first_seq.saturating_sub(1), h, known);
    fold.live = live;
    let mut tail = Scan::default();
    for number in plan.start..=plan.newest {
        let image = directory
            .image(number)
            .map_err(|error| LogError::Io(format!("reading segment {number}: {error}")))?;
        let next = survey
            .header(number.saturating_add(1))
            .filter(|_| number < plan.newest);
        let end = if number == plan.newest {
            plan.open_end
        } else {
            next.map(|next| next.previous_end)
        };
        let range = range_of(directory, number, end, plan.incarnation_max);
        let header = survey.header(number).map(|header| {
            let written_h = (number > plan.start).then_some(header.previous_h);
            (header.first_seq, written_h)
        });
        let part = Part {
            number,
            file: directory.file(number),
            name: &directory.file_name(number),
            header,
            seq_max: next.map_or(u64::MAX, |next| next.first_seq.saturating_sub(1)),
        };
        tail = part.fold(&mut fold, &image, range);
    }
    Ok((fold, tail))
}

/// One segment on its way into a fold.
pub(crate) struct Part<'a> {
    pub(crate) number: u64,
    pub(crate) file: &'a Arc<dyn StorageFile>,
    pub(crate) name: &'a str,
    /// First number, and h before it where a segment went before.
    pub(crate) header: Option<(u64, Option<Hash>)>,
    /// Its last number can't be higher.
    pub(crate) seq_max: u64,
}

impl Part<'_> {
    /// Checks every byte and folds what is found.
    pub(crate) fn fold(&self, fold: &mut Fold, image: &[u8], range: Range) -> Scan {
        let found = scan(image, range);
        if let Some((first_seq, written_h)) = self.header {
            fold.fill_to(first_seq.saturating_sub(1), "CRC");
            fold.begin_segment(written_h);
        }
        fold.index.segments.push_back(Segment {
            number: self.number,
            file: Arc::clone(self.file),
            first_seq: fold.last_seq.saturating_add(1),
            h: fold.h,
            end: wide(found.end),
            sealed_us: 0,
        });
        let checked = (&found, self.seq_max);
        fold.segment(self.number, self.name, image, checked);
        found
    }
}

/// Lists the segments below the scan's start, from their headers alone.
fn index_before(
    directory: &Directory,
    survey: &Survey,
    plan: Plan,
    first_seq: u64,
    h: [u8; 32],
) -> Index {
    let mut index = Index::new(directory.meta.identity, 0);
    let (mut next_seq, mut next_h) = (first_seq, h);
    for number in (survey.oldest..plan.start).rev() {
        let end = survey
            .header(number.saturating_add(1))
            .map_or(u64::MAX, |next| next.previous_end)
            .min(directory.segment_bytes());
        if let Some(header) = survey.header(number) {
            (next_seq, next_h) = (header.first_seq, header.previous_h);
        }
        index.segments.push_front(Segment {
            number,
            file: directory.file(number).clone(),
            first_seq: next_seq,
            h: next_h,
            end,
            sealed_us: 0,
        });
    }
    if mutant::is(Mutant::HeadersAreTrusted) {
        for segment in index.segments.clone() {
            index.note(Index::segment_start(&segment));
        }
    }
    index
}

/// Wipes the torn tail, commits what stands whole after the last commit, raises the incarnation; all synced.
fn settle(
    directory: &Directory,
    mut fold: Fold,
    tail: &Scan,
    (start, survey): (u64, &Survey),
    slot: Option<Watermark>,
) -> std::io::Result<Recovery> {
    let segment = survey.newest;
    let file = directory.file(segment);
    for number in (start..=segment).filter(|number| survey.header(*number).is_none()) {
        repair_header(directory, &fold, number)?;
    }
    if tail.wipe {
        let rest = narrow(directory.segment_bytes()).saturating_sub(tail.end);
        file.write_at(&vec![0; rest], wide(tail.end))?;
    }
    let incarnation = slot
        .map_or(0, |slot| slot.incarnation)
        .max(fold.incarnation);
    let mut offset = wide(tail.end);
    let mut torn = wide(tail.torn);
    if fold.uncommitted > 0 {
        torn = torn.max(wide(COMMIT_BYTES));
        let mut commit = Vec::new();
        let seed = directory.meta.identity.seed(segment);
        push_commit(
            &mut commit,
            seed,
            fold.last_seq,
            incarnation,
            fold.uncommitted,
            &fold.h,
        );
        let end = offset.saturating_add(wide(commit.len()));
        // Without room for it the next segment's header says that these records stand.
        if end <= directory.segment_bytes() {
            file.write_at(&commit, offset)?;
            offset = end;
        }
    }
    write_again(file.as_ref(), tail.last_group, narrow(offset))?;
    file.sync()?;
    let watermark = watermark_after(directory, &fold, (start, survey), slot);
    let mut watermark = Watermark {
        incarnation: incarnation.saturating_add(1),
        ..watermark
    };
    for _ in 0..2 {
        watermark.counter = watermark.counter.saturating_add(1);
        directory.write_slot(&watermark)?;
    }
    fold.index.incarnation = watermark.incarnation;
    if let Some(last) = fold.index.segment_mut(segment) {
        last.end = offset;
    }
    Ok(Recovery {
        fold,
        watermark,
        segment,
        offset,
        torn,
        unread: None,
    })
}

/// Writes the header and the last group once more, so that the sync that follows covers them.
///
/// Their own sync may have failed before the last process ended. The page cache then shows them as they were written
/// and calls them clean, and a sync alone would succeed without writing anything.
fn write_again(file: &dyn StorageFile, from: usize, to: usize) -> std::io::Result<()> {
    for (from, to) in [(0, SEGMENT_HEADER), (from, to)] {
        let mut bytes = vec![0; to.saturating_sub(from)];
        file.read_at(&mut bytes, wide(from))?;
        file.write_at(&bytes, wide(from))?;
    }
    Ok(())
}

/// Takes the slot as it is, or makes what can be known without one.
fn watermark_after(
    directory: &Directory,
    fold: &Fold,
    (start, survey): (u64, &Survey),
    slot: Option<Watermark>,
) -> Watermark {
    let producer = directory.meta.identity.producer;
    let first = slot.unwrap_or_else(|| Watermark {
        producer,
        counter: 0,
        incarnation: 0,
        committed_seq: 0,
        committed_h: crate::chain::chain_start(&producer),
        safe_seq: 0,
        scan_segment: 0,
        scan_first_seq: 0,
        scan_h: [0; 32],
        oldest_segment: 0,
    });
    let (scan_first_seq, scan_h) = match fold.index.segment(start) {
        Some(segment) if first.scan_segment != start => (segment.first_seq, segment.h),
        _ => (first.scan_first_seq, first.scan_h),
    };
    Watermark {
        scan_segment: start,
        scan_first_seq,
        scan_h,
        oldest_segment: survey.oldest,
        ..first
    }
}

/// Writes a damaged header again, so that segments after it find their way.
fn repair_header(directory: &Directory, fold: &Fold, number: u64) -> std::io::Result<()> {
    let Some(segment) = fold.index.segment(number) else {
        return Ok(());
    };
    let before = number
        .checked_sub(1)
        .and_then(|before| fold.index.segment(before));
    let header = SegmentHeader {
        identity: directory.meta.identity,
        number,
        first_seq: segment.first_seq,
        previous_h: segment.h,
        previous_end: before.map_or(0, |before| before.end),
    };
    directory.file(number).write_at(&header.encode(), 0)
}
