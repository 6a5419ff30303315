//! Why a call fails: one type for every handler, and the one table from reasons to codes.

use std::{borrow::Cow, fmt::Display};

use quota_proto::{FieldError, quota::ErrorReason, reason_name};
use usage_log::LogError;

/// Numbers of `google.rpc.Code` that this server answers with.
pub mod code {
    /// The caller sent something wrong.
    pub const INVALID_ARGUMENT: i32 = 3;
    /// The deadline passed.
    pub const DEADLINE_EXCEEDED: i32 = 4;
    /// No such thing.
    pub const NOT_FOUND: i32 = 5;
    /// It exists already.
    pub const ALREADY_EXISTS: i32 = 6;
    /// Not allowed to this caller.
    pub const PERMISSION_DENIED: i32 = 7;
    /// The sidecar itself is full.
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    /// Not in this state.
    pub const FAILED_PRECONDITION: i32 = 9;
    /// Not built yet.
    pub const UNIMPLEMENTED: i32 = 12;
    /// A bug.
    pub const INTERNAL: i32 = 13;
    /// Not now.
    pub const UNAVAILABLE: i32 = 14;
}

/// Milliseconds after which a starting sidecar, a full queue or a full log is worth asking again.
const RETRY_SOON_MS: u32 = 100;
const RETRY_LOG_MS: u32 = 1_000;

/// A call that fails, with everything that its caller is told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Stable reason.
    pub reason: ErrorReason,
    /// For people: value, bound and remedy.
    pub message: Cow<'static, str>,
    /// Metadata of the `ErrorInfo`.
    pub metadata: Vec<(&'static str, String)>,
    /// When a retry helps, after so many milliseconds.
    pub retry_after_ms: Option<u32>,
}

/// An answer or a refusal.
pub type Answer<T> = Result<T, Refusal>;

impl Refusal {
    /// Makes a refusal without metadata.
    #[must_use]
    pub fn new(reason: ErrorReason, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            message: message.into(),
            metadata: Vec::new(),
            retry_after_ms: None,
        }
    }

    /// Adds a piece of metadata.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Display) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// Says that the same call may pass after a while.
    #[must_use]
    pub fn retry_after(mut self, ms: u32) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// Gives the `google.rpc.Code`.
    #[must_use]
    pub const fn code(&self) -> i32 {
        code_of(self.reason)
    }

    /// Gives the reason's wire name.
    #[must_use]
    pub fn reason_name(&self) -> &'static str {
        reason_name(self.reason)
    }

    /// Gives a piece of metadata.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.metadata
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The sidecar has no welcome of the ledger yet.
    #[must_use]
    pub fn starting() -> Self {
        Self::new(
            ErrorReason::SidecarStarting,
            "the sidecar has not heard of its ledger yet; try again",
        )
        .with("remedy", "retry, and check that the ledger is running")
        .retry_after(RETRY_SOON_MS)
    }

    /// Too many checks wait already.
    #[must_use]
    pub fn full() -> Self {
        Self::new(
            ErrorReason::SidecarFull,
            "too many calls are waiting for units; try again",
        )
        .with("remedy", "retry with backoff, or raise waiting_max")
        .retry_after(RETRY_SOON_MS)
    }

    /// Something that only the ledger knows is needed and the ledger did not tell in time.
    #[must_use]
    pub fn ledger_unreachable(tenant: &str) -> Self {
        Self::new(
            ErrorReason::LedgerUnreachable,
            format!("the ledger did not say in time whether tenant {tenant} exists"),
        )
        .with("tenant", tenant)
        .with("remedy", "retry; nothing was done")
        .retry_after(RETRY_LOG_MS)
    }

    /// The key of a tenant's pseudonyms is needed, which the ledger keeps and has not told yet.
    #[must_use]
    pub(crate) fn no_pseudonyms(tenant: &str) -> Self {
        Self::new(
            ErrorReason::LedgerUnreachable,
            format!("the ledger has not sent the key of tenant {tenant}'s pseudonyms yet"),
        )
        .with("tenant", tenant)
        .with("remedy", "retry; nothing was done")
        .retry_after(RETRY_LOG_MS)
    }

    /// A message that can't be read.
    pub(crate) fn undecodable(why: &str) -> Refusal {
        Self::new(
            ErrorReason::FieldInvalid,
            format!("the message can't be decoded: {why}; send it as the .proto file says"),
        )
        .with("field", "message")
        .with("value", why)
        .with("bound", "a message of the .proto file, strings in UTF-8")
        .with("remedy", "send it as the .proto file says")
    }

    /// What the caller names is not known to the ledger.
    #[must_use]
    pub fn unknown(
        reason: ErrorReason,
        what: &'static str,
        field: impl Into<String>,
        value: &str,
    ) -> Self {
        Self::new(
            reason,
            format!(
                "{what} {value} does not exist; create it in the catalogue or correct the name"
            ),
        )
        .with("field", field.into())
        .with("value", value)
        .with("bound", format_args!("a {what} of the catalogue"))
        .with("remedy", "create it in the catalogue or correct the name")
        .with(what, value)
    }

    /// What a later version will do.
    #[must_use]
    pub fn not_implemented(what: &'static str) -> Self {
        Self::new(
            ErrorReason::NotImplemented,
            format!("{what} is not served yet"),
        )
        .with("field", what)
        .with("remedy", "do without it for now")
    }

    /// The call's own deadline came first.
    #[must_use]
    pub fn deadline(what: &'static str) -> Self {
        Self::new(ErrorReason::DeadlineExceeded, what)
            .with("remedy", "repeat the call with the same ids")
    }

    /// A bug; the cause goes to the log only.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(
            ErrorReason::Internal,
            "internal error; the sidecar's log has the detail",
        )
    }

    /// The usage log has too little room left for anything but settlements.
    #[must_use]
    pub fn log_full(fill_percent: u64) -> Self {
        Self::new(
            ErrorReason::UsageLogFull,
            format!("the usage log is {fill_percent} % full; it empties as the ledger commits"),
        )
        .with("value", format_args!("{fill_percent} %"))
        .with("bound", "below 95 %")
        .with(
            "remedy",
            "retry later; check that the ledger is reachable, or raise usage_log_bytes",
        )
        .retry_after(RETRY_LOG_MS)
    }
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        let message = error.to_string();
        Self::new(error.reason, message)
            .with("field", error.field)
            .with("value", error.value)
            .with("bound", error.bound)
            .with("remedy", error.remedy)
    }
}

impl From<LogError> for Refusal {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Full {
                used_bytes,
                capacity_bytes,
            } => Self::log_full(
                used_bytes
                    .saturating_mul(100)
                    .checked_div(capacity_bytes)
                    .unwrap_or(100),
            ),
            LogError::Busy { pending_bytes } => Self::new(
                ErrorReason::UsageLogFull,
                format!("{pending_bytes} bytes of usage wait for the disk; try again"),
            )
            .with("remedy", "retry with backoff")
            .retry_after(RETRY_SOON_MS),
            LogError::TooLong { bytes, bound } => Self::new(
                ErrorReason::FieldTooLong,
                format!("the record takes {bytes} bytes, at most {bound} fit"),
            )
            .with("field", "attributes")
            .with("value", bytes)
            .with("bound", bound)
            .with("remedy", "shorten names and values"),
            _ => Self::new(
                ErrorReason::UsageLogIo,
                "the usage log can't be written; nothing was recorded",
            )
            .with("remedy", "check the sidecar's volume and restart it"),
        }
    }
}

/// The one table from reasons to codes.
#[must_use]
pub const fn code_of(reason: ErrorReason) -> i32 {
    match reason {
        ErrorReason::FieldRequired
        | ErrorReason::FieldInvalid
        | ErrorReason::FieldOutOfRange
        | ErrorReason::FieldTooLong
        | ErrorReason::EnumUnknown
        | ErrorReason::FieldRepeated
        | ErrorReason::RequestIdReused
        | ErrorReason::ReservationInvalid
        | ErrorReason::BatchMalformed
        | ErrorReason::CatalogueInvalid => code::INVALID_ARGUMENT,
        ErrorReason::TenantUnknown
        | ErrorReason::MeterUnknown
        | ErrorReason::LimitUnknown
        | ErrorReason::PlanUnknown
        | ErrorReason::InvoiceUnknown
        | ErrorReason::SubscriptionUnknown
        | ErrorReason::UsageUnknown => code::NOT_FOUND,
        ErrorReason::ReservationElsewhere
        | ErrorReason::ReservationReleased
        | ErrorReason::NotConsumedHere
        | ErrorReason::LevelBelowZero
        | ErrorReason::ProducerFenced
        | ErrorReason::ProducerForked
        | ErrorReason::ProducerGap
        | ErrorReason::ProducerUnknown
        | ErrorReason::VersionUnsupported
        | ErrorReason::PeriodClosed
        | ErrorReason::PeriodOpen
        | ErrorReason::InvoiceState
        | ErrorReason::UsageArchived
        | ErrorReason::ProviderRefused
        | ErrorReason::RestoreUnconfirmed
        | ErrorReason::ClockUnconfirmed
        | ErrorReason::EmbeddedOnly => code::FAILED_PRECONDITION,
        ErrorReason::UsageLogFull | ErrorReason::SidecarFull | ErrorReason::LedgerFull => {
            code::RESOURCE_EXHAUSTED
        }
        ErrorReason::UsageLogIo | ErrorReason::SidecarStarting | ErrorReason::LedgerUnreachable => {
            code::UNAVAILABLE
        }
        ErrorReason::DeadlineExceeded => code::DEADLINE_EXCEEDED,
        ErrorReason::AlreadyExists => code::ALREADY_EXISTS,
        ErrorReason::NotImplemented => code::UNIMPLEMENTED,
        ErrorReason::PermissionDenied => code::PERMISSION_DENIED,
        ErrorReason::Internal | ErrorReason::Unspecified => code::INTERNAL,
    }
}
