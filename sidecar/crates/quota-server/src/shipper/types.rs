//! What the shipper says and hears.

use quota_proto::bridge::Failure;

/// What to do next.
#[derive(Clone, PartialEq, Debug)]
pub enum ShipCommand {
    /// Send an encoded `OpenProducerRequest`.
    Open(Vec<u8>),
    /// Send an encoded `AppendUsageRequest`.
    Append(Vec<u8>),
    /// Call [`UsageLog::renew`] from this number, off the async threads, then [`Shipper::on_renewed`].
    Renew(u64),
}

/// What came of a command.
#[derive(Clone, Copy, Debug)]
pub enum ShipReply<'a> {
    /// The ledger's encoded response.
    Ledger(&'a [u8]),
    /// It failed.
    Failed(&'a Failure),
    /// Nothing is known of it.
    Lost,
}

/// Figures for alarms.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct ShipFigures {
    /// Entries that the ledger lacks.
    pub unshipped: u64,
    /// Real time since the first of them was seen.
    pub lag_us: u64,
    /// Real time until the log is full if it goes on filling as in the last minute; none while it doesn't grow.
    pub full_in_us: Option<u64>,
    /// Batches committed.
    pub batches: u64,
    /// Records that the ledger said it had already, with the same content.
    pub duplicates: u64,
    /// Records that the ledger has with other content.
    pub conflicts: u64,
    /// Records in quarantine for another reason.
    pub quarantined: u64,
    /// Times that another process had this producer.
    pub fenced: u64,
    /// Times that the ledger's history was not this log's.
    pub forked: u64,
    /// Times that the ledger went back.
    pub rewinds: u64,
    /// Entries that the ledger lost and this log has no more.
    pub lost: u64,
    /// Batches that had been committed before, by one whose answer was lost.
    pub answers_lost: u64,
    /// Entries that the ledger refused even alone and that went as their digest.
    pub skipped: u64,
    /// First entry of a batch that the ledger refuses even alone; 0 = none.
    pub refused_seq: u64,
    /// What went wrong last; empty after a success.
    pub last_error: String,
}
