//! What a caller asks.

use std::sync::Arc;

use crate::decision::Decision;

/// An amount of a meter, at most [`UNITS_MAX`] at every boundary.
pub type Units = u64;

/// 2^53 − 1: pool arithmetic is double arithmetic.
pub const UNITS_MAX: Units = 9_007_199_254_740_991;

/// Units of one meter that one request asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cost {
    /// Meter name.
    pub meter: Arc<str>,
    /// Units; 0 looks and takes nothing.
    pub units: Units,
}

/// What a check does with the units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Takes them.
    Consume,
    /// Takes nothing.
    Peek,
    /// Gives back what calls of this process used: all of it, or nothing.
    GiveBack,
    /// Holds them until settled, released or expired.
    Reserve {
        /// Names the reservation; random, made by the owner.
        id: crate::ReservationId,
        /// Ledger time at which it expires.
        expires_us: i64,
    },
    /// Takes them, held like a reservation while the record of it becomes durable.
    Record {
        /// Names it meanwhile; random, made by the owner.
        id: crate::ReservationId,
        /// Ledger time at which it would expire.
        expires_us: i64,
    },
}

/// A check, parsed: bounds and forms were verified at the edge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckRequest {
    /// Wire id of the tenant.
    pub tenant: Arc<str>,
    /// Costs, each of another meter.
    pub costs: Vec<Cost>,
    /// Features that the plan must have.
    pub features: Vec<Box<str>>,
    /// Attributes sorted by name, names unique.
    pub attributes: Vec<(Box<str>, Box<str>)>,
    /// What to do with the units.
    pub mode: Mode,
    /// Tell every matching limit, not just the binding one.
    pub all_limits: bool,
}

/// What [`crate::Engine::check`] answers.
#[allow(clippy::large_enum_variant)] // nearly always the large one, and never stored
#[derive(Clone, PartialEq, Debug)]
pub enum Checked {
    /// Decided now.
    Decided(Decision),
    /// Units or limits are being fetched; an [`crate::Effect::Decide`] with the ticket follows within the budget.
    Waiting,
    /// Too many checks are waiting already.
    Full,
}

impl CheckRequest {
    /// Asks for nothing; stands in while a waiting one is looked at.
    pub(crate) fn nothing() -> Self {
        Self {
            tenant: Arc::from(""),
            costs: Vec::new(),
            features: Vec::new(),
            attributes: Vec::new(),
            mode: Mode::Peek,
            all_limits: false,
        }
    }
}
