"""What breaks the contract is refused with field, bound and remedy, over the wire, and stores nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc, usage_pb2

if TYPE_CHECKING:
    from platform_support import Platform

UNITS_MAX = 2**53 - 1
_UNDECIDED = decision_pb2.DECISION_REASON_AUTHORITY_UNREACHABLE


def check(**changes: Any) -> quota_pb2.CheckQuotaRequest:
    """Make a good check of the tenant `code`, changed as told."""
    fields: dict[str, Any] = {"tenant": "code", "costs": [quota_pb2.Cost(meter="requests", units=1)]}
    return quota_pb2.CheckQuotaRequest(**(fields | changes))


def costs(*units: int, meter: str = "requests") -> list[quota_pb2.Cost]:
    """Make costs of one meter."""
    return [quota_pb2.Cost(meter=meter, units=value) for value in units]


BAD_CHECKS = {
    "empty tenant": (check(tenant=""), "FIELD_REQUIRED", "tenant"),
    "tenant with a space": (check(tenant="a b"), "FIELD_INVALID", "tenant"),
    "tenant with a path": (check(tenant="../etc/passwd"), "FIELD_INVALID", "tenant"),
    "tenant with right-to-left override": (check(tenant="a\u202eb"), "FIELD_INVALID", "tenant"),
    "tenant with NUL": (check(tenant="a\0b"), "FIELD_INVALID", "tenant"),
    "tenant too long": (check(tenant="a" * 129), "FIELD_TOO_LONG", "tenant"),
    "no cost and no feature": (check(costs=[]), "FIELD_REQUIRED", "costs"),
    "negative cost": (check(costs=costs(-1)), "FIELD_OUT_OF_RANGE", "costs[0].units"),
    "cost above 2^53 - 1": (check(costs=costs(UNITS_MAX + 1)), "FIELD_OUT_OF_RANGE", "costs[0].units"),
    "cost of 2^63 - 1": (check(costs=costs(2**63 - 1)), "FIELD_OUT_OF_RANGE", "costs[0].units"),
    "empty meter": (check(costs=costs(1, meter="")), "FIELD_REQUIRED", "costs[0].meter"),
    "meter twice": (check(costs=costs(1, 2)), "FIELD_REPEATED", "costs[1].meter"),
    "seventeen costs": (
        check(costs=[quota_pb2.Cost(meter=f"m{i}", units=1) for i in range(17)]),
        "FIELD_TOO_LONG",
        "costs",
    ),
    "no value to count": (check(costs=costs(1, meter="active-users")), "FIELD_REQUIRED", "attributes.user"),
    "two units of one value": (
        check(costs=costs(2, meter="active-users"), attributes={"user": "a"}),
        "FIELD_OUT_OF_RANGE",
        "costs[0].units",
    ),
    "unknown mode": (check(mode=99), "ENUM_UNKNOWN", "mode"),
    "unknown detail": (check(detail=77), "ENUM_UNKNOWN", "detail"),
    "reserve without request_id": (check(mode=quota_pb2.CHECK_MODE_RESERVE), "FIELD_REQUIRED", "request_id"),
    "request_id too long": (check(request_id="x" * 129), "FIELD_TOO_LONG", "request_id"),
    "ttl of zero": (
        check(mode=quota_pb2.CHECK_MODE_RESERVE, request_id="r", reservation_ttl=Duration()),
        "FIELD_OUT_OF_RANGE",
        "reservation_ttl",
    ),
    "ttl of eight days": (
        check(mode=quota_pb2.CHECK_MODE_RESERVE, request_id="r", reservation_ttl=Duration(seconds=8 * 86_400)),
        "FIELD_OUT_OF_RANGE",
        "reservation_ttl",
    ),
    "message of two MiB": (check(attributes={"a": "x" * (2 << 20)}), "FIELD_TOO_LONG", "message"),
}


def error_info(error: grpc.RpcError) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    """Return code and ErrorInfo of a failed call; fails the test where there is not exactly one."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no status details: {error}"
    infos = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            infos.append(info)
    assert len(infos) == 1
    return error.code(), infos[0]


@pytest.mark.parametrize("name", BAD_CHECKS)
async def test_bad_check_is_refused_with_field_bound_and_remedy(platform: Platform, name: str) -> None:
    """A check that breaks the contract is INVALID_ARGUMENT and says which field, why, and what to do."""
    request, reason, field = BAD_CHECKS[name]
    async with platform.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await quota_pb2_grpc.QuotaServiceStub(channel).CheckQuota(request, timeout=30)
    code, info = error_info(caught.value)
    assert (code, info.domain, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "tollkeeper", reason)
    assert info.metadata["field"] == field
    assert info.metadata["bound"]
    assert info.metadata["remedy"]


async def test_unknown_tenant_and_meter_are_decisions(platform: Platform) -> None:
    """An unknown tenant or meter is a denial that names it, as any decision about a call."""
    async with platform.channel() as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        nobody = await stub.CheckQuota(check(tenant="nobody"), timeout=30)
        for _ in range(100):
            if nobody.decision.reason != _UNDECIDED:
                break
            await asyncio.sleep(0.02)  # The ledger has not said yet whether there is such a tenant.
            nobody = await stub.CheckQuota(check(tenant="nobody"), timeout=30)
        nothing = await stub.CheckQuota(check(costs=costs(1, meter="unicorns")), timeout=30)
    assert (nobody.decision.allowed, nobody.decision.reason) == (False, decision_pb2.DECISION_REASON_TENANT_UNKNOWN)
    assert (nothing.decision.allowed, nothing.decision.reason) == (False, decision_pb2.DECISION_REASON_METER_UNKNOWN)
    assert nothing.decision.subject == "unicorns"


async def test_later_features_say_that_they_are_not_there(platform: Platform) -> None:
    """What is not built yet answers UNIMPLEMENTED with NOT_IMPLEMENTED; nothing pretends."""
    async with platform.channel() as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.LeaseQuota(quota_pb2.LeaseQuotaRequest(tenant="code"), timeout=30)
        code, info = error_info(caught.value)
        assert (code, info.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")


BAD_RECORDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown tenant": ({"tenant": "nobody"}, "TENANT_UNKNOWN", "tenant"),
    "empty tenant": ({"tenant": ""}, "FIELD_REQUIRED", "tenant"),
    "no quantity": ({"quantities": []}, "FIELD_REQUIRED", "quantities"),
    "unknown meter": ({"quantities": [("unicorns", 1)]}, "METER_UNKNOWN", "quantities[0].meter"),
    "negative units": ({"quantities": [("requests", -1)]}, "FIELD_OUT_OF_RANGE", "quantities[0].units"),
    "units above 2^53 - 1": (
        {"quantities": [("requests", UNITS_MAX + 1)]},
        "FIELD_OUT_OF_RANGE",
        "quantities[0].units",
    ),
    "meter twice": ({"quantities": [("requests", 1), ("requests", 1)]}, "FIELD_REPEATED", "quantities[1].meter"),
    "reserved id": ({"id": "r/0123"}, "FIELD_INVALID", "id"),
    "id too long": ({"id": "x" * 129}, "FIELD_TOO_LONG", "id"),
    "id without event time": ({"id": "mine", "event_time": None}, "FIELD_REQUIRED", "event_time"),
}


def record(platform: Platform, number: int, **changes: Any) -> usage_pb2.UsageRecord:
    """Make a good record, changed as told."""
    fields: dict[str, Any] = {
        "id": f"bad-input-{number}",
        "tenant": "code",
        "event_time": platform.now(),
        "quantities": [("requests", 1)],
    }
    fields |= changes
    fields["quantities"] = [usage_pb2.Quantity(meter=meter, units=units) for meter, units in fields["quantities"]]
    return usage_pb2.UsageRecord(**{name: value for name, value in fields.items() if value is not None})


async def test_bad_records_are_refused_one_by_one(platform: Platform) -> None:
    """A bad record gets its own typed result and stores nothing; the good ones beside it are recorded."""
    records = [record(platform, number, **changes) for number, (changes, _, _) in enumerate(BAD_RECORDS.values())]
    records.append(record(platform, 99))
    async with platform.channel() as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        response = await stub.RecordUsage(
            usage_pb2.RecordUsageRequest(records=records, acknowledgement=usage_pb2.ACKNOWLEDGEMENT_LEDGER), timeout=60
        )
    for number, (name, (_, reason, field)) in enumerate(BAD_RECORDS.items()):
        result = response.results[number]
        expected = (usage_pb2.RECORD_OUTCOME_INVALID, reason, f"records[{number}].{field}")
        assert expected == (result.outcome, result.reason, result.field), name
        assert result.message
    assert response.results[-1].outcome == usage_pb2.RECORD_OUTCOME_RECORDED
    stored = await platform.stored_ids("code")
    assert [key for key in stored if key.startswith("bad-input-")] == ["bad-input-99"]
    assert not any(key.startswith("r/0123") for key in stored)


async def test_a_reused_id_with_other_content_is_a_conflict(platform: Platform) -> None:
    """The same record again is a duplicate, another one under its id a conflict; neither is stored."""
    when = Timestamp()
    when.CopyFrom(platform.now())
    first = record(platform, 1000, event_time=when)
    other = record(platform, 1000, event_time=when, quantities=[("requests", 2)])
    outcomes = []
    async with platform.channel() as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        for one in (first, first, other):
            response = await stub.RecordUsage(usage_pb2.RecordUsageRequest(records=[one]), timeout=30)
            outcomes.append(response.results[0].outcome)
    assert outcomes == [
        usage_pb2.RECORD_OUTCOME_RECORDED,
        usage_pb2.RECORD_OUTCOME_DUPLICATE,
        usage_pb2.RECORD_OUTCOME_CONFLICT,
    ]
