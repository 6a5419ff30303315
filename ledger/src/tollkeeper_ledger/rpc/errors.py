"""Map the ledger's errors to gRPC, in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from tollkeeper_ledger.domain.errors import LedgerError

if TYPE_CHECKING:
    from google.protobuf.message import Message

DOMAIN = "tollkeeper"
_DETAILS_KEY = "grpc-status-details-bin"

_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
_NOT_FOUND = grpc.StatusCode.NOT_FOUND

CODES: dict[str, grpc.StatusCode] = {
    "FIELD_REQUIRED": _INVALID,
    "FIELD_INVALID": _INVALID,
    "FIELD_OUT_OF_RANGE": _INVALID,
    "FIELD_TOO_LONG": _INVALID,
    "ENUM_UNKNOWN": _INVALID,
    "FIELD_REPEATED": _INVALID,
    "REQUEST_ID_REUSED": _INVALID,
    "RESERVATION_INVALID": _INVALID,
    "BATCH_MALFORMED": _INVALID,
    "CATALOGUE_INVALID": _INVALID,
    "TENANT_UNKNOWN": _NOT_FOUND,
    "METER_UNKNOWN": _NOT_FOUND,
    "LIMIT_UNKNOWN": _NOT_FOUND,
    "PLAN_UNKNOWN": _NOT_FOUND,
    "INVOICE_UNKNOWN": _NOT_FOUND,
    "SUBSCRIPTION_UNKNOWN": _NOT_FOUND,
    "USAGE_UNKNOWN": _NOT_FOUND,
    "RESERVATION_ELSEWHERE": _PRECONDITION,
    "RESERVATION_RELEASED": _PRECONDITION,
    "NOT_CONSUMED_HERE": _PRECONDITION,
    "LEVEL_BELOW_ZERO": _PRECONDITION,
    "PRODUCER_FENCED": _PRECONDITION,
    "PRODUCER_FORKED": _PRECONDITION,
    "PRODUCER_GAP": _PRECONDITION,
    "PRODUCER_UNKNOWN": _PRECONDITION,
    "VERSION_UNSUPPORTED": _PRECONDITION,
    "PERIOD_CLOSED": _PRECONDITION,
    "PERIOD_OPEN": _PRECONDITION,
    "INVOICE_STATE": _PRECONDITION,
    "USAGE_ARCHIVED": _PRECONDITION,
    "PROVIDER_REFUSED": _PRECONDITION,
    "CLOCK_UNCONFIRMED": _PRECONDITION,
    "EMBEDDED_ONLY": _PRECONDITION,
    "RESTORE_UNCONFIRMED": _PRECONDITION,
    "ALREADY_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "PERMISSION_DENIED": grpc.StatusCode.PERMISSION_DENIED,
    "LEDGER_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "LEDGER_UNREACHABLE": grpc.StatusCode.UNAVAILABLE,
    "NOT_IMPLEMENTED": grpc.StatusCode.UNIMPLEMENTED,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def status_of(error: LedgerError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Give code, message and trailing metadata of an error. Pure; a reason missing in CODES is INTERNAL."""
    code = CODES.get(error.reason, grpc.StatusCode.INTERNAL)
    details = [
        _packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)),
    ]
    if error.retry_after_ms is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=error.message, details=details)
    return code, error.message, ((_DETAILS_KEY, status.SerializeToString()),)


def bug() -> LedgerError:
    """Give what a caller sees of a bug: nothing of its detail."""
    return LedgerError("internal error; the ledger's log has the detail", reason="INTERNAL")
