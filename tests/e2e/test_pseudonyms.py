"""Hidden attributes through real processes: counted like plain ones, the same by every way in, plain nowhere."""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import redis
from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc
from tollkeeper.quota.v1 import quota_pb2, quota_pb2_grpc, usage_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from google.protobuf.timestamp_pb2 import Timestamp
    from operator_support import Run
    from platform_support import Platform

TENANT = "private"
RECORDED = usage_pb2.RECORD_OUTCOME_RECORDED
DUPLICATE = usage_pb2.RECORD_OUTCOME_DUPLICATE
CONFLICT = usage_pb2.RECORD_OUTCOME_CONFLICT
USERS = 7
CALLS = 20
_CHUNK_BYTES = 1 << 20


def used(name: str, at: Timestamp, meter: str, **attributes: str) -> usage_pb2.UsageRecord:
    """Give a record of one unit."""
    quantities = [usage_pb2.Quantity(meter=meter, units=1)]
    return usage_pb2.UsageRecord(id=name, tenant=TENANT, event_time=at, quantities=quantities, attributes=attributes)


def sent(target: str, records: Iterable[usage_pb2.UsageRecord]) -> list[int]:
    """Record in one call that waits for the ledger; give the outcome of each."""
    request = usage_pb2.RecordUsageRequest(records=records, acknowledgement=usage_pb2.ACKNOWLEDGEMENT_LEDGER)
    with grpc.insecure_channel(target, options=[("grpc.default_authority", "localhost")]) as channel:
        answer = quota_pb2_grpc.QuotaServiceStub(channel).RecordUsage(request, timeout=120)
    return [result.outcome for result in answer.results]


def posted(platform: Platform, record: usage_pb2.UsageRecord) -> str:
    """Send a record to the ledger over HTTP; give its outcome."""
    body = {
        "id": record.id,
        "tenant": record.tenant,
        "event_time": record.event_time.ToJsonString(),
        "quantities": [{"meter": one.meter, "units": one.units} for one in record.quantities],
        "attributes": dict(record.attributes),
    }
    answer = httpx.post(f"http://{platform.stack.addresses.ledger_http}/v1/usage", json=body, timeout=60)
    outcome: str = answer.json()["outcome"]
    return outcome


def files_with(folder: Path, needles: Mapping[str, bytes]) -> dict[str, set[str]]:
    """Give, by name of each needle, the files below a folder that hold it."""
    found: dict[str, set[str]] = {name: set() for name in needles}
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                rest = b""
                while chunk := file.read(_CHUNK_BYTES):
                    for name, needle in needles.items():
                        if needle in rest + chunk:
                            found[name].add(str(path.relative_to(folder)))
                    rest = chunk[-64:]
        except FileNotFoundError:
            # A server's own, gone meanwhile.
            continue
    return found


def everything_in_redis(url: str) -> bytes:
    """Give names and contents of all keys."""
    with redis.Redis.from_url(url) as client:
        keys: Any = client.keys("*")
        return b"\n".join(key + b"=" + (client.dump(key) or b"") for key in keys)


async def test_hidden_users_are_counted_billed_and_forgotten(
    platform: Platform, more_sidecars: list[str], run: Run
) -> None:
    """The bill of pseudonyms is that of plain values; the same record by another way is a duplicate; no byte says who.

    After the key is destroyed by the command line everything that is stored verifies, repeats are duplicates still, and
    whoever comes again has another name.
    """
    mark = uuid.uuid4().hex
    people = [f"user-{number}-{mark}@example.com" for number in range(USERS)]
    at = platform.now()
    hidden = [
        used(f"hidden-{mark}-{turn}", at, "private-users", person=people[turn % USERS], site="north")
        for turn in range(CALLS)
    ]
    calls = [used(f"calls-{mark}-{turn}", at, "private-calls", person=people[turn % 2]) for turn in range(CALLS)]
    opened = [
        used(f"open-{mark}-{turn}", at, "open-users", user=f"number-{turn % USERS}", site="north")
        for turn in range(CALLS)
    ]
    assert sent(platform.target, hidden[: CALLS // 2]) == [RECORDED] * (CALLS // 2)
    assert sent(more_sidecars[0], hidden[CALLS // 2 :] + calls) == [RECORDED] * (CALLS + CALLS // 2)
    assert sent(platform.target, opened) == [RECORDED] * CALLS
    # The same records by the other ways in.
    assert sent(more_sidecars[0], hidden[: CALLS // 2]) == [DUPLICATE] * (CALLS // 2)
    assert posted(platform, hidden[0]) == "RECORD_OUTCOME_DUPLICATE"
    assert (await platform.billable(TENANT))["private-users"] == USERS
    assert await lines(platform) == {"private-users": [USERS], "open-users": [USERS], "private-calls": [10, 10]}
    limited = quota_pb2.CheckQuotaRequest(
        tenant=TENANT,
        costs=[quota_pb2.Cost(meter="private-calls", units=1)],
        attributes={"person": people[0]},
        request_id=f"check-{mark}",
        record_usage=True,
    )
    async with platform.channel() as channel:
        assert (await quota_pb2_grpc.QuotaServiceStub(channel).CheckQuota(limited, timeout=60)).decision.allowed
    stored = await platform.until_stored(TENANT, 3 * CALLS + 1)
    names = {record.attributes["person"] for record in stored if "person" in record.attributes}
    assert len(names) == USERS
    assert all(re.fullmatch(r"p1\.[A-Za-z0-9_-]{22}", name) for name in names)
    found = files_with(platform.stack.directory, {"plain": mark.encode() + b"@", "name": min(names).encode()})
    assert not found["plain"]
    assert any("log" in path for path in found["name"]), found
    assert mark.encode() + b"@" not in everything_in_redis(platform.stack.environment()["TOLLKEEPER_REDIS_URL"])
    code, out, _ = run("tenant", "forget-pseudonyms", TENANT, "--note", "they asked us to", "--yes")
    version = re.search(r"\bp([0-9]+)\b", out)
    assert (code, version is not None) == (0, True), out
    give_up_s = time.monotonic() + 120
    for target in (platform.target, more_sidecars[0]):
        while True:
            new = f"new-{uuid.uuid4()}"
            assert sent(target, [used(new, at, "private-users", person=people[0], site="south")]) == [RECORDED]
            (name,) = [one.attributes["person"] for one in await platform.stored(TENANT) if one.id == new]
            if version is not None and name.startswith(f"p{version[1]}."):
                break
            assert name in names
            assert time.monotonic() < give_up_s, "the sidecar never heard of the new key"
    other = used(hidden[0].id, at, "private-users", person=people[0], site="south")
    assert sent(more_sidecars[1], [hidden[0], hidden[1], other]) == [DUPLICATE, DUPLICATE, CONFLICT]
    assert posted(platform, hidden[0]) == "RECORD_OUTCOME_DUPLICATE"
    assert await platform.findings() == []
    code, out, _ = run("audit", "verify")
    assert code == 0, out


async def lines(platform: Platform) -> dict[str, list[int]]:
    """Give the quantities of the tenant's coming invoice by meter."""
    found: dict[str, list[int]] = {}
    async with platform.ledger() as channel:
        preview = await billing_pb2_grpc.BillingServiceStub(channel).PreviewInvoice(
            billing_pb2.PreviewInvoiceRequest(tenant=TENANT), timeout=60
        )
    for line in preview.invoice.lines:
        if line.meter:
            found.setdefault(line.meter, []).append(line.quantity)
    return found
