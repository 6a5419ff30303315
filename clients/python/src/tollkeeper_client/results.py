"""What calls answer: frozen values. A result is never true or false by itself: ask its fields."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta


class Reason(StrEnum):
    """Why a decision is what it is."""

    ALLOWED = "ALLOWED"
    SOFT_LIMIT_EXCEEDED = "SOFT_LIMIT_EXCEEDED"
    SHADOW_LIMIT_EXCEEDED = "SHADOW_LIMIT_EXCEEDED"
    UNCOVERED = "UNCOVERED"
    QUOTA_EXHAUSTED = "QUOTA_EXHAUSTED"
    RATE_LIMITED = "RATE_LIMITED"
    COST_EXCEEDS_LIMIT = "COST_EXCEEDS_LIMIT"
    FEATURE_DISABLED = "FEATURE_DISABLED"
    TENANT_UNKNOWN = "TENANT_UNKNOWN"
    TENANT_SUSPENDED = "TENANT_SUSPENDED"
    METER_UNKNOWN = "METER_UNKNOWN"
    AUTHORITY_UNREACHABLE = "AUTHORITY_UNREACHABLE"
    SIDECAR_FULL = "SIDECAR_FULL"
    UNRECOGNISED = "UNRECOGNISED"
    """A newer sidecar said something that this client has no word for; `allowed` holds all the same."""


class LimitKind(StrEnum):
    """How a limit counts."""

    TOKEN_BUCKET = "TOKEN_BUCKET"  # noqa: S105 - a kind of limit
    WINDOW = "WINDOW"
    LEVEL = "LEVEL"
    CONCURRENCY = "CONCURRENCY"
    UNRECOGNISED = "UNRECOGNISED"


class Enforcement(StrEnum):
    """What happens beyond a limit."""

    HARD = "HARD"
    SOFT = "SOFT"
    SHADOW = "SHADOW"
    UNRECOGNISED = "UNRECOGNISED"


class Detail(StrEnum):
    """How much a decision shall tell."""

    NONE = "NONE"
    BINDING = "BINDING"
    ALL = "ALL"


class Acknowledgement(StrEnum):
    """Where a record must be before it is acknowledged."""

    LOCAL = "LOCAL"
    LEDGER = "LEDGER"


class Outcome(StrEnum):
    """What became of a record."""

    RECORDED = "RECORDED"
    DUPLICATE = "DUPLICATE"
    CONFLICT = "CONFLICT"
    INVALID = "INVALID"
    UNRECOGNISED = "UNRECOGNISED"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitState:
    """One limit as the sidecar knows it. Units are those of its meter."""

    name: str
    meter: str
    kind: LimitKind
    enforcement: Enforcement
    amount: int
    """Units per window, or tokens per refill interval; -1 is unlimited, 0 is none."""
    burst: int
    """Token buckets: the most that it holds."""
    used: int
    used_percent: int
    remaining: int
    reset_after: timedelta | None
    window_start: datetime | None
    window_end: datetime | None
    key: Mapping[str, str]
    """The attributes that split the limit, with this key's values."""
    source: str
    plan: str
    as_of: datetime | None
    tenant: str
    hidden: bool = False
    """A parent's limit that is not shared: amount, burst, used, used_percent, remaining and source are 0 or empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer to a check."""

    allowed: bool
    reason: Reason
    binding: LimitState | None = None
    """The limit that decided."""
    remaining: int | None = None
    """What remains of the binding limit; absent where no limit matched."""
    reset_after: timedelta | None = None
    retry_after: timedelta | None = None
    """Denials: when the same call would pass if nobody else asked; absent where no waiting helps or nobody knows."""
    limits: tuple[LimitState, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    subject: str = ""
    """The feature, meter or tenant that the reason speaks of, where there is no limit to name."""

    def __bool__(self) -> NoReturn:
        raise TypeError("a decision is neither true nor false; ask `.allowed`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """The answer to a reservation."""

    decision: Decision
    request_id: str
    token: str | None = None
    """Names the reservation at any sidecar; absent where it was denied."""
    expires_at: datetime | None = None

    def __bool__(self) -> NoReturn:
        raise TypeError("a reservation is neither true nor false; ask `.decision.allowed`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What a settlement did."""

    refunded: Mapping[str, int]
    """Units per meter that went back to the limits."""
    excess: Mapping[str, int]
    """Units per meter above what was reserved: recorded, billed, and owed to the limit."""
    record_id: str
    expired: bool
    """The reservation had expired; the usage was recorded all the same."""
    repeated_call: bool
    """It had been settled before; nothing was added now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What a release did."""

    refunded: Mapping[str, int]
    repeated_call: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordResult:
    """What became of one usage record."""

    outcome: Outcome
    id: str
    reason: str = ""
    field: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """A tenant's limits as known at the sidecar."""

    tenant: str
    plan: str
    features: tuple[str, ...]
    limits: tuple[LimitState, ...]
    as_of: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One counted fact to record. Whoever chooses an id chooses the event time as well."""

    tenant: str
    quantities: Mapping[str, int]
    id: str | None = None
    """Idempotency id, unique per tenant; without one the sidecar makes id and event time, and a repeat counts again."""
    event_time: datetime | None = None
    attributes: Mapping[str, str] | None = None
    count_against_limits: bool = False
    """Whether limits that match are charged as well, now and without asking; what they lack is owed."""
