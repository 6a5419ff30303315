# ruff: noqa: SIM300 - expected first, then actual
"""What SIGTERM leaves of a sidecar that has 10,000 records to ship, with real processes."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from platform_support import AddedSidecar, Platform
from tcp_proxy import PARTITION, Proxy
from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc
from tollkeeper.quota.v1 import quota_pb2_grpc, usage_pb2
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CATALOGUE = "tests/e2e/catalogue.yaml"
PENDING = 10_000
PER_CALL = 1_000
DRAINED_S = 30.0
"""Bound of a stop that reaches its ledger, on cores that others use too; far below the 150 s that it may take."""
RECORDED = usage_pb2.RECORD_OUTCOME_RECORDED


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Platform]:
    """Run a platform whose sidecars are told to stop."""
    platform = Platform(tmp_path_factory.mktemp("drain") / secrets.token_hex(2))
    try:
        platform.start()
        asyncio.run(platform.apply((pytestconfig.rootpath / CATALOGUE).read_text()))
        yield platform
    finally:
        platform.stop()


@contextmanager
def behind_a_line(platform: Platform, *, drain_s: str) -> Iterator[tuple[AddedSidecar, Proxy]]:
    """Run a sidecar that reaches the ledger through a line that can break."""
    port = int(platform.stack.addresses.ledger_listen.rpartition(":")[2])
    with Proxy(port) as line:
        own = {"TOLLKEEPER_LEDGER_ADDRESS": f"127.0.0.1:{line.port}", "TOLLKEEPER_DRAIN_S": drain_s}
        sidecar = AddedSidecar(platform.stack, secrets.token_hex(2), own)
        sidecar.start()
        try:
            yield sidecar, line
        finally:
            sidecar.kill()


async def record(platform: Platform, sidecar: AddedSidecar, prefix: str, count: int) -> list[str]:
    """Have so many records acknowledged by the sidecar alone; give their ids."""
    ids = [f"{prefix}-{number}" for number in range(count)]
    at = platform.now()
    async with platform.channel(sidecar.target) as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        for first in range(0, count, PER_CALL):
            records = [
                usage_pb2.UsageRecord(
                    id=name, tenant="shared", event_time=at, quantities=[usage_pb2.Quantity(meter="requests", units=1)]
                )
                for name in ids[first : first + PER_CALL]
            ]
            answer = await stub.RecordUsage(usage_pb2.RecordUsageRequest(records=records), timeout=60)
            assert {RECORDED} == {result.outcome for result in answer.results}
    return ids


async def with_pending(
    platform: Platform, sidecar: AddedSidecar, break_line: Callable[[], None]
) -> tuple[list[str], bytes]:
    """Have one record shipped, break the line, record 10,000 more that can't be; give all ids and the producer's."""
    prefix = f"drain-{secrets.token_hex(4)}"
    known = await record(platform, sidecar, f"{prefix}-known", 1)

    async def is_stored() -> bool:
        return known == await stored(platform, prefix)

    await wait_until(is_stored, "the first record")
    (sent_by,) = [one.producer_id for one in await platform.stored("shared") if one.id == known[0]]
    break_line()
    pending = await record(platform, sidecar, prefix, PENDING)
    assert known == await stored(platform, prefix)
    return known + pending, sent_by


async def stored(platform: Platform, prefix: str) -> list[str]:
    """Give the ids that the ledger has stored of one test."""
    return [name for name in await platform.stored_ids("shared") if name.startswith(prefix)]


async def producer(platform: Platform, producer_id: bytes) -> reports_pb2.ProducerStatus:
    """Give what the ledger knows of a producer."""
    async with platform.ledger() as channel:
        status = await reports_pb2_grpc.ReportServiceStub(channel).GetIngestStatus(
            reports_pb2.GetIngestStatusRequest(), timeout=60
        )
    (found,) = [one for one in status.producers if one.producer_id == producer_id]
    return found


async def ended(sidecar: AddedSidecar) -> int:
    """Wait until the process has ended; give its exit code."""

    async def is_over() -> bool:
        return sidecar.exit_code is not None

    await wait_until(is_over, "the end of the sidecar", seconds_max=180)
    assert sidecar.exit_code is not None
    return sidecar.exit_code


async def test_a_stop_ships_what_is_pending_before_it_ends(platform: Platform, report: Callable[[str], None]) -> None:
    """Told to stop with 10,000 records to ship, a sidecar ends with 0 once all are stored and it is `closed`.

    Nothing is left in its log: a start on the same volume sends nothing, and no record is there twice.
    """
    with behind_a_line(platform, drain_s="150") as (sidecar, line):
        ids, sent_by = await with_pending(platform, sidecar, lambda: line.use(PARTITION))
        prefix = ids[1].rpartition("-")[0]
        os.kill(sidecar.pid, signal.SIGTERM)
        # Until the ledger can hear of it, it is not over.
        assert sidecar.exit_code is None
        line.heal()
        healed_s = time.monotonic()
        code = await ended(sidecar)
        took_s = time.monotonic() - healed_s
        report(f"SIGTERM with {PENDING} records pending: over {took_s:.2f} s after the line healed")
        assert 0 == code
        assert took_s < DRAINED_S
        # The process is gone: this is what it had done before.
        stopped = await producer(platform, sent_by)
        assert ("closed", len(ids)) == (stopped.state, stopped.committed_seq)
        assert sorted(ids) == sorted(await stored(platform, prefix))

        sidecar.start()

        async def is_open() -> bool:
            return (await producer(platform, sent_by)).incarnation > stopped.incarnation

        # It serves before it can be told to stop; who has opened its producer can be.
        await wait_until(is_open, "the next incarnation")
        os.kill(sidecar.pid, signal.SIGTERM)
        assert 0 == await ended(sidecar)
        again = await producer(platform, sent_by)
        assert ("closed", len(ids)) == (again.state, again.committed_seq)
        assert sorted(ids) == sorted(await stored(platform, prefix))


async def test_a_stop_without_a_ledger_ends_and_the_next_start_ships(platform: Platform) -> None:
    """Where the ledger is away a stop ends at its bound, with 1; the next process on the volume ships, each once."""
    with behind_a_line(platform, drain_s="0.5") as (sidecar, line):
        ids, sent_by = await with_pending(platform, sidecar, lambda: line.cut(refuse=True))
        prefix = ids[1].rpartition("-")[0]
        os.kill(sidecar.pid, signal.SIGTERM)
        assert 1 == await ended(sidecar)
        assert ids[:1] == await stored(platform, prefix)
        assert (await producer(platform, sent_by)).state == "open"

        line.heal()
        sidecar.start()

        async def all_are_stored() -> bool:
            return len(ids) <= (await producer(platform, sent_by)).committed_seq

        await wait_until(all_are_stored, "every record", seconds_max=120)
        assert sorted(ids) == sorted(await stored(platform, prefix))
        assert len(ids) == (await producer(platform, sent_by)).committed_seq
