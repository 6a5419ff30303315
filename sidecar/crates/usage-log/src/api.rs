//! The public surface.

use std::{borrow::Cow, path::PathBuf, sync::Arc, time::Duration};

/// SHA-256 digest.
pub type Hash = [u8; 32];

/// Names a reservation (or a mark): sixteen bytes.
pub type Key = [u8; 16];

/// Recomputes the content hash of a usage record from its payload, during recovery and shipping.
///
/// Must be pure and give exactly what was passed to [`Append::Usage`]. `None`: the payload can't be decoded; the log
/// then treats the record as damaged.
pub type ContentHash = Arc<dyn Fn(&[u8]) -> Option<Hash> + Send + Sync>;

/// Randomness for a new producer. The log makes none itself.
#[derive(Clone, Copy, Debug)]
pub struct NewProducer {
    /// Producer id.
    pub id: [u8; 16],
    /// Secret of the volume: makes checksums unforgeable by payloads. Never leaves the directory.
    pub salt: [u8; 16],
}

/// How a log is laid out and paced.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder that holds the producers' directories; made when missing.
    pub root: PathBuf,
    /// Bytes per segment. Fixed when the producer is made.
    pub segment_bytes: u32,
    /// Number of segments, at least 4. Fixed when the producer is made.
    pub segments: u32,
    /// Largest number of records in one group.
    pub group_records: u32,
    /// Largest number of bytes in one group.
    pub group_bytes: u32,
    /// Bytes that may wait for the writer before appends are refused with [`LogError::Busy`].
    pub pending_bytes: u32,
    /// First pause after writing failed on two segments; each further failure doubles it, up to a hundred times as much.
    pub retry: Duration,
    /// Used when the folder holds no producer yet.
    pub new_producer: NewProducer,
}

impl Config {
    /// Builds the defaults for a folder: 64 segments of 16 MiB, groups of 4,096 records or 1 MiB.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, new_producer: NewProducer) -> Self {
        Self {
            root: root.into(),
            segment_bytes: 16 << 20,
            segments: 64,
            group_records: 4_096,
            group_bytes: 1 << 20,
            pending_bytes: 16 << 20,
            retry: Duration::from_millis(100),
            new_producer,
        }
    }
}

/// What to append. Payloads are at most 64 KiB.
#[derive(Clone, Copy, Debug)]
pub enum Append<'a> {
    /// A usage record; takes a sequence number.
    Usage {
        /// Encoded record.
        payload: &'a [u8],
        /// Its content hash.
        content_hash: Hash,
        /// The reservation that it ends, durably together with the record.
        ends: Option<Key>,
    },
    /// A reservation was opened (or opened again with other content).
    Open {
        /// The reservation.
        key: Key,
        /// Encoded reservation.
        payload: &'a [u8],
    },
    /// A reservation ended without a usage record.
    Expire {
        /// The reservation.
        key: Key,
    },
    /// A burn mark; replaces the mark of the same key. An empty payload removes it.
    Mark {
        /// Names the mark.
        key: Key,
        /// Encoded mark.
        payload: &'a [u8],
    },
}

/// Where an entry stands in the order of this process's appends. Survives a change of producer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position {
    pub(crate) entry: u64,
    pub(crate) usage: u64,
}

impl Position {
    /// Returns how many usage records this process had appended up to this entry: a usage record's own number.
    #[must_use]
    pub fn record_number(self) -> u64 {
        self.usage
    }
}

/// How far the log has grown; either figure is enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Growth {
    /// Last durable sequence number.
    pub durable_seq: u64,
    /// Bytes written by this process, as [`Stats::written_bytes`].
    pub written_bytes: u64,
}

/// Something that outlives its segment: an open reservation or a mark.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Its key.
    pub key: Key,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A stretch of damaged sequence numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hole {
    /// First sequence number.
    pub first_seq: u64,
    /// Last sequence number.
    pub last_seq: u64,
    /// Why: `CRC` (acknowledged data is damaged), `LAST_GROUP` (damaged in the last group, perhaps never
    /// acknowledged), `CONTENT` (the payload can't be decoded), `SEGMENT` (a whole segment is missing).
    pub reason: Cow<'static, str>,
}

/// Bytes that didn't validate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Where: file name inside the producer's directory.
    pub file: String,
    /// Offset of the first bad byte's record.
    pub offset: u64,
    /// How many bytes were skipped.
    pub bytes: u64,
    /// What it means.
    pub what: &'static str,
}

/// What was found at open.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The producer.
    pub producer_id: [u8; 16],
    /// This start's incarnation, already synced.
    pub incarnation: u64,
    /// Next sequence number.
    pub next_seq: u64,
    /// Last sequence number that the ledger is known to have.
    pub committed_seq: u64,
    /// Last sequence number that a restore of the ledger would still have.
    pub safe_seq: u64,
    /// Reservations still open, in no particular order.
    pub open: Vec<Kept>,
    /// Marks, in no particular order.
    pub marks: Vec<Kept>,
    /// Damaged sequence numbers in what was read; [`crate::UsageLog::holes`] has those of the scrub as well.
    pub holes: Vec<Hole>,
    /// Everything that didn't validate in what was read, holes included. Alarm when not empty.
    pub damage: Vec<Damage>,
    /// Bytes of a torn tail that were cut, a missing commit record included; no record in them was acknowledged.
    pub torn_bytes: u64,
    /// The producer was made now.
    pub created: bool,
    /// The directory is not the one that it was made in (another device or inode): a copy or a moved volume.
    pub moved: bool,
}

/// One entry with sequence numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Sequence number, of a hole its first.
    pub seq: u64,
    /// What it is.
    pub body: EntryBody,
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryBody {
    /// A usage record's payload.
    Usage(Vec<u8>),
    /// Damaged numbers.
    Hole(Hole),
}

/// A contiguous run of durable entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// The producer that numbered them.
    pub producer_id: [u8; 16],
    /// Incarnation of this process.
    pub incarnation: u64,
    /// h before the first entry.
    pub h_before: Hash,
    /// h after the last entry.
    pub h_after: Hash,
    /// Entries without gaps; empty when there is nothing durable from that number on.
    pub entries: Vec<Entry>,
}

/// What the ledger acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Last sequence number committed. May go back (restore of the ledger).
    pub seq: u64,
    /// h at it.
    pub h: Hash,
    /// Last sequence number that a restore would still have. Embedded: the same as `seq`.
    pub safe_seq: u64,
    /// Now, on any monotone clock, microseconds; ages segments.
    pub now_us: u64,
}

/// Figures of the log.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Last durable sequence number.
    pub durable_seq: u64,
    /// Sequence number that the last appended usage record has or will have.
    pub appended_seq: u64,
    /// Last sequence number that the ledger has.
    pub committed_seq: u64,
    /// Bytes made durable in this process.
    pub written_bytes: u64,
    /// Entries appended in this process.
    pub appended: u64,
    /// Entries durable in this process.
    pub durable: u64,
    /// Bytes that wait for the writer.
    pub pending_bytes: u64,
    /// Bytes in use, of segments that can't be reused yet.
    pub used_bytes: u64,
    /// Bytes that appends may use in all.
    pub capacity_bytes: u64,
    /// Groups written.
    pub groups: u64,
    /// Failed syncs or writes.
    pub io_errors: u64,
    /// Open reservations.
    pub open: u64,
    /// Stretches that didn't validate, of this start and of the scrub after it; [`crate::UsageLog::damage`] has them.
    pub damaged: u64,
    /// Bytes of ended segments that this start has not read and the scrub has still to check; shipped once it is 0.
    pub unchecked_bytes: u64,
    /// Longest sync, microseconds.
    pub sync_max: Duration,
    /// Duration of all syncs together.
    pub sync_total: Duration,
}

/// Why the log refuses.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    /// No room, or less than 5 % and the entry ends no reservation. `USAGE_LOG_FULL`; again after the ledger took some.
    #[error(
        "usage log is full: {used_bytes} of {capacity_bytes} bytes in use; it empties as the ledger commits"
    )]
    Full {
        /// Bytes in use.
        used_bytes: u64,
        /// Bytes there are.
        capacity_bytes: u64,
    },
    /// The writer is behind by the configured bytes. `RESOURCE_EXHAUSTED`, try again in a moment.
    #[error("usage log is behind: {pending_bytes} bytes wait for the disk")]
    Busy {
        /// Bytes that wait.
        pending_bytes: u64,
    },
    /// Writing failed on two segments; nothing is recorded until the disk takes writes again. `USAGE_LOG_IO`.
    #[error("usage log cannot write: {0}")]
    Io(String),
    /// The payload is longer than allowed.
    #[error("payload of {bytes} bytes, at most {bound} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        bound: usize,
    },
    /// The log was closed.
    #[error("usage log is closed")]
    Closed,
    /// Another process has this directory.
    #[error("usage log {0} is in use by another process")]
    Locked(String),
    /// The directory can't be used: made by a newer version, or its description is unreadable.
    #[error("usage log cannot be opened: {0}")]
    Unusable(String),
    /// The asked entries were recycled: the ledger had acknowledged them as safe.
    #[error("entry {seq} is no longer in the log, the oldest is {oldest_seq}")]
    Gone {
        /// What was asked for.
        seq: u64,
        /// What there is.
        oldest_seq: u64,
    },
    /// The entries are not indexed, or don't validate any more; the writer thread scans, ask again in a moment.
    #[error("entry {seq} is being looked for")]
    Scanning {
        /// What was asked for.
        seq: u64,
    },
}
