//! What the engine is told.

use std::sync::Arc;

use crate::{
    effect::CommandId,
    id::{KeyHash, WindowId},
    limit::{Meter, TenantSnapshot},
    request::Units,
};

/// What happened. Events of one connection arrive in the order in which they happened there.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// All meters there are.
    Meters(Vec<Meter>),
    /// A tenant, new or changed.
    Tenant(TenantSnapshot),
    /// No such tenant; remembered for 5 s.
    TenantUnknown(Arc<str>),
    /// The watch stream is up; tenants follow.
    WatchUp,
    /// The watch stream is down: ledger proofs are void.
    WatchDown,
    /// The watch stream said something: whatever the ledger had to say before `sent_us` has been heard.
    LedgerAlive {
        /// Real time at which it was sent, or earlier.
        sent_us: u64,
    },
    /// The subscriber connection answered a ping: whatever was published before `sent_us` has been heard.
    RedisAlive {
        /// Real time at which the ping was sent.
        sent_us: u64,
    },
    /// The subscriber connection broke: every subscription is void.
    RedisLost,
    /// A pool's channel said that units may be there.
    Notice(Arc<str>),
    /// A pool's channel said that it is nearly empty: what lies unused is lacking elsewhere.
    Short(Arc<str>),
    /// The ledger said that units may be there.
    UnitsNotice {
        /// Tenant whose limit it is.
        tenant: Arc<str>,
        /// Limit name.
        limit: Arc<str>,
        /// Key.
        key_hash: KeyHash,
    },
    /// The ledger wants leases back, all but one second of use; `None` = of every key.
    Recall {
        /// Tenant whose limit it is.
        tenant: Arc<str>,
        /// Limit name.
        limit: Arc<str>,
        /// Key.
        key_hash: Option<KeyHash>,
        /// Concurrency: so many are lacking somewhere.
        units: Units,
    },
    /// A window was reset: its next round counts.
    Replaced {
        /// Tenant whose limit it is.
        tenant: Arc<str>,
        /// Limit name.
        limit: Arc<str>,
        /// Key.
        key_hash: KeyHash,
        /// The round that has ended.
        window: WindowId,
    },
    /// Times that Postgres has been restored, plus 1, as the ledger says.
    Timeline(u64),
    /// What became of an `Effect::Keep`.
    Marked(u64, Marked),
    /// Answer to `Command::Allot`, one per ask.
    Allotted(CommandId, Result<Vec<AllotAnswer>, CommandFailure>),
    /// Answer to `Command::ReturnUnits`.
    Returned(CommandId, Result<Vec<Units>, CommandFailure>),
    /// Answer to `Command::ReportConsumption`, and to `ReportLeases` with nothing in it.
    Reported(CommandId, Result<Vec<WindowUse>, CommandFailure>),
    /// Answer to `Command::Redis`, one per call.
    Functions(CommandId, Result<Vec<FunctionReply>, CommandFailure>),
    /// Answer to `Command::Subscribe`, `Unsubscribe` and `WatchTenants`.
    Done(CommandId, Result<(), CommandFailure>),
}

/// Kind of a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailureKind {
    /// Not sent.
    Unreachable,
    /// Sent; the outcome is unknown.
    Deadline,
    /// Refused; nothing was done.
    Refused,
}

/// Why a command failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommandFailure {
    /// Kind.
    pub kind: FailureKind,
    /// Stable reason, where the ledger gave one.
    pub reason: Box<str>,
}

/// Reply of one function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FunctionReply {
    /// Flat list of strings.
    Elements(Vec<Box<str>>),
    /// The server refused to run it.
    Error(Box<str>),
}

/// What became of a mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marked {
    /// It is durable.
    Durable,
    /// Nothing was written: what was durable before still is.
    NotWritten,
    /// Nobody knows.
    Unknown,
}

/// A window and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WindowInfo {
    /// Its name.
    pub id: WindowId,
    /// First instant, ledger microseconds.
    pub start_us: i64,
    /// End, exclusive.
    pub end_us: i64,
    /// Resets.
    pub round: u32,
    /// Amount in force; `None` = unlimited.
    pub amount: Option<Units>,
    /// Its version.
    pub amount_version: u64,
    /// Units that left the limit.
    pub allotted: Units,
    /// Postgres restores that it has lived through, plus 1; 0 = not heard.
    pub timeline: u64,
}

impl WindowInfo {
    /// Whether it never ends: the window of a level, or of units in flight.
    #[must_use]
    pub const fn is_standing(&self) -> bool {
        self.end_us >= STANDING_END_US
    }
}

/// End of windows without end: 9999-12-31, ledger microseconds.
pub const STANDING_END_US: i64 = 253_402_214_400_000_000;

/// The answer to one ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AllotAnswer {
    /// Units straight from the ledger.
    Lease {
        /// The window.
        window: WindowInfo,
        /// Units given by this ask.
        give: Units,
        /// Units given to this holder by the ledger in this window.
        granted_cum: Units,
        /// Concurrency: the lease that they belong to; another one than known = the one before is lost. Else 0.
        lease_epoch: u64,
        /// Concurrency: usable for so many real µs since the ask was sent. Else 0.
        valid_for_us: u64,
    },
    /// Ask this pool.
    Pool {
        /// The window.
        window: WindowInfo,
        /// Its generation.
        generation: u64,
        /// Units moved to it so far.
        allotted_cum: Units,
        /// The limit has no more to give at this amount.
        last: bool,
        /// Redis key of the pool.
        pool_key: Arc<str>,
        /// Redis key of its holders.
        holders_key: Arc<str>,
        /// Channel of its notices.
        channel: Arc<str>,
        /// Redis key of the values seen in the window (unique meters).
        values_key: Arc<str>,
    },
    /// Proof: the limit has only `left` units.
    Denied {
        /// The window.
        window: WindowInfo,
        /// Fewer than were needed.
        left: Units,
    },
    /// A token bucket's shard is open.
    Bucket {
        /// Generation of the marker.
        generation: u64,
        /// Redis key of the marker.
        marker_key: Arc<str>,
        /// Prefix of the bucket keys.
        bucket_prefix: Arc<str>,
        /// Channel of notices.
        channel: Arc<str>,
    },
    /// Can't be answered.
    Refused {
        /// Stable reason; `REQUEST_SEQ` where the ledger knows another sequence.
        reason: Box<str>,
        /// The last sequence that the ledger knows.
        last_request_seq: u64,
    },
}

/// What the fleet used of one window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowUse {
    /// Consumed, as reported by all holders; of levels what is stored, of concurrency what is in flight.
    pub consumed: Units,
    /// Admitted beyond the limit.
    pub over: Units,
    /// Units that left the limit.
    pub allotted: Units,
    /// Amount in force; `None` = unlimited.
    pub amount: Option<Units>,
    /// True at this ledger time.
    pub as_of_us: i64,
    /// Concurrency: this holder's lease as the ledger has it; 0 = none.
    pub lease_epoch: u64,
}
