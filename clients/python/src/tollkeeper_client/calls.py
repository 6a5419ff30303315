"""Every call to a sidecar, once: what it takes, what it sends, what its answer means.

Both clients are made from these functions (see `client.py`), so they can't differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tollkeeper.quota.v1 import quota_pb2, usage_pb2

from tollkeeper_client import wire
from tollkeeper_client.errors import Denied, InvalidRequest, RecordConflict, SidecarError
from tollkeeper_client.ids import uuid7
from tollkeeper_client.results import Acknowledgement, Detail, Outcome, UsageRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    from google.protobuf.message import Message

    from tollkeeper_client.results import Decision, Quota, RecordResult, Release, Reserved, Settlement

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One call that is ready to be made."""

    method: str
    """Name of the method of QuotaService."""
    request: Message
    read: Callable[[Any], T]
    """Reads the answer. May raise TollkeeperError."""
    timeout_s: float | None
    """Deadline; none = the client's own."""


def check(
    tenant: str,
    costs: Mapping[str, int] | None = None,
    *,
    features: Sequence[str] = (),
    attributes: Mapping[str, str] | None = None,
    request_id: str | None = None,
    record_usage: bool = False,
    peek: bool = False,
    detail: Detail = Detail.BINDING,
    want_headers: bool = False,
    raise_on_denial: bool = False,
    timeout_s: float | None = None,
) -> Call[Decision]:
    """Decide, and take `costs` (units per meter) from every limit that matches: all of them or none.

    With `peek` nothing is taken. With `record_usage` the costs are also written as a usage record, durable before
    the answer; a request id is then made where none is given. A repeat with the same `request_id` within 60 s
    replays an admitted answer. A denial is an answer, unless `raise_on_denial`: then it raises Denied.
    """
    request = check_request(
        tenant,
        costs,
        features=features,
        attributes=attributes,
        request_id=request_id or (uuid7() if record_usage else None),
        detail=detail,
        mode=quota_pb2.CHECK_MODE_PEEK if peek else quota_pb2.CHECK_MODE_CONSUME,
        record_usage=record_usage,
        want_headers=want_headers,
    )
    read = partial(_decided, raise_on_denial=raise_on_denial)
    return Call(method="CheckQuota", request=request, read=read, timeout_s=timeout_s)


def give_back(
    tenant: str,
    costs: Mapping[str, int],
    *,
    attributes: Mapping[str, str] | None = None,
    request_id: str | None = None,
    detail: Detail = Detail.BINDING,
    timeout_s: float | None = None,
) -> Call[Decision]:
    """Give back `costs` (units per meter) that a check took at the same sidecar: of all limits that match, or of none.

    Name the attributes of that check. Of a window what is open counts; tokens go to their bucket, never above its
    burst; a level falls. Usage that was recorded stays recorded. A request id is made where none is given; a repeat
    with the same one within 60 s gives nothing back twice. Raises NotConsumedHere where less was taken there.
    """
    request = check_request(
        tenant,
        costs,
        attributes=attributes,
        request_id=request_id or uuid7(),
        detail=detail,
        mode=quota_pb2.CHECK_MODE_GIVE_BACK,
    )
    return Call(
        method="CheckQuota", request=request, read=partial(_decided, raise_on_denial=False), timeout_s=timeout_s
    )


def reserve(
    tenant: str,
    costs: Mapping[str, int],
    *,
    ttl: timedelta | None = None,
    features: Sequence[str] = (),
    attributes: Mapping[str, str] | None = None,
    request_id: str | None = None,
    detail: Detail = Detail.BINDING,
    raise_on_denial: bool = False,
    timeout_s: float | None = None,
) -> Call[Reserved]:
    """Hold `costs` (units per meter) until they are settled, released, or `ttl` (1 s to 7 days, default 10 min) ends.

    Durable before it is answered. A request id is made where none is given; a repeat with the same one replays the
    answer. A denial is an answer without a token, unless `raise_on_denial`: then it raises Denied.
    """
    request_id = request_id or uuid7()
    request = check_request(
        tenant,
        costs,
        features=features,
        attributes=attributes,
        request_id=request_id,
        detail=detail,
        mode=quota_pb2.CHECK_MODE_RESERVE,
        ttl=ttl,
    )
    read = partial(_reserved, request_id=request_id, raise_on_denial=raise_on_denial)
    return Call(method="CheckQuota", request=request, read=read, timeout_s=timeout_s)


def settle(
    token: str,
    quantities: Mapping[str, int],
    *,
    attributes: Mapping[str, str] | None = None,
    event_time: datetime | None = None,
    timeout_s: float | None = None,
) -> Call[Settlement]:
    """End a reservation at what was really used (units per meter): refund the rest, record the usage. Idempotent.

    A reserved meter that is missing was not used at all. More than was reserved is recorded and billed.
    """
    request = quota_pb2.SettleReservationRequest(
        token=token,
        quantities=wire.to_quantities(quantities),
        attributes=dict(attributes or {}),
        event_time=wire.to_timestamp("event_time", event_time),
    )
    return Call(method="SettleReservation", request=request, read=wire.from_settlement, timeout_s=timeout_s)


def release(token: str, *, timeout_s: float | None = None) -> Call[Release]:
    """End a reservation at zero. Idempotent."""
    request = quota_pb2.ReleaseReservationRequest(token=token)
    return Call(method="ReleaseReservation", request=request, read=wire.from_release, timeout_s=timeout_s)


def record_many(
    records: Iterable[UsageRecord],
    *,
    acknowledgement: Acknowledgement = Acknowledgement.LOCAL,
    timeout_s: float | None = None,
) -> Call[tuple[RecordResult, ...]]:
    """Make 1 to 1,000 usage records durable; each has its own result, in their order.

    Repeating records that have an id is harmless.
    """
    request = usage_pb2.RecordUsageRequest(
        records=list(map(wire.to_record, records)),
        acknowledgement=usage_pb2.Acknowledgement.Value(f"ACKNOWLEDGEMENT_{acknowledgement}"),
    )
    return Call(method="RecordUsage", request=request, read=wire.from_results, timeout_s=timeout_s)


def record(
    tenant: str,
    quantities: Mapping[str, int],
    *,
    id: str | None = None,  # noqa: A002 - the record's field is named so everywhere
    event_time: datetime | None = None,
    attributes: Mapping[str, str] | None = None,
    acknowledgement: Acknowledgement = Acknowledgement.LOCAL,
    timeout_s: float | None = None,
) -> Call[RecordResult]:
    """Make one usage record durable (units per meter). Repeating it is harmless where it has an id and an event time.

    Raises InvalidRequest where the record breaks a rule, RecordConflict where another one has its id.
    """
    one = UsageRecord(tenant=tenant, quantities=quantities, id=id, event_time=event_time, attributes=attributes)
    many = record_many([one], acknowledgement=acknowledgement, timeout_s=timeout_s)
    return Call(method=many.method, request=many.request, read=_recorded, timeout_s=timeout_s)


def quota(
    tenant: str,
    *,
    attributes: Mapping[str, str] | None = None,
    meter: str = "",
    timeout_s: float | None = None,
) -> Call[Quota]:
    """List every limit of a tenant as known at the sidecar; `attributes` choose the keys of split limits."""
    request = quota_pb2.GetQuotaRequest(tenant=tenant, attributes=dict(attributes or {}), meter=meter)
    return Call(method="GetQuota", request=request, read=wire.from_quota, timeout_s=timeout_s)


def check_request(
    tenant: str,
    costs: Mapping[str, int] | None,
    *,
    features: Sequence[str] = (),
    attributes: Mapping[str, str] | None = None,
    request_id: str | None = None,
    detail: Detail = Detail.BINDING,
    mode: quota_pb2.CheckMode.ValueType = quota_pb2.CHECK_MODE_CONSUME,
    record_usage: bool = False,
    ttl: timedelta | None = None,
    want_headers: bool = False,
) -> quota_pb2.CheckQuotaRequest:
    """Encode a check."""
    return quota_pb2.CheckQuotaRequest(
        tenant=tenant,
        costs=wire.to_costs(costs or {}),
        features=features,
        attributes=dict(attributes or {}),
        request_id=request_id or "",
        detail=quota_pb2.Detail.Value(f"DETAIL_{detail}"),
        mode=mode,
        record_usage=record_usage,
        reservation_ttl=wire.to_duration(ttl),
        want_headers=want_headers,
    )


def _decided(message: quota_pb2.CheckQuotaResponse, *, raise_on_denial: bool) -> Decision:
    decision = wire.from_check(message)
    if raise_on_denial and not decision.allowed:
        raise Denied(decision)
    return decision


def _reserved(message: quota_pb2.CheckQuotaResponse, *, request_id: str, raise_on_denial: bool) -> Reserved:
    reserved = wire.from_reserve(message, request_id=request_id)
    if reserved.decision.allowed and not reserved.token:
        raise SidecarError("the sidecar admitted a reservation and gave no token")
    if raise_on_denial and not reserved.decision.allowed:
        raise Denied(reserved.decision)
    return reserved


def _recorded(message: usage_pb2.RecordUsageResponse) -> RecordResult:
    results = wire.from_results(message)
    if len(results) != 1:
        raise SidecarError(f"the sidecar answered {len(results)} results to one record")
    result = results[0]
    if result.outcome is Outcome.INVALID:
        raise InvalidRequest(result.message, reason=result.reason, metadata={"field": result.field})
    if result.outcome is Outcome.CONFLICT:
        raise RecordConflict(f"another record has the id {result.id!r}; choose another id", reason="CONFLICT")
    return result
