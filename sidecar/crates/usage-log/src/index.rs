//! Where durable entries are: shared by the writer thread, which extends it, and readers.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::{
    api::{Hash, Hole},
    format::{Identity, SEGMENT_HEADER, wide},
    storage::StorageFile,
};

/// Distance of index points inside a segment, bytes.
const POINT_STRIDE: u64 = 64 << 10;

/// A record boundary where number and h are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Point {
    /// Segment number.
    pub(crate) segment: u64,
    /// Offset of the next record.
    pub(crate) offset: u64,
    /// Last number before it.
    pub(crate) last_seq: u64,
    /// h at that number.
    pub(crate) h: Hash,
}

/// A segment in use.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) file: Arc<dyn StorageFile>,
    pub(crate) first_seq: u64,
    /// h before its first entry.
    pub(crate) h: Hash,
    /// Where its durable content ends.
    pub(crate) end: u64,
    /// When it was sealed, on the caller's clock; 0 = it is being written, or unknown.
    pub(crate) sealed_us: u64,
}

/// Everything that readers need.
#[derive(Clone)]
pub(crate) struct Index {
    pub(crate) identity: Identity,
    pub(crate) incarnation: u64,
    /// Segments in use, oldest first, contiguous.
    pub(crate) segments: VecDeque<Segment>,
    /// Points by `last_seq`; only at and after `indexed_from`.
    points: BTreeMap<u64, Point>,
    /// Lowest number that can be read without another scan.
    pub(crate) indexed_from: u64,
    /// Last durable number.
    pub(crate) durable_seq: u64,
    /// Holes by first number.
    pub(crate) holes: BTreeMap<u64, Hole>,
    /// Damaged stretches: (segment, offset) to length.
    pub(crate) skips: BTreeMap<(u64, u64), u64>,
    /// Where the last read ended.
    pub(crate) cursor: Option<Point>,
    /// What lies below `indexed_from` is being checked; nobody need ask for another scan.
    pub(crate) scrubbing: bool,
}

impl Index {
    pub(crate) fn new(identity: Identity, incarnation: u64) -> Self {
        Self {
            identity,
            incarnation,
            segments: VecDeque::new(),
            points: BTreeMap::new(),
            indexed_from: 1,
            durable_seq: 0,
            holes: BTreeMap::new(),
            skips: BTreeMap::new(),
            cursor: None,
            scrubbing: false,
        }
    }

    /// Notes a boundary when it is far enough from the last one, or the first of its segment.
    pub(crate) fn note(&mut self, point: Point) {
        let far = self.points.last_key_value().is_none_or(|(_, last)| {
            last.segment != point.segment
                || point.offset.saturating_sub(last.offset) >= POINT_STRIDE
        });
        if far {
            // The later of two boundaries with the same number outlives the earlier one's segment.
            self.points.insert(point.last_seq, point);
        }
    }

    /// Finds the nearest boundary at or before an entry.
    pub(crate) fn start_for(&self, seq: u64) -> Option<Point> {
        let before = seq.checked_sub(1)?;
        let point = self
            .points
            .range(..=before)
            .next_back()
            .map(|(_, point)| *point);
        match (self.cursor, point) {
            (Some(cursor), Some(point))
                if cursor.last_seq <= before && cursor.last_seq > point.last_seq =>
            {
                Some(cursor)
            }
            (_, point) => point,
        }
    }

    /// Finds a segment by its number.
    pub(crate) fn segment(&self, number: u64) -> Option<&Segment> {
        let first = self.segments.front()?.number;
        self.segments
            .get(crate::format::narrow(number.checked_sub(first)?))
    }

    /// Finds a segment by its number, to change it.
    pub(crate) fn segment_mut(&mut self, number: u64) -> Option<&mut Segment> {
        let first = self.segments.front()?.number;
        self.segments
            .get_mut(crate::format::narrow(number.checked_sub(first)?))
    }

    /// Returns the oldest number still in the log.
    pub(crate) fn oldest_seq(&self) -> u64 {
        self.segments.front().map_or(1, |segment| segment.first_seq)
    }

    /// Returns the last number of a segment: the one before the next segment's first.
    pub(crate) fn last_seq_of(&self, number: u64) -> u64 {
        self.segment(number.saturating_add(1))
            .map_or(self.durable_seq, |next| next.first_seq.saturating_sub(1))
    }

    /// Finds the segment that holds an entry, or the last one when it isn't there yet.
    pub(crate) fn segment_of(&self, seq: u64) -> Option<u64> {
        let holding = self
            .segments
            .iter()
            .find(|segment| self.last_seq_of(segment.number) >= seq);
        holding
            .or_else(|| self.segments.back())
            .map(|segment| segment.number)
    }

    /// Copies what a reader needs that starts in a segment.
    pub(crate) fn part_from(&self, segment: u64) -> Self {
        Self {
            identity: self.identity,
            incarnation: self.incarnation,
            segments: self
                .segments
                .iter()
                .filter(|part| part.number >= segment)
                .cloned()
                .collect(),
            points: BTreeMap::new(),
            indexed_from: self.indexed_from,
            durable_seq: self.durable_seq,
            holes: self.holes.clone(),
            skips: self.skips.clone(),
            cursor: None,
            scrubbing: false,
        }
    }

    /// Takes in what a scrub found of older segments; `anew`: of all later ones as well.
    pub(crate) fn merge(&mut self, found: Self, anew: bool) {
        for part in &found.segments {
            if let Some(own) = self.segment_mut(part.number) {
                (own.first_seq, own.h) = (part.first_seq, part.h);
            }
        }
        if anew {
            self.points.clear();
            self.cursor = None;
        }
        for (seq, point) in found.points {
            self.points.entry(seq).or_insert(point);
        }
        self.holes.extend(found.holes);
        self.skips.extend(found.skips);
        (self.indexed_from, self.scrubbing) = (found.indexed_from, false);
        // A scrub begins where the log began then.
        let oldest = self.segments.front().map_or(0, |segment| segment.number);
        self.drop_below(oldest);
    }

    /// Forgets the segments below a number.
    pub(crate) fn drop_below(&mut self, number: u64) {
        while self.segments.len() > 1
            && self
                .segments
                .front()
                .is_some_and(|segment| segment.number < number)
        {
            self.segments.pop_front();
        }
        let oldest = self.segments.front().map_or(0, |segment| segment.number);
        self.points.retain(|_, point| point.segment >= oldest);
        self.skips.retain(|(segment, _), _| *segment >= oldest);
        let oldest_seq = self.oldest_seq();
        self.holes.retain(|_, hole| hole.last_seq >= oldest_seq);
        self.indexed_from = self.indexed_from.max(oldest_seq);
        self.cursor = self.cursor.filter(|cursor| cursor.segment >= oldest);
    }

    /// Returns the boundary at the very start of a segment.
    pub(crate) fn segment_start(segment: &Segment) -> Point {
        Point {
            segment: segment.number,
            offset: wide(SEGMENT_HEADER),
            last_seq: segment.first_seq.saturating_sub(1),
            h: segment.h,
        }
    }
}
