"""Convert RecordUsage: records in, one result for each out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper.quota.v1 import usage_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError, LedgerError
from tollkeeper_ledger.domain.usage_columns import Use
from tollkeeper_ledger.rpc.usage_fields import check_text, checked_attributes, checked_quantities
from tollkeeper_ledger.services.tenants import check_tenant
from tollkeeper_ledger.services.usage_input import Fate, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

RECORDS_MAX = 1_000
_RESERVED = ("r/", "c/", "g/", "v/")
"""Prefixes of ids that only the system makes."""
_NANOS_MAX = 999_999_999
_SECONDS_MAX = 253_402_300_799
"""The end of the year 9999."""
_OUTCOMES = {
    Fate.RECORDED: usage_pb2.RECORD_OUTCOME_RECORDED,
    Fate.DUPLICATE: usage_pb2.RECORD_OUTCOME_DUPLICATE,
    Fate.CONFLICT: usage_pb2.RECORD_OUTCOME_CONFLICT,
    Fate.INVALID: usage_pb2.RECORD_OUTCOME_INVALID,
}


def uses_of(request: usage_pb2.RecordUsageRequest) -> list[Use | LedgerError]:
    """Give the records, an error in the place of each that breaks a rule. Raises InvalidFieldError for the envelope."""
    if not 1 <= len(request.records) <= RECORDS_MAX:
        raise InvalidFieldError(
            "records",
            "must be records",
            reason="FIELD_TOO_LONG" if request.records else "FIELD_REQUIRED",
            value=len(request.records),
            bound=f"1 to {RECORDS_MAX} records",
            remedy="send them in several calls" if request.records else "send at least one record",
        )
    if request.acknowledgement not in usage_pb2.Acknowledgement.values():
        raise InvalidFieldError(
            "acknowledgement",
            "is unknown",
            reason="ENUM_UNKNOWN",
            value=request.acknowledgement,
            remedy="leave it out: the ledger answers when it has committed",
        )
    return [_use_of(record) for record in request.records]


def _use_of(record: usage_pb2.UsageRecord) -> Use | LedgerError:
    try:
        return _checked(record)
    except LedgerError as error:
        return error


def _checked(record: usage_pb2.UsageRecord) -> Use:
    check_tenant(record.tenant)
    if not record.id:
        raise InvalidFieldError(
            "id", "is missing", reason="FIELD_REQUIRED", remedy="choose one, so that a retry is the same record"
        )
    check_text("id", record.id)
    if record.id.startswith(_RESERVED):
        raise InvalidFieldError(
            "id",
            "begins as the system's own do",
            value=record.id,
            bound=f"free of {', '.join(_RESERVED)}",
            remedy="choose another id",
        )
    if not record.HasField("event_time"):
        raise InvalidFieldError(
            "event_time", "is missing", reason="FIELD_REQUIRED", remedy="send the time of use with your id"
        )
    time = record.event_time
    if not (0 <= time.seconds <= _SECONDS_MAX and 0 <= time.nanos <= _NANOS_MAX):
        raise InvalidFieldError(
            "event_time",
            "is no time",
            reason="FIELD_OUT_OF_RANGE",
            value=f"{time.seconds}s {time.nanos}ns",
            bound="1970 to 9999, nanos 0 to 999999999",
        )
    if not record.quantities:
        raise InvalidFieldError(
            "quantities", "are missing", reason="FIELD_REQUIRED", bound="1 to 16", remedy="name a meter with its units"
        )
    return Use(
        tenant=record.tenant,
        id=record.id,
        event_us=time.seconds * 1_000_000 + time.nanos // 1_000,
        quantities=checked_quantities(record.quantities),
        attributes=checked_attributes(record.attributes),
    )


def results_message(request: usage_pb2.RecordUsageRequest, verdicts: Sequence[Result]) -> usage_pb2.RecordUsageResponse:
    """Give one result for every record of the request."""
    return usage_pb2.RecordUsageResponse(
        results=[
            _result(index, record.id, verdict)
            for index, (record, verdict) in enumerate(zip(request.records, verdicts, strict=True))
        ]
    )


def _result(index: int, record_id: str, verdict: Result) -> usage_pb2.RecordResult:
    result = usage_pb2.RecordResult(outcome=_OUTCOMES[verdict.fate], id=record_id)
    if verdict.error is not None:
        about = verdict.error.metadata
        path = f"records[{index}]"
        told = "; ".join(f"{name}: {about[name]}" for name in ("value", "bound", "remedy") if name in about)
        result.reason = verdict.error.reason
        result.field = f"{path}.{about.get('field', '')}"
        result.message = f"{path}.{verdict.error.message}" + (f" ({told})" if told else "")
    return result
