//! Limits, meters and tenants as the ledger declares them.

use std::sync::Arc;

use crate::request::Units;

/// How a limit counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LimitKind {
    /// `amount` tokens come every `refill_interval_us`, at most `burst` are held.
    TokenBucket {
        /// Microseconds of ledger time, > 0.
        refill_interval_us: i64,
        /// Most tokens held, ≥ 1.
        burst: Units,
    },
    /// `amount` units in a span of ledger time whose bounds the ledger computes.
    Window,
    /// At most `amount` units stored: rises and falls are recorded.
    Level,
    /// At most `amount` units in flight: taken by reservations only, leased with time.
    Concurrency,
}

/// What happens to a call beyond a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enforcement {
    /// Denied.
    Hard,
    /// Admitted and reported.
    Soft,
    /// Admitted, counted, reported only where nothing else is exceeded.
    Shadow,
}

/// What a hard limit does while neither units nor proof can be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailurePolicy {
    /// Spend a share leased beforehand, then deny.
    Standby,
    /// Lease every unit straight from the ledger.
    Ledger,
    /// Deny.
    Closed,
    /// Admit, mark as uncovered.
    Open,
}

/// Which decisions of a limit are kept one by one. Those that deny, or admit beyond it, are counted in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecisionLog {
    /// None.
    Off,
    /// Denials, and calls admitted beyond the limit.
    Denied,
    /// Of each reason the first and one in so many after it, calls within the limit included; those are counted, too.
    Sampled(u64),
    /// All; calls within the limit are counted, too.
    All,
}

/// What an attribute's value must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MatchRule {
    /// Equal.
    Exact(Box<str>),
    /// Beginning with.
    Prefix(Box<str>),
    /// One of these, sorted.
    Set(Box<[Box<str>]>),
    /// Anything, but present.
    Any,
}

/// A rule that a call's attribute must meet for the limit to apply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttributeMatch {
    /// Attribute name.
    pub attribute: Box<str>,
    /// What its value must be.
    pub rule: MatchRule,
}

/// One effective limit of one tenant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LimitRule {
    /// Name, unique in the tenant.
    pub name: Arc<str>,
    /// Meter that it counts.
    pub meter: Arc<str>,
    /// How it counts.
    pub kind: LimitKind,
    /// Units per window or refill interval; `None` is unlimited.
    pub amount: Option<Units>,
    /// Raised with every change of amount or enforcement.
    pub amount_version: u64,
    /// What happens beyond it.
    pub enforcement: Enforcement,
    /// What it does without an authority.
    pub failure_policy: FailurePolicy,
    /// Every one must match.
    pub matches: Box<[AttributeMatch]>,
    /// Attributes that split it.
    pub key: Box<[Box<str>]>,
    /// In force from here (ledger microseconds).
    pub valid_from_us: Option<i64>,
    /// In force until here, exclusive.
    pub valid_to_us: Option<i64>,
    /// `plan`, `subscription` or `override`.
    pub source: Box<str>,
    /// Callers of child tenants see its figures.
    pub is_shared: bool,
    /// After Postgres was set back its windows are taken up again from what holders say that they have.
    pub learns: bool,
    /// Windows begin at first use, so the next one can't be leased before it is used.
    pub is_rolling: bool,
    /// Which of its decisions are kept one by one.
    pub log: DecisionLog,
    /// Nominal length in microseconds of ledger time (a month counts 30 days): sizes standby shares and estimates only.
    pub nominal_us: i64,
}

impl LimitRule {
    /// Whether leases may come straight from the ledger while pools are out of reach.
    pub(crate) const fn goes_on_without_pools(&self) -> bool {
        matches!(
            self.failure_policy,
            FailurePolicy::Standby | FailurePolicy::Ledger
        )
    }

    /// Whether this is what another rule was before it changed: units of one are units of the other. One of another kind,
    /// or split by another key, is another limit, which begins when its time has come and not before.
    pub(crate) fn is_same_limit(&self, other: &Self) -> bool {
        let is_same_kind =
            std::mem::discriminant(&self.kind) == std::mem::discriminant(&other.kind);
        self.name == other.name && is_same_kind && self.key == other.key
    }

    /// Units that all holders together keep apart for when no authority answers: a fiftieth of a hard window limit.
    pub(crate) fn standby_units(&self) -> Units {
        let keeps = self.kind == LimitKind::Window
            && self.enforcement == Enforcement::Hard
            && self.failure_policy == FailurePolicy::Standby;
        self.amount.filter(|_| keeps).unwrap_or(0) / 50
    }
}

/// What the engine needs of a meter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meter {
    /// Name.
    pub name: Arc<str>,
    /// Unit, for people.
    pub unit: Box<str>,
    /// Decimal digits that units stand for.
    pub scale: u32,
    /// Attributes that records of it may carry.
    pub attributes: Box<[Box<str>]>,
    /// Unique meters: the attribute whose distinct values are counted; empty = it counts units.
    pub value_attribute: Box<str>,
}

/// A tenant whole; a later one replaces it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TenantSnapshot {
    /// Wire id.
    pub tenant: Arc<str>,
    /// Internal id.
    pub tenant_id: [u8; 16],
    /// Is denied everything.
    pub suspended: bool,
    /// Wire id of the parent.
    pub parent: Option<Arc<str>>,
    /// Plan name; empty = none.
    pub plan: Arc<str>,
    /// Features that it has, sorted.
    pub features: Box<[Box<str>]>,
    /// Effective limits in name order.
    pub limits: Vec<LimitRule>,
    /// Number of the change that it includes.
    pub change: u64,
}
