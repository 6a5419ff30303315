# ruff: noqa: SIM300 - expected first, then actual
"""Appends that meet each other, a killed database connection, or a database that stays away."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tollkeeper_ledger.domain.errors import LedgerError
from tollkeeper_ledger.services.usage import UsageIngest
from tollkeeper_ledger.store.usage_attempts import ATTEMPTS_MAX
from usage_bench import superuser
from usage_faults import held, waiting

if TYPE_CHECKING:
    from usage_bench import Bench

pytestmark = pytest.mark.asyncio


async def test_two_appends_of_one_producer_store_once(bench: Bench) -> None:
    """The same batch at the same time: one stores it, the other is told that it is there."""
    log = await bench.new_log()
    log.record(*[bench.use(f"race-{n}") for n in range(200)])
    outcomes = await asyncio.gather(*(bench.ingest.append(log.cut()) for _ in range(4)))
    assert [0, 0, 0, 200] == sorted(outcome.stored for outcome in outcomes)
    assert [0, 200, 200, 200] == sorted(outcome.trimmed for outcome in outcomes)
    assert 200 == len(await bench.stored(log))


async def test_producers_with_the_same_ids_wait_for_each_other(bench: Bench) -> None:
    """The same ids in opposite order at the same time: each id once, the rest duplicates, nobody fails."""
    logs = [await bench.new_log() for _ in range(4)]
    uses = [bench.use(f"same-{n:03}", tenant=("acme", "globex")[n % 2]) for n in range(300)]
    for number, log in enumerate(logs):
        log.record(*(uses if number % 2 else reversed(uses)))
    outcomes = await asyncio.gather(*(bench.ingest.append(log.cut()) for log in logs))
    assert 300 == sum(outcome.stored for outcome in outcomes)
    assert 900 == sum(outcome.duplicates for outcome in outcomes)


@pytest.mark.parametrize(
    "lock",
    [
        "LOCK usage_id IN ACCESS EXCLUSIVE MODE",
        "LOCK usage_record IN ACCESS EXCLUSIVE MODE",
        "LOCK usage_rollup_minute IN ACCESS EXCLUSIVE MODE",
        "LOCK usage_rollup_quarter IN ACCESS EXCLUSIVE MODE",
        "SELECT FROM usage_chain_head FOR UPDATE",
        "LOCK usage_chain IN ACCESS EXCLUSIVE MODE",
    ],
)
async def test_a_connection_killed_inside_an_append_stores_once(bench: Bench, lock: str) -> None:
    """Killed at any step, the transaction leaves nothing; the next attempt commits all of it, once."""
    first = await bench.new_log()
    first.record(bench.use(f"before {lock}"))
    await bench.ingest.append(first.cut())
    log = await bench.new_log()
    log.record(*[bench.use(f"{lock}-{n}") for n in range(50)])
    async with superuser(bench.url) as conn:
        async with held(bench, lock):
            append = asyncio.create_task(bench.ingest.append(log.cut()))
            (killed,) = await waiting(bench, 1)
            await conn.execute("SELECT pg_terminate_backend($1, 10000)", killed)
            # The next attempt comes on another connection and waits at the same place.
            assert [killed] != await waiting(bench, 1)
        outcome = await append
    assert (50, 0, 0) == (outcome.stored, outcome.duplicates, outcome.trimmed)
    assert 50 == len(await bench.stored(log))
    assert 50 == len(await bench.rows("SELECT FROM usage_id WHERE id LIKE $1 || '-%'", lock))


async def test_a_cancelled_append_leaves_nothing_or_all(bench: Bench) -> None:
    """A producer that hangs up in the middle sends again and finds its records stored once."""
    log = await bench.new_log()
    log.record(*[bench.use(f"hang-{n}") for n in range(50)])
    async with held(bench, "LOCK usage_record IN ACCESS EXCLUSIVE MODE"):
        append = asyncio.create_task(bench.ingest.append(log.cut()))
        await waiting(bench, 1)
        append.cancel()
        with pytest.raises(asyncio.CancelledError):
            await append
    await bench.ingest.append(log.cut())
    assert 50 == len(await bench.stored(log))


async def test_a_database_that_stays_away_is_said_so() -> None:
    """After so many attempts the producer is told to come back, not that something is wrong with its batch."""
    asked = []

    class Gone:
        def acquire(self) -> Any:
            asked.append(1)
            raise asyncpg.ConnectionDoesNotExistError

    gone: Any = Gone()
    with pytest.raises(LedgerError) as caught:
        await UsageIngest(gone, embedded=True).open_producer(uuid.uuid4(), incarnation=1, holder=b"x", version=1)
    assert ("LEDGER_UNREACHABLE", True) == (caught.value.reason, caught.value.retry_after_ms is not None)
    assert len(asked) == ATTEMPTS_MAX
