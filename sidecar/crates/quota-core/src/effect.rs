//! What the engine wants done.

use std::sync::Arc;

use crate::{
    decision::Decision,
    engine::Ticket,
    id::{Holder, KeyHash, ReservationId, WindowId},
    request::Units,
};

/// Names a command; exactly one event with it must come back, also on failure or timeout.
pub type CommandId = u64;

/// What the engine wants done; the owner carries it out in order.
#[allow(clippy::large_enum_variant)] // moved once from list to list
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Answer the check of this ticket.
    Decide {
        /// Ticket that was given to `check`.
        ticket: Ticket,
        /// The answer.
        decision: Decision,
    },
    /// Ask the world.
    Command {
        /// Names it.
        id: CommandId,
        /// Give up after so many real milliseconds.
        timeout_ms: u32,
        /// What to ask.
        command: Command,
    },
    /// Write into the log which units of a window a restart may take over, in place of what it says of that window;
    /// none = remove it. `Event::Marked` must come back.
    Keep {
        /// Names it.
        id: u64,
        /// The window.
        window: WindowId,
        /// What is kept.
        kept: Option<Box<Kept>>,
    },
    /// A reservation expired unsettled: its units stay spent, the log notes it.
    Expired(ReservationId),
}

/// Units of a window that a process neither spends nor returns before the log says less, and what it owes there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Wire id of the tenant whose limit it is.
    pub tenant: Arc<str>,
    /// Limit name.
    pub limit: Arc<str>,
    /// Key of the limit.
    pub key_hash: KeyHash,
    /// The key values in the rule's order.
    pub key_values: Box<[Box<str>]>,
    /// The window.
    pub window: WindowId,
    /// Its first instant, ledger µs.
    pub start_us: i64,
    /// Its end, exclusive, ledger µs.
    pub end_us: i64,
    /// Resets of it.
    pub round: u32,
    /// Units.
    pub units: Units,
    /// Where they came from, oldest first; units beyond these are spent, never returned.
    pub parts: Box<[KeptPart]>,
    /// Units used above what was reserved and not paid yet.
    pub debt: Units,
}

/// Units that are kept of one source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeptPart {
    /// The process that they were leased to.
    pub holder: Holder,
    /// 0 = the ledger, else the pool's generation.
    pub generation: u64,
    /// Units.
    pub units: Units,
    /// All that was given back of this source to the ledger, in that process' name, by then.
    pub returned_cum: Units,
}

/// What to ask of whom.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// `LimitService.Allot`.
    Allot {
        /// Who asks.
        holder: Holder,
        /// Up to 10,000 entries.
        asks: Vec<AllotAsk>,
    },
    /// `LimitService.ReturnUnits`: (window, generation or 0, cumulative return).
    ReturnUnits {
        /// Who returns.
        holder: Holder,
        /// What.
        entries: Vec<(WindowId, u64, Units)>,
    },
    /// `LimitService.ReportConsumption`.
    ReportConsumption {
        /// Who reports.
        holder: Holder,
        /// What.
        entries: Vec<UseReport>,
    },
    /// `LimitService.ReportConsumption`, after Postgres was set back.
    ReportLeases {
        /// Who reports.
        holder: Holder,
        /// What.
        entries: Vec<WindowLeases>,
    },
    /// Redis functions, one pipeline, never retried.
    Redis(Vec<FunctionCall>),
    /// Subscribe to these channels and tell when it is confirmed.
    Subscribe(Vec<Arc<str>>),
    /// Leave these channels.
    Unsubscribe(Vec<Arc<str>>),
    /// Follow these tenants on the watch stream.
    WatchTenants(Vec<Arc<str>>),
}

/// What was used so far, as it is reported: each figure grows and never shrinks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UseCum {
    /// Units admitted from leases of any source.
    pub consumed: Units,
    /// Units admitted beyond the limit.
    pub over: Units,
    /// Of both, units that callers gave back.
    pub given_back: Units,
}

/// What a holder used of one window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UseReport {
    /// The window.
    pub window: WindowId,
    /// What was used so far.
    pub used: UseCum,
    /// Concurrency: the lease to renew, 0 = none.
    pub lease_epoch: u64,
    /// Concurrency: units in flight.
    pub in_flight: Units,
}

/// What is had of one window that was open when Postgres was set back: no more of it will ever be spent here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WindowLeases {
    /// Tenant whose limit it is.
    pub tenant: Arc<str>,
    /// Limit name.
    pub limit: Arc<str>,
    /// Key.
    pub key_hash: KeyHash,
    /// Key values in the rule's order; empty where they are not known any more.
    pub key_values: Box<[Box<str>]>,
    /// The window.
    pub window: WindowId,
    /// Its first instant, ledger µs.
    pub start_us: i64,
    /// Its end, exclusive, ledger µs.
    pub end_us: i64,
    /// Its timeline; 0 = it was taken over and the ledger has not spoken of it since.
    pub timeline: u64,
    /// Units that had left the limit, as last heard; 0 = never heard.
    pub allotted: Units,
    /// Per source.
    pub sources: Box<[SourceLeases]>,
}

/// What is had of one source of a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceLeases {
    /// The dead process that it was leased to; `None` = this one.
    pub holder: Option<Holder>,
    /// 0 = the ledger, else a pool's generation.
    pub generation: u64,
    /// Units that did not go back.
    pub units: Units,
    /// Units that had gone into the generation, as last heard; 0 = never heard.
    pub total: Units,
}

/// One `FCALL`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FunctionCall {
    /// Function name.
    pub function: &'static str,
    /// Keys, all of one hash tag.
    pub keys: Vec<Arc<str>>,
    /// Arguments.
    pub arguments: Vec<String>,
}

/// What went wrong at a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolFault {
    /// Not there.
    NoPool,
    /// Of another replication history.
    Fence,
    /// Of another generation.
    Generation,
    /// Closed.
    Closed,
    /// Behind what this holder has seen.
    Rollback,
    /// Does not know this holder's last request.
    Seq,
    /// Does not know what this holder was granted.
    ReturnRange,
    /// Redis did not answer.
    Unreachable,
}

/// One entry of `Allot`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AllotAsk {
    /// Tenant whose limit it is.
    pub tenant: Arc<str>,
    /// Limit name.
    pub limit: Arc<str>,
    /// Key.
    pub key_hash: KeyHash,
    /// Key values in the rule's order.
    pub key_values: Vec<Box<str>>,
    /// The window must contain this ledger time.
    pub at_us: i64,
    /// Counts this holder's asks of the ledger for this window, from 1; a repeat after an unknown outcome keeps it.
    pub request_seq: u64,
    /// At least this or nothing.
    pub need: Units,
    /// Rather this.
    pub want: Units,
    /// Generation known, 0 = none.
    pub generation_seen: u64,
    /// The pool's `allotted_cum` seen in it.
    pub allotted_cum_seen: Units,
    /// What went wrong at that generation's pool.
    pub fault: Option<PoolFault>,
    /// Every unit straight from the ledger.
    pub ledger_only: bool,
}
