"""Between Python values and the messages of `tollkeeper.quota.v1`: `to_*` may refuse, `from_*` reads what came."""

from __future__ import annotations

from datetime import UTC
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, usage_pb2

from tollkeeper_client.errors import InvalidRequest
from tollkeeper_client.results import (
    Decision,
    Enforcement,
    LimitKind,
    LimitState,
    Outcome,
    Quota,
    Reason,
    RecordResult,
    Release,
    Reserved,
    Settlement,
    UsageRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta
    from enum import StrEnum

    from google.protobuf.descriptor import EnumDescriptor

UNITS_MAX: Final = 2**53 - 1

_Word = TypeVar("_Word", bound="StrEnum")


def refuse(field: str, value: object, bound: str, remedy: str) -> InvalidRequest:
    """Return the error for a value that can't even be sent."""
    metadata = {"field": field, "value": repr(value), "bound": bound, "remedy": remedy}
    return InvalidRequest(f"{field} is {value!r}: {bound}; {remedy}", reason="FIELD_INVALID", metadata=metadata)


def to_costs(costs: Mapping[str, int]) -> list[quota_pb2.Cost]:
    """Encode units per meter. Raises InvalidRequest where a number does not fit 64 bits."""
    return [quota_pb2.Cost(meter=meter, units=_units("costs", meter, units)) for meter, units in costs.items()]


def to_quantities(quantities: Mapping[str, int]) -> list[usage_pb2.Quantity]:
    """Encode units per meter. Raises InvalidRequest where a number does not fit 64 bits."""
    return [
        usage_pb2.Quantity(meter=meter, units=_units("quantities", meter, units)) for meter, units in quantities.items()
    ]


def _units(field: str, meter: str, units: int) -> int:
    if not -(2**63) <= units < 2**63:
        raise refuse(f"{field}[{meter}].units", units, f"0 to {UNITS_MAX}", "ask for less at once")
    return units


def to_timestamp(field: str, at: datetime | None) -> Timestamp | None:
    """Encode a time. Raises InvalidRequest where it has no time zone."""
    if at is None:
        return None
    if at.tzinfo is None:
        raise refuse(field, at.isoformat(), "a time with a time zone", "use datetime.now(UTC) or give it a tzinfo")
    timestamp = Timestamp()
    timestamp.FromDatetime(at)
    return timestamp


def to_duration(length: timedelta | None) -> Duration | None:
    """Encode a length of time."""
    if length is None:
        return None
    duration = Duration()
    duration.FromTimedelta(length)
    return duration


def to_record(record: UsageRecord) -> usage_pb2.UsageRecord:
    """Encode a usage record."""
    return usage_pb2.UsageRecord(
        id=record.id or "",
        tenant=record.tenant,
        event_time=to_timestamp("event_time", record.event_time),
        quantities=to_quantities(record.quantities),
        attributes=dict(record.attributes or {}),
        count_against_limits=record.count_against_limits,
    )


def from_decision(message: decision_pb2.Decision) -> Decision:
    """Read a decision."""
    return Decision(
        allowed=message.allowed,
        reason=_word(
            Reason, decision_pb2.DecisionReason.DESCRIPTOR, "DECISION_REASON_", message.reason, Reason.UNRECOGNISED
        ),
        binding=from_limit(message.binding) if message.HasField("binding") else None,
        remaining=message.remaining if message.HasField("remaining") else None,
        reset_after=_length(message.reset_after, present=message.HasField("reset_after")),
        retry_after=_length(message.retry_after, present=message.HasField("retry_after")),
        limits=tuple(map(from_limit, message.limits)),
        headers=tuple((header.name, header.value) for header in message.headers),
        subject=message.subject,
    )


def from_check(message: quota_pb2.CheckQuotaResponse) -> Decision:
    """Read the answer to a check."""
    return from_decision(message.decision)


def from_reserve(message: quota_pb2.CheckQuotaResponse, *, request_id: str) -> Reserved:
    """Read the answer to a reservation."""
    decision = from_decision(message.decision)
    if not decision.allowed or not message.HasField("reservation"):
        return Reserved(decision=decision, request_id=request_id)
    held = message.reservation
    expires_at = _time(held.expires_at, present=held.HasField("expires_at"))
    return Reserved(decision=decision, request_id=request_id, token=held.token, expires_at=expires_at)


def from_limit(message: decision_pb2.LimitState) -> LimitState:
    """Read a limit."""
    return LimitState(
        name=message.name,
        meter=message.meter,
        kind=_word(LimitKind, decision_pb2.LimitKind.DESCRIPTOR, "LIMIT_KIND_", message.kind, LimitKind.UNRECOGNISED),
        enforcement=_word(
            Enforcement,
            decision_pb2.Enforcement.DESCRIPTOR,
            "ENFORCEMENT_",
            message.enforcement,
            Enforcement.UNRECOGNISED,
        ),
        amount=message.amount,
        burst=message.burst,
        used=message.used,
        used_percent=message.used_percent,
        remaining=message.remaining,
        reset_after=_length(message.reset_after, present=message.HasField("reset_after")),
        window_start=_time(message.window_start, present=message.HasField("window_start")),
        window_end=_time(message.window_end, present=message.HasField("window_end")),
        key=MappingProxyType(dict(message.key)),
        source=message.source,
        plan=message.plan,
        as_of=_time(message.as_of, present=message.HasField("as_of")),
        tenant=message.tenant,
        hidden=message.hidden,
    )


def from_settlement(message: quota_pb2.SettleReservationResponse) -> Settlement:
    """Read what a settlement did."""
    return Settlement(
        refunded=_by_meter(message.refunded),
        excess=_by_meter(message.excess),
        record_id=message.record_id,
        expired=message.expired,
        repeated_call=message.repeated_call,
    )


def from_release(message: quota_pb2.ReleaseReservationResponse) -> Release:
    """Read what a release did."""
    return Release(refunded=_by_meter(message.refunded), repeated_call=message.repeated_call)


def from_results(message: usage_pb2.RecordUsageResponse) -> tuple[RecordResult, ...]:
    """Read what became of records."""
    return tuple(
        RecordResult(
            outcome=_word(
                Outcome, usage_pb2.RecordOutcome.DESCRIPTOR, "RECORD_OUTCOME_", result.outcome, Outcome.UNRECOGNISED
            ),
            id=result.id,
            reason=result.reason,
            field=result.field,
            message=result.message,
        )
        for result in message.results
    )


def from_quota(message: quota_pb2.GetQuotaResponse) -> Quota:
    """Read a tenant's limits."""
    return Quota(
        tenant=message.tenant,
        plan=message.plan,
        features=tuple(message.features),
        limits=tuple(map(from_limit, message.limits)),
        as_of=_time(message.as_of, present=message.HasField("as_of")),
    )


def _by_meter(quantities: Iterable[usage_pb2.Quantity]) -> Mapping[str, int]:
    return MappingProxyType({quantity.meter: quantity.units for quantity in quantities})


def _word(words: type[_Word], numbers: EnumDescriptor, prefix: str, number: int, unknown: _Word) -> _Word:
    if number not in numbers.values_by_number:
        return unknown
    name = numbers.values_by_number[number].name.removeprefix(prefix)
    return words(name) if name in words.__members__ else unknown


def _length(duration: Duration, *, present: bool) -> timedelta | None:
    return duration.ToTimedelta() if present else None


def _time(timestamp: Timestamp, *, present: bool) -> datetime | None:
    return timestamp.ToDatetime(tzinfo=UTC) if present else None
