//! Checks what a start has not read, segment by segment, while records come in; then it may be shipped.
//!
//! The scrub's thread folds every segment that was ended; the writer's takes its findings over. Damage changes h of
//! everything after it, so in that case the writer folds what was written since as well.

use std::{io, sync::Arc};

use parking_lot::Mutex;

use crate::{
    api::{ContentHash, Hash},
    directory::file_name,
    fold::Fold,
    format::{Identity, SEGMENT_HEADER, narrow},
    front::Front,
    index::{Index, Segment},
    recover::{Part, Recovery, rescan},
    scan::Range,
    writer::Writer,
};

/// What a scrub found.
pub(crate) struct Scrubbed {
    identity: Identity,
    fold: Fold,
    /// The first segment that it did not fold.
    next: u64,
}

/// How segments are read and named.
#[derive(Clone, Copy)]
struct Reading {
    identity: Identity,
    incarnation_max: u64,
    /// Number of files.
    count: u64,
}

impl Reading {
    /// Folds a segment's bytes; its last number is known.
    fn fold(self, fold: &mut Fold, segment: &Segment, seq_max: u64, image: &[u8]) {
        let range = Range {
            seed: self.identity.seed(segment.number),
            start: SEGMENT_HEADER,
            end: Some(narrow(segment.end)),
            incarnation_max: self.incarnation_max,
        };
        let follows = !fold.index.segments.is_empty();
        let part = Part {
            number: segment.number,
            file: &segment.file,
            name: &file_name(segment.number, self.count),
            header: Some((segment.first_seq, follows.then_some(segment.h))),
            seq_max,
        };
        part.fold(fold, image, range);
    }
}

/// Reads a segment as far as it is durable.
fn image(segment: &Segment) -> io::Result<Vec<u8>> {
    let mut image = vec![0; narrow(segment.end)];
    segment.file.read_at(&mut image, 0)?;
    Ok(image)
}

/// Tells whether a fold arrives where a segment begins.
fn arrives(fold: &Fold, segment: &Segment) -> bool {
    fold.last_seq.saturating_add(1) == segment.first_seq && fold.h == segment.h
}

/// A scrub under way. It writes nothing.
pub(crate) struct Scrub {
    reading: Reading,
    hash: ContentHash,
    front: Arc<Front>,
    index: Arc<Mutex<Index>>,
    /// The ledger's word: at this number h is known.
    known: Option<(u64, Hash)>,
    fold: Fold,
    next: u64,
    /// The first segment that the start itself has read.
    read_from: u64,
}

impl Scrub {
    /// Begins where a start has left something unread; none where it has read everything.
    pub(crate) fn after(
        recovery: &Recovery,
        count: u64,
        hash: &ContentHash,
        front: &Arc<Front>,
        index: &Arc<Mutex<Index>>,
    ) -> Option<Self> {
        let (next, read_from) = recovery.unread?;
        let watermark = recovery.watermark;
        let identity = recovery.fold.index.identity;
        let known = Some((watermark.committed_seq, watermark.committed_h));
        front.set_unchecked(bytes_between(&recovery.fold.index, next, read_from));
        let base = (watermark.scan_first_seq, watermark.scan_h);
        Some(Self {
            reading: Reading {
                identity,
                incarnation_max: watermark.incarnation,
                count,
            },
            hash: Arc::clone(hash),
            front: Arc::clone(front),
            index: Arc::clone(index),
            known,
            fold: begin(identity, hash, base, known),
            next,
            read_from,
        })
    }

    /// Checks one segment; gives nothing more when it is done, or nobody needs it any more.
    pub(crate) fn step(mut self) -> Option<Self> {
        let Some(due) = self.due() else {
            self.front.set_unchecked(0);
            return None;
        };
        let Some(segment) = due else {
            self.front.set_unchecked(0);
            self.front.finish_scrub(Scrubbed {
                identity: self.reading.identity,
                fold: self.fold,
                next: self.next,
            });
            return None;
        };
        let Ok(image) = image(&segment) else {
            // Whoever reads there has the writer look for it, and meets the same error.
            self.index.lock().scrubbing = false;
            return None;
        };
        // A segment that the ledger has by now may have been written over while it was read.
        let seq_max = {
            let index = self.index.lock();
            let there = index.segment(self.next).is_some();
            there.then(|| index.last_seq_of(self.next))
        };
        if let Some(seq_max) = seq_max {
            self.reading.fold(&mut self.fold, &segment, seq_max, &image);
            self.next = self.next.saturating_add(1);
        }
        Some(self)
    }

    /// Finds the segment to check next: the inner none when all are, the outer one when nobody needs them.
    #[allow(clippy::option_option)] // two reasons to end, one of them with a result
    fn due(&mut self) -> Option<Option<Segment>> {
        let index = self.index.lock();
        if index.identity != self.reading.identity || !index.scrubbing {
            return None;
        }
        let newest = index.segments.back()?.number;
        let there = index.segment(self.next).cloned();
        let segment = if let Some(segment) = there {
            segment
        } else {
            let first = index.segments.front()?.clone();
            let base = (first.first_seq, first.h);
            self.fold = begin(self.reading.identity, &self.hash, base, self.known);
            self.next = first.number;
            first
        };
        let unchecked = bytes_between(&index, self.next, self.read_from);
        drop(index);
        self.front.set_unchecked(unchecked);
        let enough = self.next >= self.read_from && arrives(&self.fold, &segment);
        Some((!enough && self.next < newest).then_some(segment))
    }
}

fn bytes_between(index: &Index, from: u64, to: u64) -> u64 {
    let parts = index.segments.iter();
    let unread = parts.filter(|part| (from..to).contains(&part.number));
    unread.fold(0, |sum: u64, part| sum.saturating_add(part.end))
}

fn begin(
    identity: Identity,
    hash: &ContentHash,
    (first_seq, h): (u64, Hash),
    known: Option<(u64, Hash)>,
) -> Fold {
    let index = Index::new(identity, 0);
    Fold::new(
        Arc::clone(hash),
        index,
        first_seq.saturating_sub(1),
        h,
        known,
    )
}

impl Writer {
    /// Takes in what a scrub found; what was checked can be read from now on.
    pub(crate) fn take_scrub(&mut self, found: Scrubbed) {
        let Scrubbed {
            identity,
            mut fold,
            next,
        } = found;
        if identity != self.directory.meta.identity {
            return;
        }
        self.front.add_damage(std::mem::take(&mut fold.damage));
        let rest: Vec<(Segment, u64)> = {
            let mut index = self.index.lock();
            index.scrubbing = false;
            let later = index.segments.iter().filter(|part| part.number >= next);
            later
                .map(|part| (part.clone(), index.last_seq_of(part.number)))
                .collect()
        };
        let Some((first, _)) = rest.first().filter(|(first, _)| first.number == next) else {
            return;
        };
        let anew = !arrives(&fold, first);
        if anew {
            let reading = Reading {
                identity,
                incarnation_max: self.watermark.incarnation,
                count: self.directory.count(),
            };
            for (segment, seq_max) in &rest {
                // What can't be read now is looked for again by whoever reads there.
                let Ok(image) = image(segment) else { return };
                reading.fold(&mut fold, segment, *seq_max, &image);
            }
            fold.fill_to(self.last_seq, "CRC");
            self.h = fold.h;
        }
        self.index.lock().merge(fold.index, anew);
    }

    /// Makes older or damaged entries readable again.
    pub(crate) fn rescan(&mut self, seq: u64) {
        let from = {
            let index = self.index.lock();
            let number = index.segment_of(seq).unwrap_or(self.segment);
            index.segment(number).cloned()
        };
        let Some(from) = from else { return };
        let current = (self.segment, self.offset);
        // On failure readers keep asking; the disk error is theirs to see as well.
        let Ok(fold) = rescan(&self.directory, &self.hash, &self.watermark, &from, current) else {
            return;
        };
        let mut index = self.index.lock();
        let sealed: Vec<(u64, u64)> = index
            .segments
            .iter()
            .map(|part| (part.number, part.sealed_us))
            .collect();
        let (incarnation, durable_seq) = (index.incarnation, self.last_seq);
        *index = fold.index;
        (index.incarnation, index.durable_seq) = (incarnation, durable_seq);
        for (number, sealed_us) in sealed {
            if let Some(part) = index.segment_mut(number) {
                part.sealed_us = sealed_us;
            }
        }
        self.h = fold.h;
    }
}
