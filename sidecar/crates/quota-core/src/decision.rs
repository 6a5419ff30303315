//! The answer to a check.

use std::sync::Arc;

use crate::{
    limit::{Enforcement, LimitKind},
    request::Units,
};

/// Why a decision is what it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// Every matching limit had the units.
    Allowed,
    /// Admitted beyond a soft limit.
    SoftLimitExceeded,
    /// Admitted beyond a shadow limit.
    ShadowLimitExceeded,
    /// Admitted by policy `open` without an authority.
    Uncovered,
    /// A window has too few units left.
    QuotaExhausted,
    /// A token bucket has too few tokens now.
    RateLimited,
    /// The limit can never hold so much.
    CostExceedsLimit,
    /// The plan lacks a feature.
    FeatureDisabled,
    /// No such tenant.
    TenantUnknown,
    /// The tenant is suspended.
    TenantSuspended,
    /// No such meter.
    MeterUnknown,
    /// Neither units nor proof in time.
    AuthorityUnreachable,
    /// No room for another key.
    SidecarFull,
    /// Not decided: the call meets a level, so it must be made with [`crate::Mode::Record`].
    NeedsRecord,
    /// Not decided: the call meets a limit of units in flight, which only reservations take.
    NeedsReservation,
    /// Not decided: the call lacks the attribute whose distinct values are counted; the subject names it.
    NeedsValue,
    /// Not decided: each call brings one value, so it costs 1 or, to look, 0; the subject names the meter.
    NeedsOneUnit,
    /// Not decided: more is given back than this process used of the open window; the binding limit names it.
    NotConsumedHere,
    /// Not decided: a value that was counted stays counted; the subject names the meter.
    ValuesStay,
}

/// One limit as this sidecar knows it.
#[derive(Clone, PartialEq, Debug)]
pub struct LimitState {
    /// Tenant whose limit it is: the caller's own or an ancestor.
    pub tenant: Arc<str>,
    /// Limit name.
    pub name: Arc<str>,
    /// Meter.
    pub meter: Arc<str>,
    /// How it counts.
    pub kind: LimitKind,
    /// What happens beyond it.
    pub enforcement: Enforcement,
    /// Units per window or interval; `None` is unlimited.
    pub amount: Option<Units>,
    /// Units used in this window over all sidecars, as last heard, own use up to now.
    pub used: Units,
    /// Units that a call could still take, as last seen; `None` is unlimited.
    pub remaining: Option<Units>,
    /// Ledger microseconds until the window ends or the bucket is full; `None` where there is no window yet.
    pub reset_after_us: Option<i64>,
    /// Window bounds, ledger microseconds.
    pub window_us: Option<(i64, i64)>,
    /// Values of the key attributes, in the rule's order, with their names.
    pub key: Vec<(Box<str>, Box<str>)>,
    /// `plan`, `subscription` or `override`.
    pub source: Box<str>,
    /// Ledger time at which the oldest of the figures was true.
    pub as_of_us: i64,
    /// Nominal length of the window or of the refill interval, ledger microseconds; 0 = none.
    pub length_us: i64,
    /// An ancestor's that is not shared: amount, burst, used, remaining and source are left out, and a token bucket's
    /// `reset_after_us`.
    pub is_hidden: bool,
}

/// The answer to a check.
#[derive(Clone, PartialEq, Debug)]
pub struct Decision {
    /// Why; [`Reason::allowed`] says whether the call may go on.
    pub reason: Reason,
    /// The limit that decided: the first that denied, else the one with the least share remaining.
    pub binding: Option<LimitState>,
    /// Denials: ledger microseconds until the same call would pass if nobody else asked.
    pub retry_after_us: Option<i64>,
    /// Every matching limit, where asked for.
    pub limits: Vec<LimitState>,
    /// Feature or meter that the reason speaks of.
    pub subject: Option<Box<str>>,
}

impl Reason {
    /// Whether it is an answer; else the call has to be made in another mode.
    #[must_use]
    pub const fn is_decided(self) -> bool {
        !matches!(
            self,
            Self::NeedsRecord
                | Self::NeedsReservation
                | Self::NeedsValue
                | Self::NeedsOneUnit
                | Self::NotConsumedHere
                | Self::ValuesStay
        )
    }

    /// Whether the call may go on.
    #[must_use]
    pub const fn allowed(self) -> bool {
        matches!(
            self,
            Self::Allowed | Self::SoftLimitExceeded | Self::ShadowLimitExceeded | Self::Uncovered
        )
    }
}
