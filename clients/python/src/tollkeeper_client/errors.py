"""What a call may raise.

TollkeeperError
├── Denied                  the decision is no; raised only where `raise_on_denial` is asked for
├── InvalidRequest          a field is missing, malformed, too large or unknown; nothing was done
├── NotFound                tenant, meter or limit do not exist; nothing was done
├── ReservationInvalid      the token is not one of this installation
├── ReservationClosed       the reservation can't be ended like this any more, or not here
├── NotConsumedHere         more is given back than was taken at this sidecar; nothing was done
├── RecordConflict          another record has this id
├── SidecarFull             too many calls wait, or the usage log is full; nothing was done
├── Unavailable             the sidecar can't be reached, or can't serve now
│   ├── SidecarStarting     it has not yet learnt its limits
│   └── LedgerUnreachable   the call needs the ledger, and that is away
├── DeadlineExceeded        no answer in time; what came of the call is not known
├── NotServed               this version does not serve it yet
├── PermissionDenied        the caller may not do this
├── ClientClosed            the client was closed
└── SidecarError            a bug in the sidecar, or an answer that means nothing here
"""
# ruff: noqa: N818 - the names say what happened; all of them end up under TollkeeperError

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import timedelta

    from tollkeeper_client.results import Decision

DOMAIN: Final = "tollkeeper"
STATUS_DETAILS: Final = "grpc-status-details-bin"


class TollkeeperError(Exception):
    """Anything that a call raises. `reason` is the stable name; empty where the other side gave none."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        """Where the sidecar asks for a pause before the next try; absent where it doesn't."""


class Denied(TollkeeperError):
    """Carries the decision that said no."""

    def __init__(self, decision: Decision) -> None:
        limit = f" by limit {decision.binding.name!r}" if decision.binding is not None else ""
        super().__init__(f"denied{limit}: {decision.reason}", reason=str(decision.reason))
        self.decision = decision


class InvalidRequest(TollkeeperError):
    """Names the field, what it was, what it may be, and what to do; each empty where it does not apply."""

    @property
    def field(self) -> str:
        """Path of the offending field."""
        return self.metadata.get("field", "")

    @property
    def value(self) -> str:
        """What it was."""
        return self.metadata.get("value", "")

    @property
    def bound(self) -> str:
        """What it may be."""
        return self.metadata.get("bound", "")

    @property
    def remedy(self) -> str:
        """What to do."""
        return self.metadata.get("remedy", "")


class NotFound(InvalidRequest):
    """Names something that does not exist."""


class ReservationInvalid(InvalidRequest):
    """The token was not made by this installation, or is damaged."""


class ReservationClosed(TollkeeperError):
    """The reservation was released before, was never admitted, or is held by another sidecar (see `reason`)."""


class NotConsumedHere(TollkeeperError):
    """Nothing was given back: less was taken at this sidecar, or its window is over."""


class RecordConflict(TollkeeperError):
    """Another record was recorded under the same id; this one was not."""


class SidecarFull(TollkeeperError):
    """Nothing was done; a repeat after `retry_after` may pass."""


class Unavailable(TollkeeperError):
    """The call may or may not have been done: repeat it only where it is idempotent."""


class SidecarStarting(Unavailable):
    """Nothing was done; a repeat after `retry_after` may pass."""


class LedgerUnreachable(Unavailable):
    """Only the ledger can answer this, and it is away."""


class DeadlineExceeded(TollkeeperError):
    """The call may or may not have been done: repeat it only where it is idempotent."""


class NotServed(TollkeeperError):
    """The sidecar does not serve this yet."""


class PermissionDenied(TollkeeperError):
    """The sidecar does not let this caller do it."""


class ClientClosed(TollkeeperError):
    """Make a new client."""


class SidecarError(TollkeeperError):
    """The detail is in the sidecar's log."""


_BY_REASON: Final[Mapping[str, type[TollkeeperError]]] = {
    "RESERVATION_INVALID": ReservationInvalid,
    "NOT_CONSUMED_HERE": NotConsumedHere,
    "SIDECAR_STARTING": SidecarStarting,
    "LEDGER_UNREACHABLE": LedgerUnreachable,
}
_BY_CODE: Final[Mapping[int, type[TollkeeperError]]] = {
    code_pb2.INVALID_ARGUMENT: InvalidRequest,
    code_pb2.OUT_OF_RANGE: InvalidRequest,
    code_pb2.NOT_FOUND: NotFound,
    code_pb2.FAILED_PRECONDITION: ReservationClosed,
    code_pb2.RESOURCE_EXHAUSTED: SidecarFull,
    code_pb2.UNAVAILABLE: Unavailable,
    code_pb2.DEADLINE_EXCEEDED: DeadlineExceeded,
    code_pb2.UNIMPLEMENTED: NotServed,
    code_pb2.PERMISSION_DENIED: PermissionDenied,
    code_pb2.UNAUTHENTICATED: PermissionDenied,
}


def from_status(
    code: int,
    message: str,
    *,
    reason: str = "",
    metadata: Mapping[str, str] | None = None,
    retry_after: timedelta | None = None,
) -> TollkeeperError:
    """Return the error for a google.rpc.Code and a stable reason."""
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, SidecarError)
    return kind(message, reason=reason, metadata=metadata, retry_after=retry_after)


def from_rpc_error(error: grpc.RpcError) -> TollkeeperError:
    """Return the error for a failed call, with what its details say."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return SidecarError(repr(error))
    code, message = error.code(), error.details() or ""
    info, retry = _details(error.trailing_metadata() or ())
    return from_status(
        code.value[0],
        message or code.name,
        reason=info.reason,
        metadata=info.metadata,
        retry_after=retry,
    )


def _details(
    trailing: Iterable[tuple[str, str | bytes]],
) -> tuple[error_details_pb2.ErrorInfo, timedelta | None]:
    info, retry_after = error_details_pb2.ErrorInfo(), None
    for key, value in trailing:
        if key == STATUS_DETAILS and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                found, pause = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                if detail.Unpack(found) and found.domain == DOMAIN:
                    info = found
                elif detail.Unpack(pause):
                    retry_after = pause.retry_delay.ToTimedelta()
    return info, retry_after
