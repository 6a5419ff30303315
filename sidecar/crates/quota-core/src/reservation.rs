//! Units held until their cost is known.

use std::sync::Arc;

use crate::{
    id::{Holder, KeyHash, ReservationId, WindowId},
    request::{Cost, Units},
};

/// What becomes of held units in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldKind {
    /// Tokens: what is not used flows back.
    Tokens,
    /// Units of a window: used ones and those that expire are spent, others go back.
    Window,
    /// Units of a level: used ones are stored until they fall, others go back, those that expire as well.
    Level,
    /// In flight: all of them are free in the end, if the lease still is the one that they came from.
    Flight {
        /// The lease.
        lease_epoch: u64,
        /// Units in flight beyond the limit, for which nothing is held.
        over: Units,
    },
}

/// Units of one limit that a reservation holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// Tenant whose limit it is.
    pub tenant: Arc<str>,
    /// Limit name.
    pub limit: Arc<str>,
    /// Meter that it counts.
    pub meter: Arc<str>,
    /// Key of the limit.
    pub key_hash: KeyHash,
    /// The window; `None` for token buckets.
    pub window: Option<WindowId>,
    /// End of the window, ledger microseconds; refunds after it vanish.
    pub window_end_us: i64,
    /// Units.
    pub units: Units,
    /// How they count.
    pub kind: HoldKind,
}

/// An open reservation, as the engine keeps it and the log stores it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reservation {
    /// Its name.
    pub id: ReservationId,
    /// Tenant that reserved.
    pub tenant: Arc<str>,
    /// What was reserved of each meter.
    pub costs: Vec<Cost>,
    /// Which units are held; a holder other than the engine's own keeps none here any more.
    pub holds: Vec<Hold>,
    /// Ledger time at which it expires.
    pub expires_us: i64,
    /// The process that took the units. Refunds of another process' units vanish: they are counted as spent.
    pub holder: Holder,
}

/// What a settlement or release did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settled {
    /// Units per meter that went back.
    pub refunded: Vec<Cost>,
    /// Units per meter above what was reserved.
    pub excess: Vec<Cost>,
    /// It had expired.
    pub expired: bool,
}

/// Why a reservation can't be settled here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SettleRefusal {
    /// The engine does not know it (ended before, or never its own).
    Unknown,
}
