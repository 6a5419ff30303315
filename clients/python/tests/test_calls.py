"""What both clients send and what they make of the answers, over a Unix socket and over TCP."""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, usage_pb2
from tollkeeper_client import (
    Acknowledgement,
    AsyncClient,
    Client,
    Decision,
    Denied,
    Detail,
    InvalidRequest,
    LimitKind,
    Outcome,
    Reason,
    RecordConflict,
    SidecarError,
    UsageRecord,
    results,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import FakeSidecar  # noqa: TID252 - test folders are not packages on the path

HELD = "t"
NOON = datetime(2026, 1, 2, 12, 0, 0, 123456, tzinfo=UTC)


class Both:
    """Calls a method of the blocking or the asyncio client, as the test's parameter says."""

    def __init__(self, kind: str, address: str) -> None:
        self._kind, self._address = kind, address

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._kind == "blocking":
                with Client(self._address, timeout_s=60) as client:
                    return getattr(client, method)(*args, **kwargs)

            async def run() -> Any:
                async with AsyncClient(self._address, timeout_s=60) as client:
                    return await getattr(client, method)(*args, **kwargs)

            return asyncio.run(run())

        return call


@pytest.fixture(params=["blocking socket", "blocking tcp", "asyncio socket", "asyncio tcp"])
def client(request: pytest.FixtureRequest, sidecar: FakeSidecar) -> Iterator[Both]:
    """Give each client on each transport."""
    kind, transport = request.param.split()
    return Both(kind, sidecar.path if transport == "socket" else sidecar.address)


def test_check_sends_every_field(client: Both, sidecar: FakeSidecar) -> None:
    """Each option arrives in its field, and nothing else does."""
    decision = client.check(
        "acme", {"a": 1, "b": 2**53 - 1}, features=["f"], attributes={"k": "v"}, request_id="id",
        record_usage=True, detail=Detail.ALL, want_headers=True,
    )  # fmt: skip
    assert decision == Decision(allowed=True, reason=Reason.ALLOWED)
    assert sidecar.seen == [
        quota_pb2.CheckQuotaRequest(
            tenant="acme",
            costs=[quota_pb2.Cost(meter="a", units=1), quota_pb2.Cost(meter="b", units=2**53 - 1)],
            features=["f"],
            attributes={"k": "v"},
            request_id="id",
            detail=quota_pb2.DETAIL_ALL,
            mode=quota_pb2.CHECK_MODE_CONSUME,
            record_usage=True,
            want_headers=True,
        )
    ]


def test_ids_are_made_where_a_repeat_needs_them(client: Both, sidecar: FakeSidecar) -> None:
    """A reservation and a recorded check always have an id, each its own; a plain check has none."""
    client.check("acme", {"a": 1})
    client.check("acme", {"a": 1}, record_usage=True)
    client.reserve("acme", {"a": 1})
    client.reserve("acme", {"a": 1}, request_id="mine")
    ids = [request.request_id for request in sidecar.seen]
    assert [ids[0], ids[3]] == ["", "mine"]
    assert len({ids[1], ids[2]}) == 2
    assert {"7"} == {number[14] for number in ids[1:3]}


def test_peek_takes_nothing(client: Both, sidecar: FakeSidecar) -> None:
    """A look is sent as a look."""
    client.check("acme", {"a": 1}, peek=True)
    assert sidecar.seen[0].mode == quota_pb2.CHECK_MODE_PEEK


def test_give_back_is_sent_once_with_an_id(client: Both, sidecar: FakeSidecar) -> None:
    """What is given back names units, attributes and an id, so that a repeat gives nothing back twice."""
    client.give_back("acme", {"a": 2}, attributes={"user": "u"})
    client.give_back("acme", {"a": 2}, request_id="mine")
    made, given = sidecar.seen
    assert (made.mode, made.costs[0].units, dict(made.attributes)) == (quota_pb2.CHECK_MODE_GIVE_BACK, 2, {"user": "u"})
    assert made.request_id
    assert given.request_id == "mine"


def test_denial_is_an_answer(client: Both, sidecar: FakeSidecar) -> None:
    """A denial comes back with limit, remaining and times; absent ones are absent, not zero."""
    denied = decision_pb2.Decision(reason=decision_pb2.DECISION_REASON_RATE_LIMITED, remaining=0)
    denied.retry_after.FromMilliseconds(1500)
    denied.binding.name, denied.binding.kind = "per-minute", decision_pb2.LIMIT_KIND_TOKEN_BUCKET
    denied.binding.key["user"] = "u"
    denied.binding.as_of.FromDatetime(NOON)
    denied.headers.add(name="RateLimit", value="x")
    sidecar.answers["CheckQuota"] = quota_pb2.CheckQuotaResponse(decision=denied)
    decision = client.check("acme", {"a": 1})
    assert (decision.allowed, decision.reason, decision.remaining) == (False, Reason.RATE_LIMITED, 0)
    assert (decision.retry_after, decision.reset_after) == (timedelta(seconds=1.5), None)
    assert (decision.binding.name, decision.binding.kind) == ("per-minute", LimitKind.TOKEN_BUCKET)
    assert (dict(decision.binding.key), decision.binding.as_of, decision.binding.window_end) == (
        {"user": "u"},
        NOON,
        None,
    )
    assert decision.headers == (("RateLimit", "x"),)
    with pytest.raises(Denied) as caught:
        client.check("acme", {"a": 1}, raise_on_denial=True)
    assert caught.value.decision == decision
    with pytest.raises(Denied):
        client.reserve("acme", {"a": 1}, raise_on_denial=True)


def test_results_have_no_truth(sidecar: FakeSidecar) -> None:
    """`if client.check(...)` would admit everybody, so it is an error."""
    with Client(sidecar.path, timeout_s=60) as client, pytest.raises(TypeError, match="allowed"):
        bool(client.check("acme", {"a": 1}))


def test_unknown_words_are_no_crash(client: Both, sidecar: FakeSidecar) -> None:
    """A reason of a newer sidecar is unrecognised, and `allowed` holds."""
    sidecar.answers["CheckQuota"] = quota_pb2.CheckQuotaResponse(
        decision=decision_pb2.Decision(allowed=True, reason=99)  # type: ignore[arg-type]
    )
    assert client.check("acme") == Decision(allowed=True, reason=Reason.UNRECOGNISED)


@pytest.mark.parametrize(
    ("words", "names", "prefix"),
    [
        (results.Reason, decision_pb2.DecisionReason, "DECISION_REASON_"),
        (results.LimitKind, decision_pb2.LimitKind, "LIMIT_KIND_"),
        (results.Enforcement, decision_pb2.Enforcement, "ENFORCEMENT_"),
        (results.Outcome, usage_pb2.RecordOutcome, "RECORD_OUTCOME_"),
        (results.Detail, quota_pb2.Detail, "DETAIL_"),
        (results.Acknowledgement, usage_pb2.Acknowledgement, "ACKNOWLEDGEMENT_"),
    ],
)
def test_words_are_those_of_the_contract(words: Any, names: Any, prefix: str) -> None:
    """Every value of the contract has its word here."""
    contract = {name.removeprefix(prefix) for name in names.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 - not a mapping
    assert contract == set(words.__members__) - {"UNRECOGNISED"}


def test_settle_and_release(client: Both, sidecar: FakeSidecar) -> None:
    """A settlement carries token, quantities, attributes and time, and answers what it did."""
    sidecar.answers["SettleReservation"] = quota_pb2.SettleReservationResponse(
        refunded=[usage_pb2.Quantity(meter="a", units=3)],
        excess=[usage_pb2.Quantity(meter="b", units=4)],
        record_id="r/1",
        expired=True,
        repeated_call=True,
    )
    settled = client.settle("t", {"a": 5}, attributes={"k": "v"}, event_time=NOON)
    assert (dict(settled.refunded), dict(settled.excess)) == ({"a": 3}, {"b": 4})
    assert (settled.record_id, settled.expired, settled.repeated_call) == ("r/1", True, True)
    assert sidecar.seen[0].event_time.ToDatetime(tzinfo=UTC) == NOON
    assert dict(sidecar.seen[0].attributes) == {"k": "v"}
    assert client.release(HELD).repeated_call is False
    assert sidecar.seen[1] == quota_pb2.ReleaseReservationRequest(token=HELD)


def test_reserve_sends_its_ttl(client: Both, sidecar: FakeSidecar) -> None:
    """The reservation answers token and expiry."""
    hold = client.reserve("acme", {"a": 1}, ttl=timedelta(minutes=5), request_id="x")
    assert (hold.allowed, hold.token) == (True, "token of x")
    assert hold.reserved.expires_at == datetime.fromtimestamp(1_700_000_000, UTC)
    assert sidecar.seen[0].mode == quota_pb2.CHECK_MODE_RESERVE
    assert sidecar.seen[0].reservation_ttl.seconds == 300


def test_records_have_results(client: Both, sidecar: FakeSidecar) -> None:
    """Each record has its result, in order."""
    records = [UsageRecord(tenant="acme", quantities={"a": n}, id=str(n), event_time=NOON) for n in (1, 2)]
    answered = client.record_many(records, acknowledgement=Acknowledgement.LEDGER)
    assert [(result.outcome, result.id) for result in answered] == [(Outcome.RECORDED, "1"), (Outcome.RECORDED, "2")]
    assert sidecar.seen[0].acknowledgement == usage_pb2.ACKNOWLEDGEMENT_LEDGER
    client.record("acme", {"a": 1})
    assert (sidecar.seen[1].records[0].id, sidecar.seen[1].records[0].HasField("event_time")) == ("", False)


def test_single_record_raises(client: Both, sidecar: FakeSidecar) -> None:
    """One record that was not recorded can't be overlooked."""
    outcome = usage_pb2.RecordResult(outcome=usage_pb2.RECORD_OUTCOME_INVALID, reason="METER_UNKNOWN", field="f")
    sidecar.answers["RecordUsage"] = usage_pb2.RecordUsageResponse(results=[outcome])
    with pytest.raises(InvalidRequest) as caught:
        client.record("acme", {"a": 1})
    assert (caught.value.reason, caught.value.field) == ("METER_UNKNOWN", "f")
    outcome.outcome = usage_pb2.RECORD_OUTCOME_CONFLICT
    sidecar.answers["RecordUsage"] = usage_pb2.RecordUsageResponse(results=[outcome])
    with pytest.raises(RecordConflict):
        client.record("acme", {"a": 1}, id="x", event_time=NOON)
    sidecar.answers["RecordUsage"] = usage_pb2.RecordUsageResponse()
    with pytest.raises(SidecarError):
        client.record("acme", {"a": 1})


def test_quota_lists_limits(client: Both, sidecar: FakeSidecar) -> None:
    """Plan, features and limits come back as frozen values."""
    answer = quota_pb2.GetQuotaResponse(tenant="acme", plan="pro", features=["x"])
    answer.limits.add(name="daily", amount=-1, used=2**53 - 1)
    sidecar.answers["GetQuota"] = answer
    quota = client.quota("acme", attributes={"k": "v"}, meter="a")
    assert (quota.plan, quota.features, quota.as_of) == ("pro", ("x",), None)
    assert [(limit.name, limit.amount, limit.used) for limit in quota.limits] == [("daily", -1, 2**53 - 1)]
    assert sidecar.seen[0].meter == "a"


@pytest.mark.parametrize(
    ("method", "arguments", "options"),
    [
        ("check", ("acme", {"a": 2**63}), {}),
        ("check", ("acme", {"a": -(2**63) - 1}), {}),
        ("check", ("\ud800", {"a": 1}), {}),
        ("reserve", ("acme", {"a": 2**64}), {}),
        ("settle", ("t", {"a": 2**63}), {}),
        ("settle", ("t", {"a": 1}), {"event_time": datetime(2026, 1, 1)}),  # noqa: DTZ001 - that is the point
        ("record", ("acme", {"a": 2**63}), {}),
    ],
)
def test_what_cannot_be_sent_is_refused_here(
    client: Both, sidecar: FakeSidecar, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """A value that does not fit the wire raises the same error as a bad value that does; nothing is sent."""
    with pytest.raises(InvalidRequest) as caught:
        getattr(client, method)(*arguments, **options)
    assert caught.value.reason == "FIELD_INVALID"
    assert sidecar.seen == []


def test_bounds_are_the_sidecars(client: Both, sidecar: FakeSidecar) -> None:
    """What fits the wire goes to the sidecar, which knows the rules: the client keeps no second copy of them."""
    client.check("", {"": -1, "b": 2**53}, attributes={"": "x" * 10_000})
    assert [cost.units for cost in sidecar.seen[0].costs] == [-1, 2**53]


def test_both_clients_are_the_same() -> None:
    """Signatures and docstrings of both clients come from one place."""
    methods = ["check", "settle", "release", "record", "record_many", "quota", "reserve"]
    for name in methods:
        blocking, awaiting = getattr(Client, name), getattr(AsyncClient, name)
        assert inspect.signature(blocking) == inspect.signature(awaiting), name
        assert blocking.__doc__ == awaiting.__doc__, name
        assert blocking.__doc__, name
