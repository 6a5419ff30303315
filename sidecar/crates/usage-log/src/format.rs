//! Bytes on disk, version 1. Pure: encodes, decodes, decides what is valid; does no I/O.
//!
//! Numbers are little-endian. Everything ends in or carries a CRC32C; a record's is seeded with (producer, salt,
//! segment number), so that bytes of an earlier use of the same file, or of a payload, never validate.

use crate::api::{Hash, Key};

/// Version of every structure here.
pub(crate) const FORMAT: u32 = 1;
/// Bytes before a segment's first record.
pub(crate) const SEGMENT_HEADER: usize = 128;
/// Bytes before a record's body.
pub(crate) const RECORD_HEADER: usize = 32;
/// Longest payload.
pub(crate) const PAYLOAD_MAX: usize = 64 << 10;
/// Length of a key.
pub(crate) const KEY: usize = 16;
/// Longest body: key and payload.
pub(crate) const BODY_MAX: usize = PAYLOAD_MAX + KEY;
/// Body of a commit record: count, reserved, h.
const COMMIT_BODY: usize = 40;
/// A commit record in all.
pub(crate) const COMMIT_BYTES: usize = RECORD_HEADER + COMMIT_BODY;
/// Distance of the two watermark slots.
pub(crate) const SLOT_STRIDE: usize = 4_096;
/// Bytes of a slot that are used.
pub(crate) const SLOT_BYTES: usize = 256;
/// Bytes of the description of a producer's directory.
pub(crate) const META_BYTES: usize = 128;

const SEGMENT_MAGIC: [u8; 8] = *b"TKUSGLOG";
const SLOT_MAGIC: [u8; 8] = *b"TKUSGMRK";
const META_MAGIC: [u8; 8] = *b"TKUSGDIR";
const KEYED: u8 = 1;

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Usage = 1,
    Open = 2,
    Expire = 3,
    Mark = 4,
    Hole = 5,
    Commit = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Usage,
            2 => Self::Open,
            3 => Self::Expire,
            4 => Self::Mark,
            5 => Self::Hole,
            6 => Self::Commit,
            _ => return None,
        })
    }
}

/// Who numbers the records and makes their checksums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) producer: [u8; 16],
    pub(crate) salt: [u8; 16],
}

impl Identity {
    /// Seeds the checksums of one segment.
    pub(crate) fn seed(&self, segment: u64) -> u32 {
        let crc = crc32c::crc32c(&self.producer);
        let crc = crc32c::crc32c_append(crc, &self.salt);
        crc32c::crc32c_append(crc, &segment.to_le_bytes())
    }
}

/// A record that validated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) seq: u64,
    pub(crate) incarnation: u64,
    pub(crate) key: Option<Key>,
    pub(crate) payload: &'a [u8],
    /// Bytes with header and padding.
    pub(crate) total: usize,
}

/// Rounds up to a record's boundary: header, body, padding to 8.
pub(crate) fn total_bytes(body: usize) -> usize {
    RECORD_HEADER.saturating_add(body).saturating_add(7) & !7
}

/// Converts a length, which never exceeds 64 bits.
pub(crate) fn wide(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Converts an offset inside a segment, which fits.
pub(crate) fn narrow(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Reads eight bytes; zero where they aren't there, which callers exclude by length first.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// Reads four bytes, likewise.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// Reads so many bytes, likewise.
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(from) = bytes.get(at..at.saturating_add(N)) {
        out.copy_from_slice(from);
    }
    out
}

/// Writes bytes at a place, where they fit.
pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at.saturating_add(value.len())) {
        to.copy_from_slice(value);
    }
}

/// Adds a record without number, incarnation and checksum; [`seal_record`] fills them in when its place is known.
pub(crate) fn push_record(buffer: &mut Vec<u8>, kind: Kind, key: Option<&Key>, payload: &[u8]) {
    let body = payload
        .len()
        .saturating_add(if key.is_some() { KEY } else { 0 });
    let end = buffer.len().saturating_add(total_bytes(body));
    buffer.extend_from_slice(&u32::try_from(body).unwrap_or(u32::MAX).to_le_bytes());
    buffer.extend_from_slice(&[0; 20]);
    buffer.extend_from_slice(&[
        kind as u8,
        if key.is_some() { KEYED } else { 0 },
        0,
        0,
        0,
        0,
        0,
        0,
    ]);
    if let Some(key) = key {
        buffer.extend_from_slice(key);
    }
    buffer.extend_from_slice(payload);
    buffer.resize(end, 0);
}

/// Adds a sealed commit record.
pub(crate) fn push_commit(
    buffer: &mut Vec<u8>,
    seed: u32,
    last_seq: u64,
    incarnation: u64,
    count: u32,
    h: &Hash,
) {
    let start = buffer.len();
    let mut body = [0; COMMIT_BODY];
    put(&mut body, 0, &count.to_le_bytes());
    put(&mut body, 8, h);
    push_record(buffer, Kind::Commit, None, &body);
    if let Some(record) = buffer.get_mut(start..) {
        seal_record(record, seed, last_seq, incarnation);
    }
}

/// Reads a commit record's (count, h).
pub(crate) fn commit_body(payload: &[u8]) -> (u32, Hash) {
    (u32_at(payload, 0), array_at(payload, 8))
}

/// Encodes a hole's payload: its last number and the reason.
pub(crate) fn hole_payload(last_seq: u64, reason: &str) -> Vec<u8> {
    let mut out = last_seq.to_le_bytes().to_vec();
    out.extend_from_slice(reason.as_bytes());
    out
}

/// Fills in number, incarnation and checksum of one whole record.
pub(crate) fn seal_record(record: &mut [u8], seed: u32, seq: u64, incarnation: u64) {
    put(record, 8, &seq.to_le_bytes());
    put(record, 16, &incarnation.to_le_bytes());
    let crc = record_crc(record, seed);
    put(record, 4, &crc.to_le_bytes());
}

fn record_crc(record: &[u8], seed: u32) -> u32 {
    let crc = crc32c::crc32c_append(seed, record.get(..4).unwrap_or_default());
    crc32c::crc32c_append(crc, record.get(8..).unwrap_or_default())
}

/// Reads kind and total length of the record that begins here, without its checksum; `None` where no record can.
pub(crate) fn peek(bytes: &[u8]) -> Option<(Kind, usize)> {
    if bytes.len() < RECORD_HEADER {
        return None;
    }
    let body = narrow(u64::from(u32_at(bytes, 0)));
    let kind = Kind::from_byte(*bytes.get(24)?)?;
    let flags = *bytes.get(25)?;
    let shortest = match kind {
        Kind::Usage => usize::from(flags).saturating_mul(KEY),
        Kind::Open | Kind::Expire | Kind::Mark => KEY,
        Kind::Hole => 8,
        Kind::Commit => COMMIT_BODY,
    };
    let keyed_ok = match kind {
        Kind::Usage => flags <= KEYED,
        Kind::Open | Kind::Expire | Kind::Mark => flags == KEYED,
        Kind::Hole | Kind::Commit => flags == 0,
    };
    let reserved_ok = bytes.get(26..RECORD_HEADER)?.iter().all(|byte| *byte == 0);
    if body > BODY_MAX
        || body < shortest
        || !keyed_ok
        || !reserved_ok
        || (kind == Kind::Commit && body != COMMIT_BODY)
    {
        return None;
    }
    Some((kind, total_bytes(body)))
}

/// Tells whether a record may begin here by its kind alone: cheap, where most places are none.
pub(crate) fn may_begin(image: &[u8], at: usize) -> bool {
    let kind = image.get(at.saturating_add(24));
    kind.is_some_and(|kind| Kind::from_byte(*kind).is_some())
}

/// Decodes the record that begins here; `None` unless every byte of it, padding included, is as it was written.
pub(crate) fn parse(bytes: &[u8], seed: u32) -> Option<Record<'_>> {
    let (_, total) = peek(bytes)?;
    let record = bytes.get(..total)?;
    if record_crc(record, seed) != u32_at(record, 4) {
        return None;
    }
    decode(record)
}

/// Decodes the record that begins here, whose bytes were checked before.
pub(crate) fn decode(bytes: &[u8]) -> Option<Record<'_>> {
    let (kind, total) = peek(bytes)?;
    let record = bytes.get(..total)?;
    let body_end = RECORD_HEADER.saturating_add(narrow(u64::from(u32_at(record, 0))));
    let keyed = record.get(25).is_some_and(|flags| flags & KEYED != 0);
    let payload_start = if keyed {
        RECORD_HEADER + KEY
    } else {
        RECORD_HEADER
    };
    Some(Record {
        kind,
        seq: u64_at(record, 8),
        incarnation: u64_at(record, 16),
        key: keyed.then(|| array_at(record, RECORD_HEADER)),
        payload: record.get(payload_start..body_end)?,
        total,
    })
}

/// Reads the key of a record that was sealed here, and whether it has nothing else.
pub(crate) fn key_of(record: &[u8]) -> Option<(Key, bool)> {
    let is_keyed = record.get(25).is_some_and(|flags| flags & KEYED != 0);
    let is_bare = narrow(u64::from(u32_at(record, 0))) <= KEY;
    is_keyed.then(|| (array_at(record, RECORD_HEADER), is_bare))
}

/// First bytes of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) identity: Identity,
    /// Counts segments over the producer's life; its file is this modulo the number of files.
    pub(crate) number: u64,
    /// Sequence number of its first sequenced record.
    pub(crate) first_seq: u64,
    /// h before it.
    pub(crate) previous_h: Hash,
    /// Where the durable content of the segment before it ends; 0 in the first.
    pub(crate) previous_end: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        put(&mut out, 0, &SEGMENT_MAGIC);
        put(&mut out, 8, &FORMAT.to_le_bytes());
        put(&mut out, 16, &self.identity.producer);
        put(&mut out, 32, &self.identity.salt);
        put(&mut out, 48, &self.number.to_le_bytes());
        put(&mut out, 56, &self.first_seq.to_le_bytes());
        put(&mut out, 64, &self.previous_h);
        put(&mut out, 96, &self.previous_end.to_le_bytes());
        finish(&mut out);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = validated(bytes, SEGMENT_HEADER, SEGMENT_MAGIC)?;
        Some(Self {
            identity: Identity {
                producer: array_at(bytes, 16),
                salt: array_at(bytes, 32),
            },
            number: u64_at(bytes, 48),
            first_seq: u64_at(bytes, 56),
            previous_h: array_at(bytes, 64),
            previous_end: u64_at(bytes, 96),
        })
    }
}

/// What must survive of how far the ledger got. Two copies are written in turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Watermark {
    pub(crate) producer: [u8; 16],
    /// The higher of two slots counts.
    pub(crate) counter: u64,
    pub(crate) incarnation: u64,
    pub(crate) committed_seq: u64,
    pub(crate) committed_h: Hash,
    pub(crate) safe_seq: u64,
    /// Recovery scans from the start of this segment; everything that lives on is in it or later.
    pub(crate) scan_segment: u64,
    pub(crate) scan_first_seq: u64,
    pub(crate) scan_h: Hash,
    /// Segments below are free.
    pub(crate) oldest_segment: u64,
}

impl Watermark {
    pub(crate) fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut out = [0; SLOT_BYTES];
        put(&mut out, 0, &SLOT_MAGIC);
        put(&mut out, 8, &FORMAT.to_le_bytes());
        put(&mut out, 16, &self.producer);
        put(&mut out, 32, &self.counter.to_le_bytes());
        put(&mut out, 40, &self.incarnation.to_le_bytes());
        put(&mut out, 48, &self.committed_seq.to_le_bytes());
        put(&mut out, 56, &self.committed_h);
        put(&mut out, 88, &self.safe_seq.to_le_bytes());
        put(&mut out, 96, &self.scan_segment.to_le_bytes());
        put(&mut out, 104, &self.scan_first_seq.to_le_bytes());
        put(&mut out, 112, &self.scan_h);
        put(&mut out, 144, &self.oldest_segment.to_le_bytes());
        finish(&mut out);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = validated(bytes, SLOT_BYTES, SLOT_MAGIC)?;
        Some(Self {
            producer: array_at(bytes, 16),
            counter: u64_at(bytes, 32),
            incarnation: u64_at(bytes, 40),
            committed_seq: u64_at(bytes, 48),
            committed_h: array_at(bytes, 56),
            safe_seq: u64_at(bytes, 88),
            scan_segment: u64_at(bytes, 96),
            scan_first_seq: u64_at(bytes, 104),
            scan_h: array_at(bytes, 112),
            oldest_segment: u64_at(bytes, 144),
        })
    }
}

/// Description of a producer's directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Meta {
    pub(crate) identity: Identity,
    pub(crate) segments: u32,
    pub(crate) segment_bytes: u32,
    /// Where it was made: boot id, device and inode of the directory.
    pub(crate) boot_id: [u8; 16],
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// The producer that it took over from; zeros = none.
    pub(crate) predecessor: [u8; 16],
}

impl Meta {
    pub(crate) fn encode(&self) -> [u8; META_BYTES] {
        let mut out = [0; META_BYTES];
        put(&mut out, 0, &META_MAGIC);
        put(&mut out, 8, &FORMAT.to_le_bytes());
        put(&mut out, 16, &self.identity.producer);
        put(&mut out, 32, &self.identity.salt);
        put(&mut out, 48, &self.segments.to_le_bytes());
        put(&mut out, 52, &self.segment_bytes.to_le_bytes());
        put(&mut out, 56, &self.boot_id);
        put(&mut out, 72, &self.device.to_le_bytes());
        put(&mut out, 80, &self.inode.to_le_bytes());
        put(&mut out, 88, &self.predecessor);
        finish(&mut out);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = validated(bytes, META_BYTES, META_MAGIC)?;
        Some(Self {
            identity: Identity {
                producer: array_at(bytes, 16),
                salt: array_at(bytes, 32),
            },
            segments: u32_at(bytes, 48),
            segment_bytes: u32_at(bytes, 52),
            boot_id: array_at(bytes, 56),
            device: u64_at(bytes, 72),
            inode: u64_at(bytes, 80),
            predecessor: array_at(bytes, 88),
        })
    }
}

/// Tells whether an intact description was written by a format that this version doesn't know.
pub(crate) fn is_other_format(meta: &[u8]) -> bool {
    let Some(meta) = meta.get(..META_BYTES) else {
        return false;
    };
    let at = META_BYTES.saturating_sub(4);
    let crc_ok = crc32c::crc32c(meta.get(..at).unwrap_or_default()) == u32_at(meta, at);
    crc_ok && meta.get(..8) == Some(META_MAGIC.as_slice()) && u32_at(meta, 8) != FORMAT
}

/// Ends a structure with the checksum over the rest of it.
pub(crate) fn finish(bytes: &mut [u8]) {
    let at = bytes.len().saturating_sub(4);
    let crc = crc32c::crc32c(bytes.get(..at).unwrap_or_default());
    put(bytes, at, &crc.to_le_bytes());
}

/// Returns a structure's bytes if checksum, magic and format are right.
pub(crate) fn validated(bytes: &[u8], length: usize, magic: [u8; 8]) -> Option<&[u8]> {
    let bytes = bytes.get(..length)?;
    let at = length.saturating_sub(4);
    let crc_ok = crc32c::crc32c(bytes.get(..at)?) == u32_at(bytes, at);
    let known = bytes.get(..8)? == magic.as_slice() && u32_at(bytes, 8) == FORMAT;
    (crc_ok && known).then_some(bytes)
}
