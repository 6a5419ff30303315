"""The ledger's one tree of errors. Each crosses services as it is; `rpc/errors.py` maps it to a gRPC status, once.

LedgerError
├── InvalidFieldError      FIELD_REQUIRED, FIELD_INVALID, FIELD_OUT_OF_RANGE, FIELD_TOO_LONG, ENUM_UNKNOWN, …
├── UnknownNameError       TENANT_UNKNOWN, METER_UNKNOWN, LIMIT_UNKNOWN, PLAN_UNKNOWN, …
├── PreconditionError      PRODUCER_FENCED, PERIOD_CLOSED, EMBEDDED_ONLY, VERSION_UNSUPPORTED, …
├── AlreadyExistsError     ALREADY_EXISTS
├── NotPermittedError      PERMISSION_DENIED
└── OverloadedError        LEDGER_FULL

The reason is a name of tollkeeper.quota.v1.ErrorReason without its prefix. Anything that is not a LedgerError is a bug
and reaches the caller as INTERNAL, its detail only in the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


_BROKEN_OFF_RETRY_MS = 1_000


class LedgerError(Exception):
    """Carry a stable reason, a message for people, and what they need to act on it."""

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: Mapping[str, str] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after_ms = retry_after_ms


class InvalidFieldError(LedgerError):
    """Refuse a request whose field breaks a rule that the caller can read in the contract."""

    def __init__(
        self,
        field: str,
        problem: str,
        *,
        reason: str = "FIELD_INVALID",
        value: object = None,
        bound: str = "",
        remedy: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        details = {"field": field, **(metadata or {})}
        if value is not None:
            details["value"] = str(value)[:128]
        if bound:
            details["bound"] = bound
        if remedy:
            details["remedy"] = remedy
        super().__init__(f"{field}: {problem}", reason=reason, metadata=details)
        self.field = field


class UnknownNameError(LedgerError):
    """Refuse a request that names something that does not exist."""

    def __init__(self, kind: str, name: str, *, remedy: str = "") -> None:
        details = {kind: name[:128]}
        if remedy:
            details["remedy"] = remedy
        super().__init__(f"no such {kind}: {name[:128]!r}", reason=f"{kind.upper()}_UNKNOWN", metadata=details)


class PreconditionError(LedgerError):
    """Refuse what can't be done in the present state; the reason says which."""


class AlreadyExistsError(LedgerError):
    """Refuse to make what exists with other content."""

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, reason="ALREADY_EXISTS", metadata=metadata)


class NotPermittedError(LedgerError):
    """Refuse a caller who may not do this."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="PERMISSION_DENIED")


def broken_off() -> LedgerError:
    """Give what whoever waits for work hears that ended in its middle: it is done or not, and a repeat tells."""
    return LedgerError(
        "the work was broken off; repeat the call", reason="LEDGER_UNREACHABLE", retry_after_ms=_BROKEN_OFF_RETRY_MS
    )


class OverloadedError(LedgerError):
    """Refuse because too much is waiting; nothing was done and a retry helps."""

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message, reason="LEDGER_FULL", retry_after_ms=retry_after_ms)
