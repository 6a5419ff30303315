"""Ways in of the ledger itself are producers."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from http_support import METERED
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc
from tollkeeper_ledger.app import running
from tollkeeper_ledger.domain.errors import LedgerError, OverloadedError
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.usage_columns import Use
from tollkeeper_ledger.rpc.registry import usage_input
from tollkeeper_ledger.services import usage_input as usage_input_service
from tollkeeper_ledger.services.limits import open_limits
from tollkeeper_ledger.services.usage import UsageIngest
from tollkeeper_ledger.services.usage_input import Fate, UsageInput, input_producer_id
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tollkeeper_ledger.app import Running
    from tollkeeper_ledger.config import Settings
    from tollkeeper_ledger.domain.usage import AppendOutcome
    from tollkeeper_ledger.services.usage import Answer
    from tollkeeper_ledger.store.pool import Connection

PRODUCER = "SELECT state, watermark, committed_seq FROM producer WHERE producer_id = $1"
RECEIVED = "SELECT max(received_at) FROM usage_record"


def use(**changed: Any) -> Use:
    """Give a record of now."""
    fields = {
        "tenant": "acme",
        "id": f"i-{secrets.token_hex(8)}",
        "event_us": to_us(datetime.now(UTC)),
        "quantities": (("requests", 1),),
        "attributes": (("path", "/a"), ("who", "ann")),
    }
    return Use(**{**fields, **changed})


async def apply(ledger: Running, yaml: str = METERED) -> None:
    """Declare tenants and meters."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
        request = admin_pb2.ApplyCatalogueRequest(request_id=secrets.token_hex(8), yaml=yaml)
        await admin_pb2_grpc.AdminServiceStub(channel).ApplyCatalogue(request)


async def test_a_way_in_is_a_closed_producer_with_a_true_watermark(ledger_settings: Settings) -> None:
    """No period waits for it; its watermark is when its last commit began, and no record was received later."""
    async with running(ledger_settings) as ledger:
        await apply(ledger)
        limits = await open_limits(ledger.resources)
        usage = usage_input(ledger.resources, limits, "test")
        producer_id = input_producer_id(limits.installation.installation_id, "test")
        before_us = to_us(datetime.now(UTC))
        calls = [usage.record([use(), use(tenant="nobody"), use()]) for _ in range(20)]
        for results in await asyncio.gather(*calls):
            assert [one.fate for one in results] == [Fate.RECORDED, Fate.INVALID, Fate.RECORDED]
        async with ledger.resources.pools.ingest.acquire() as conn:
            row = await conn.fetchrow(PRODUCER, producer_id)
            received = await conn.fetchval(RECEIVED)
        assert (row["state"], row["committed_seq"]) == ("closed", 40)
        assert before_us <= to_us(received) <= to_us(row["watermark"])


async def test_who_hides_by_meters_of_a_moment_ago_gets_the_key(ledger_settings: Settings) -> None:
    """A call that began before a catalogue hid nothing any more has the keys that it needs."""
    async with running(ledger_settings) as ledger:
        await apply(ledger)
        tenants = (await open_limits(ledger.resources)).tenants
        views = await tenants.get({"acme"})
        assert tenants.hides
        before = await tenants.pseudonym_keys(views.values())
        try:
            await apply(ledger, METERED.replace("pseudonymise: [who]", "pseudonymise: []"))
            await tenants.catch_up()
            assert not tenants.hides
            assert await tenants.pseudonym_keys(views.values()) == before
        finally:
            await apply(ledger)
    assert set(before) == {"acme"}


class Interrupted(UsageIngest):
    """An ingest whose commits are broken off, the first ones."""

    left = 3

    async def attempted(self, work: Callable[[Connection], Awaitable[Answer]]) -> Answer:
        """Break off, or do the work."""
        self.left -= 1
        if self.left >= 0:
            raise asyncio.CancelledError
        return await super().attempted(work)


async def test_who_waits_for_a_commit_that_is_broken_off_is_told(
    ledger_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of it, and each that waits behind it, hears LEDGER_UNREACHABLE; calls after it are committed."""
    monkeypatch.setattr(usage_input_service, "COMMIT_RECORDS_MAX", 2)
    async with running(ledger_settings) as ledger:
        await apply(ledger)
        resources = ledger.resources
        limits = await open_limits(resources)
        ingest = Interrupted(resources.pools.ingest, embedded=True)
        usage = UsageInput(ingest, limits.tenants, resources.clock, producer_id=uuid.uuid4())
        for _ in range(Interrupted.left):
            calls = [usage.record([use()]) for _ in range(5)]
            async with asyncio.timeout(60):
                told = await asyncio.gather(*calls, return_exceptions=True)
            reasons = [(one.reason, one.retry_after_ms) for one in told if isinstance(one, LedgerError)]
            assert reasons == [("LEDGER_UNREACHABLE", 1_000)] * 5
            assert usage.waiting_of("acme") == 0
        (result,) = await usage.record([use()])
        assert Fate.RECORDED is result.fate


class Gated(UsageIngest):
    """An ingest whose commits wait for a gate, and which notes whose records each has."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.gate = asyncio.Event()
        self.commits: list[list[str]] = []

    async def append_input(self, conn: Connection, producer_id: uuid.UUID, uses: Sequence[Use]) -> AppendOutcome:
        """Wait for the gate, and commit."""
        self.commits.append([use.tenant for use in uses])
        await self.gate.wait()
        return await super().append_input(conn, producer_id, uses)


async def test_one_tenant_never_takes_all_the_room_or_all_the_turns(
    ledger_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant that sends more than can be committed is refused at half the room; another finds room and is next.

    So does a call for both: the noisy one's part of it waits for none of its own calls.
    """
    monkeypatch.setattr(usage_input_service, "WAITING_RECORDS_MAX", 400)
    monkeypatch.setattr(usage_input_service, "COMMIT_RECORDS_MAX", 40)
    async with running(ledger_settings) as ledger:
        await apply(ledger)
        resources = ledger.resources
        limits = await open_limits(resources)
        ingest = Gated(resources.pools.ingest, embedded=True)
        usage = UsageInput(ingest, limits.tenants, resources.clock, producer_id=uuid.uuid4())
        noisy = [asyncio.create_task(usage.record([use() for _ in range(10)])) for _ in range(100)]
        await wait_until(lambda: _count(noisy, done=80))
        quiet = [asyncio.create_task(usage.record([use(tenant="other")])) for _ in range(3)]
        both = [use(tenant="other"), use(tenant="nobody"), use(), use(tenant="other")]
        mixed = asyncio.create_task(usage.record(both))
        await wait_until(lambda: _waits(usage, "other", 5))
        await wait_until(lambda: _has_begun(ingest))
        ingest.gate.set()
        for results in await asyncio.gather(*quiet):
            assert [one.fate for one in results] == [Fate.RECORDED]
        assert [one.fate for one in await mixed] == [Fate.RECORDED, Fate.INVALID, Fate.RECORDED, Fate.RECORDED]
        told = await asyncio.gather(*noisy, return_exceptions=True)
    refused = [one for one in told if isinstance(one, OverloadedError)]
    assert (80, {"LEDGER_FULL"}) == (len(refused), {one.reason for one in refused})
    assert sum(not isinstance(one, BaseException) for one in told) == 20
    # What is under way has the noisy one's alone; in the next one tenants take turns, a call each, and parts theirs.
    assert dict(Counter(ingest.commits[1])) == {"acme": 31, "other": 5}


async def test_who_has_nothing_waiting_finds_room_beside_any_that_flood(
    ledger_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares may be smaller than a call by now: whoever has none waiting has room for one all the same, up to a bound.

    Calls for several tenants have room of their own, whatever each of these tenants has waiting.
    """
    monkeypatch.setattr(usage_input_service, "WAITING_RECORDS_MAX", 40)
    monkeypatch.setattr(usage_input_service, "FIRST_RECORDS_MAX", 40)
    monkeypatch.setattr(usage_input_service, "SEVERAL_RECORDS_MAX", 8)
    names = [f"flood-{number}" for number in range(21)]
    declared = "".join(f"{{id: {name}, name: Flood, plan: free}}, " for name in names)
    async with running(ledger_settings) as ledger:
        await apply(ledger, METERED.replace("tenants: [", f"tenants: [{declared}"))
        resources = ledger.resources
        limits = await open_limits(resources)
        ingest = Gated(resources.pools.ingest, embedded=True)
        usage = UsageInput(ingest, limits.tenants, resources.clock, producer_id=uuid.uuid4())

        def call(*tenants: str) -> asyncio.Task[Any]:
            return asyncio.create_task(usage.record([use(tenant=one) for one in tenants for _ in range(4)]))

        flood = []
        for name in names[:19]:
            flood.append(call(name))
            await wait_until(partial(_waits, usage, name, 4))
            with pytest.raises(OverloadedError):
                await usage.record([use(tenant=name) for _ in range(40)])
        with pytest.raises(OverloadedError):
            await call(names[0])
        quiet = call(names[19])
        await wait_until(lambda: _waits(usage, names[19], 4))
        with pytest.raises(OverloadedError):
            await call(names[20])
        mixed = call(names[0], names[20])
        await wait_until(lambda: _waits(usage, names[0], 8))
        with pytest.raises(OverloadedError):
            await call(names[0], names[20])
        ingest.gate.set()
        for results in await asyncio.gather(*flood, quiet, mixed):
            assert {one.fate for one in results} == {Fate.RECORDED}
        assert {usage.waiting_of(name) for name in names} == {0}
        (result, *_) = await call(names[0])
        assert Fate.RECORDED is result.fate


async def _count(tasks: Sequence[asyncio.Task[Any]], *, done: int) -> bool:
    return done <= sum(task.done() for task in tasks)


async def _has_begun(ingest: Gated) -> bool:
    return bool(ingest.commits)


async def _waits(usage: UsageInput, tenant: str, records: int) -> bool:
    return records == usage.waiting_of(tenant)
