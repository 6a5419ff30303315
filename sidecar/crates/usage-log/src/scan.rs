//! Finds the records of one segment's bytes, also around damage. Pure.

use crate::format::{Kind, Record, may_begin, parse, peek, u64_at};

/// Where and how to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    /// Seed of the segment's checksums.
    pub(crate) seed: u32,
    /// First byte to look at.
    pub(crate) start: usize,
    /// Where the durable content ends, when that is known: bytes after it are no concern.
    pub(crate) end: Option<usize>,
    /// Highest incarnation that can have written here.
    pub(crate) incarnation_max: u64,
}

/// A piece of a segment, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Piece {
    /// A valid record of so many bytes.
    Record { offset: usize, total: usize },
    /// Bytes that don't validate.
    Bad { offset: usize, bytes: usize },
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Scan {
    /// Pieces up to the end.
    pub(crate) pieces: Vec<Piece>,
    /// Where the last committed group begins.
    pub(crate) last_group: usize,
    /// Where the content ends; the next record goes here.
    pub(crate) end: usize,
    /// Valid records of this segment stand after the end: it must be wiped before it is written again.
    pub(crate) wipe: bool,
    /// Bytes of what was cut, as far as it can be told.
    pub(crate) torn: usize,
}

/// Finds every valid record.
///
/// With a known end everything before it was acknowledged, so what doesn't validate is damage. Without one the last
/// valid commit record decides: bad bytes before it are damage, bad bytes after it are a torn tail and cut. Whole
/// records that follow the last commit directly are kept: a damaged commit record then costs nothing.
pub(crate) fn scan(image: &[u8], range: Range) -> Scan {
    let limit = range.end.unwrap_or(image.len()).min(image.len());
    let mut pieces = Vec::new();
    let mut at = range.start;
    let mut last_commit = 0;
    let mut incarnation_min = 0;
    let (mut last_group, mut open_group) = (range.start, range.start);
    while at < limit {
        let Some(record) = record_at(image, at, limit, range, incarnation_min) else {
            let next = resynchronise(image, at, limit, range, incarnation_min);
            let Some(next) = next else {
                if range.end.is_some() {
                    pieces.push(Piece::Bad {
                        offset: at,
                        bytes: limit.saturating_sub(at),
                    });
                }
                break;
            };
            pieces.push(Piece::Bad {
                offset: at,
                bytes: next.saturating_sub(at),
            });
            at = next;
            continue;
        };
        incarnation_min = record.incarnation;
        pieces.push(Piece::Record {
            offset: at,
            total: record.total,
        });
        at = at.saturating_add(record.total);
        if record.kind == Kind::Commit {
            last_commit = pieces.len();
            last_group = std::mem::replace(&mut open_group, at);
        }
    }
    if range.end.is_some() {
        return Scan {
            pieces,
            last_group,
            end: limit,
            wipe: false,
            torn: 0,
        };
    }
    Scan {
        last_group,
        ..cut_tail(image, pieces, last_commit, range.start)
    }
}

/// Drops what stands after the last commit, from the first bad byte on.
fn cut_tail(image: &[u8], mut pieces: Vec<Piece>, last_commit: usize, start: usize) -> Scan {
    let tail = pieces.get(last_commit..).unwrap_or_default();
    let whole = tail
        .iter()
        .take_while(|piece| matches!(piece, Piece::Record { .. }))
        .count();
    let seen = pieces.last().map_or(start, piece_end);
    let keep = last_commit.saturating_add(whole);
    let wipe = keep < pieces.len();
    pieces.truncate(keep);
    let end = pieces.last().map_or(start, piece_end);
    let torn = if wipe {
        seen.saturating_sub(end)
    } else {
        torn_record(image, pieces.last(), end)
    };
    Scan {
        pieces,
        end,
        wipe,
        torn,
        last_group: start,
    }
}

/// Estimates the bytes of a record that was torn at the end: as far as its header says, if it is of this segment.
fn torn_record(image: &[u8], last: Option<&Piece>, end: usize) -> usize {
    let rest = image.get(end..).unwrap_or_default();
    let last_seq = match last {
        Some(Piece::Record { offset, .. }) => u64_at(image, offset.saturating_add(8)),
        _ => 0,
    };
    match peek(rest) {
        Some((_, total)) if u64_at(rest, 8) >= last_seq => total.min(rest.len()),
        _ => 0,
    }
}

fn piece_end(piece: &Piece) -> usize {
    match *piece {
        Piece::Record { offset, total } => offset.saturating_add(total),
        Piece::Bad { offset, bytes } => offset.saturating_add(bytes),
    }
}

fn record_at(
    image: &[u8],
    at: usize,
    limit: usize,
    range: Range,
    incarnation_min: u64,
) -> Option<Record<'_>> {
    let bytes = image.get(at..limit)?;
    plausible(bytes, range, incarnation_min)?;
    parse(bytes, range.seed)
}

/// Checks what costs nothing before the checksum is computed.
fn plausible(bytes: &[u8], range: Range, incarnation_min: u64) -> Option<()> {
    let (_, total) = peek(bytes)?;
    let incarnation = u64_at(bytes, 16);
    (total <= bytes.len() && incarnation >= incarnation_min && incarnation <= range.incarnation_max)
        .then_some(())
}

fn resynchronise(
    image: &[u8],
    at: usize,
    limit: usize,
    range: Range,
    incarnation_min: u64,
) -> Option<usize> {
    let first = at.saturating_add(8);
    (first..limit).step_by(8).find(|next| {
        may_begin(image, *next) && record_at(image, *next, limit, range, incarnation_min).is_some()
    })
}
