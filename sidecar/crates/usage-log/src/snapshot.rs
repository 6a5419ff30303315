//! What lives on at the end of a segment, written beside the segments when the next one begins. Pure.
//!
//! With it a start reads only the segments after that one. It is never needed: one that is torn, lost, of another
//! history or too large costs a start the time of a whole scan, and nothing else.

use crate::{
    api::Hash,
    fold::{Live, LiveMap},
    format::{
        BODY_MAX, FORMAT, Identity, SegmentHeader, array_at, finish, narrow, put, total_bytes,
        u32_at, u64_at, validated, wide,
    },
    mutant::{self, Mutant},
};

/// Bytes before the entries.
pub(crate) const SNAPSHOT_HEADER: usize = 128;
/// Bytes of an entry: key, segment, offset, length with the mark in its highest bit.
const ENTRY: usize = 32;
const MAGIC: [u8; 8] = *b"TKUSGLIV";
const MARK: u32 = 1 << 31;

/// The first bytes of a snapshot: of which history it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SnapshotHeader {
    pub(crate) producer: [u8; 16],
    /// It holds what lives on at the end of this segment.
    pub(crate) segment: u64,
    /// Where that segment ends.
    pub(crate) end: u64,
    /// First number after it.
    pub(crate) next_seq: u64,
    /// h at its end.
    pub(crate) h: Hash,
    count: u32,
    entries_crc: u32,
}

impl SnapshotHeader {
    /// Reads one; `None` unless every byte of it is as it was written.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = validated(bytes, SNAPSHOT_HEADER, MAGIC)?;
        Some(Self {
            count: u32_at(bytes, 12),
            producer: array_at(bytes, 16),
            segment: u64_at(bytes, 32),
            end: u64_at(bytes, 40),
            next_seq: u64_at(bytes, 48),
            h: array_at(bytes, 56),
            entries_crc: u32_at(bytes, 88),
        })
    }

    /// Tells whether the segment that begins so continues the history that this is a snapshot of.
    ///
    /// A segment may have been ended twice, in different places, when the header of the next one was lost.
    pub(crate) fn precedes(&self, next: &SegmentHeader) -> bool {
        let here = next.identity.producer == self.producer
            && next.number == self.segment.saturating_add(1);
        let bound = next.first_seq == self.next_seq
            && next.previous_h == self.h
            && next.previous_end == self.end;
        here && (bound || mutant::is(Mutant::SnapshotOfAnotherEnd))
    }

    /// Returns the length of the entries that follow.
    pub(crate) fn entry_bytes(&self) -> u64 {
        u64::from(self.count).saturating_mul(wide(ENTRY))
    }

    /// Reads the entries; `None` unless every byte of them is as it was written.
    pub(crate) fn entries(&self, bytes: &[u8], identity: &Identity) -> Option<LiveMap> {
        let bytes = bytes.get(..narrow(self.entry_bytes()))?;
        if crc32c::crc32c_append(identity.seed(self.segment), bytes) != self.entries_crc {
            return None;
        }
        let entry = |bytes: &[u8]| {
            let total = u32_at(bytes, 28);
            let live = Live {
                segment: u64_at(bytes, 16),
                offset: u64::from(u32_at(bytes, 24)),
                total: u64::from(total & !MARK),
                mark: total & MARK != 0,
            };
            let possible = live.total <= wide(total_bytes(BODY_MAX));
            possible.then_some(((live.mark, array_at(bytes, 0)), live))
        };
        bytes.chunks_exact(ENTRY).map(entry).collect()
    }
}

/// Encodes what lives on at the end of the segment before one that begins so; `None` where it doesn't fit.
pub(crate) fn encode(live: &LiveMap, next: &SegmentHeader, room: u64) -> Option<Vec<u8>> {
    let count = u32::try_from(live.len()).ok()?;
    let bytes = SNAPSHOT_HEADER.checked_add(live.len().checked_mul(ENTRY)?)?;
    if wide(bytes) > room {
        return None;
    }
    let segment = next.number.checked_sub(1)?;
    let mut out = vec![0; SNAPSHOT_HEADER];
    out.reserve_exact(bytes.saturating_sub(SNAPSHOT_HEADER));
    for ((mark, key), at) in live {
        let total = u32::try_from(at.total).ok()?;
        out.extend_from_slice(key);
        out.extend_from_slice(&at.segment.to_le_bytes());
        out.extend_from_slice(&u32::try_from(at.offset).ok()?.to_le_bytes());
        out.extend_from_slice(&(total | if *mark { MARK } else { 0 }).to_le_bytes());
    }
    let entries = out.get(SNAPSHOT_HEADER..).unwrap_or_default();
    let entries_crc = crc32c::crc32c_append(next.identity.seed(segment), entries);
    let header = out.get_mut(..SNAPSHOT_HEADER)?;
    put(header, 0, &MAGIC);
    put(header, 8, &FORMAT.to_le_bytes());
    put(header, 12, &count.to_le_bytes());
    put(header, 16, &next.identity.producer);
    put(header, 32, &segment.to_le_bytes());
    put(header, 40, &next.previous_end.to_le_bytes());
    put(header, 48, &next.first_seq.to_le_bytes());
    put(header, 56, &next.previous_h);
    put(header, 88, &entries_crc.to_le_bytes());
    finish(header);
    Some(out)
}
