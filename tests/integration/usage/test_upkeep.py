# ruff: noqa: SIM300 - expected first, then actual
"""What is done by the clock, on a real Postgres: months ahead, expired ids, one runner of several."""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import asyncpg
import pytest
import structlog
from tollkeeper_ledger.domain.metric_series import Reading
from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.usage import DAY_US, FLAG_SYSTEM_ID, LATENESS_MAX_US
from tollkeeper_ledger.jobs.runner import running_jobs
from tollkeeper_ledger.jobs.upkeep import MONTHS_AHEAD, Upkeep
from tollkeeper_ledger.store.clock import set_clock
from tollkeeper_ledger.store.metric_series import keep_readings
from tollkeeper_ledger.store.pool import open_pool
from usage_bench import open_bench, superuser
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from usage_bench import Bench

pytestmark = pytest.mark.asyncio
LOG = structlog.get_logger()


async def move(bench: Bench, to_us: int) -> None:
    """Move ledger time on; it stands still there."""
    async with bench.pool.acquire() as conn:
        await set_clock(conn, now=from_us(to_us), speed_milli=0)


async def ids(bench: Bench) -> set[str]:
    """Give the ids that are kept."""
    return {row["id"] for row in await bench.rows("SELECT id FROM usage_id")}


async def test_ids_expire_when_nobody_can_send_them_again(new_database: Callable[[], str]) -> None:
    """An id is there for 49 days from its commit, then goes in small batches; its record stays and can't come again."""
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench:
        upkeep = Upkeep(bench.pool, LOG, rows_at_once=7)
        old, young = await bench.new_log(), await bench.new_log()
        old.record(*[bench.use(f"old-{at}") for at in range(30)])
        await bench.ingest.append(old.cut())
        now_us = bench.now_us + 2 * DAY_US
        await move(bench, now_us)
        young.record(*[bench.use(f"young-{at}", event_us=now_us, received_us=now_us) for at in range(30)])
        await bench.ingest.append(young.cut())
        await move(bench, bench.now_us + 49 * DAY_US - 3_600_000_000)
        assert 0 == await upkeep.expire_ids()
        await move(bench, bench.now_us + 50 * DAY_US)
        done = await asyncio.gather(upkeep.expire_ids(), upkeep.expire_ids())
        assert 30 == sum(done)
        assert {f"young-{at}" for at in range(30)} == await ids(bench)
        assert 60 == len(await bench.rows("SELECT FROM usage_record"))
        again = await bench.new_log()
        again.record(bench.use("old-1"))
        outcome = await bench.ingest.append(again.cut())
        assert (0, 1) == (outcome.stored, outcome.quarantined)


async def test_outcomes_that_no_home_came_for_are_forgotten(new_database: Callable[[], str]) -> None:
    """An outcome is kept for 42 days from its commit, then goes in small batches; the record that tells it stays."""
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench:
        upkeep = Upkeep(bench.pool, LOG, rows_at_once=7)
        lost = secrets.token_bytes(16)

        async def end(count: int, now_us: int) -> set[bytes]:
            reservations = [secrets.token_bytes(16) for _ in range(count)]
            log = await bench.new_log()
            more = {"flags": FLAG_SYSTEM_ID, "home": lost, "event_us": now_us, "received_us": now_us}
            log.record(*[bench.use(f"r/{one.hex()}", **more) for one in reservations])
            await bench.ingest.append(log.cut())
            return set(reservations)

        old = await end(30, bench.now_us)
        await move(bench, bench.now_us + 2 * DAY_US)
        young = await end(5, bench.now_us + 2 * DAY_US)
        await move(bench, bench.now_us + 42 * DAY_US - 3_600_000_000)
        assert 0 == await upkeep.expire_settlements()
        await move(bench, bench.now_us + 43 * DAY_US)
        assert 30 == sum(await asyncio.gather(upkeep.expire_settlements(), upkeep.expire_settlements()))
        kept = {row["reservation_id"] for row in await bench.rows("SELECT reservation_id FROM settlement")}
        assert young == kept
        records = {row["id"] for row in await bench.rows("SELECT id FROM usage_record")}
        assert {f"r/{one.hex()}" for one in old | young} == records


async def test_last_readings_are_kept_for_twice_the_longest_lateness(new_database: Callable[[], str]) -> None:
    """A series that nobody has sent for 70 days is forgotten: what it counts from is too old to be new then."""
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench:
        upkeep = Upkeep(bench.pool, LOG)
        old, young = (Reading(name * 32, 1, 2, Decimal(3), Decimal(1)) for name in (b"o", b"y"))
        async with bench.pool.acquire() as conn:
            await keep_readings(conn, [old], now=from_us(bench.now_us))
            await keep_readings(conn, [young], now=from_us(bench.now_us + DAY_US))
        await move(bench, bench.now_us + 2 * LATENESS_MAX_US + DAY_US // 2)
        assert 1 == await upkeep.expire_readings()
        assert [young.series] == [row["series"] for row in await bench.rows("SELECT series FROM metric_series")]


async def test_answers_and_messages_are_kept_so_long(new_database: Callable[[], str]) -> None:
    """Answers go after 35 days, messages after 90 where nobody waits for them; all in small batches, by several."""
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench, superuser(url) as conn:
        await conn.execute("SET search_path = tollkeeper")
        await conn.execute(
            "INSERT INTO answered_request SELECT 'rpc', name || at, '', '', clock_timestamp() - age::interval"
            " FROM (VALUES ('old-', '35 days 1 hour'), ('young-', '34 days 23 hours')) AS kept (name, age),"
            " generate_series(1, 30) AS at"
        )
        await conn.execute("INSERT INTO webhook (webhook_id, url, secrets) VALUES (gen_random_uuid(), 'x', '{s}')")
        await conn.execute(
            "WITH told AS (INSERT INTO alert SELECT tenant_id, gen_random_uuid(), 'spend', 'EUR', at::text, '1', '[]',"
            " now(), now(), 1, 1, now()"
            " FROM (SELECT tenant_id FROM tenant LIMIT 1) AS one, generate_series(1, 60) AS at"
            " RETURNING tenant_id, alert_id, span::int AS at)"
            "INSERT INTO webhook_message SELECT tenant_id, gen_random_uuid(), webhook_id, alert_id, '',"
            " CASE at % 3 WHEN 0 THEN 'sent' WHEN 1 THEN 'dead' ELSE 'queued' END, now(), 0,"
            " clock_timestamp() - CASE WHEN at <= 30 THEN '90 days 1 hour' ELSE '89 days 23 hours' END::interval"
            " FROM told, webhook"
        )
        upkeep = Upkeep(bench.pool, LOG, rows_at_once=7)
        gone = await asyncio.gather(upkeep.expire_answers(), upkeep.expire_answers())
        assert 30 == sum(gone) + await upkeep.expire_answers()
        left = await conn.fetch("SELECT DISTINCT rtrim(request_id, '0123456789') AS name FROM answered_request")
        assert ["young-"] == [row["name"] for row in left]
        billing = await open_pool(url, role="tollkeeper_billing", size=2)
        try:
            upkeep = Upkeep(billing, LOG, rows_at_once=7)
            gone = await asyncio.gather(upkeep.expire_messages(), upkeep.expire_messages())
            assert 20 == sum(gone) + await upkeep.expire_messages()
        finally:
            billing.terminate()
        kept = await conn.fetch("SELECT state, count(*) AS count FROM webhook_message GROUP BY 1 ORDER BY 1")
        assert [("dead", 10), ("queued", 20), ("sent", 10)] == [tuple(row) for row in kept]


async def test_decisions_are_kept_so_long(new_database: Callable[[], str]) -> None:
    """Entries and holders' last batches go after 35 days, counts after 400; all in small batches, by several."""
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench, superuser(url) as conn:
        await conn.execute("SET search_path = tollkeeper")
        now = from_us(bench.now_us)
        for age, count in (("35 days 1 hour", 30), ("34 days 23 hours", 5)):
            await conn.execute(
                "INSERT INTO decision_entry (tenant_id, limit_name, reason, at, caller, units, amount, used,"
                " attributes, stored_at) SELECT tenant_id, 'l', 'RATE_LIMITED', now(), 'c', 1, 1, 1, '{}',"
                " clock_timestamp() - $1::text::interval FROM (SELECT tenant_id FROM tenant LIMIT 1) AS one,"
                " generate_series(1, $2::int)",
                age,
                count,
            )
            await conn.execute(
                "INSERT INTO decision_batch SELECT decode(md5($1 || at), 'hex'), at,"
                " clock_timestamp() - $1::text::interval FROM generate_series(1, $2::int) AS at",
                age,
                count,
            )
        await conn.execute(
            "INSERT INTO decision_count SELECT tenant_id, at::text, 'RATE_LIMITED', day, 1, 0 FROM"
            " (SELECT tenant_id FROM tenant LIMIT 1) AS one, generate_series(1, 20) AS at, unnest($1::date[]) AS day",
            [(now - timedelta(days=days)).date() for days in (402, 399)],
        )
        upkeep = Upkeep(bench.pool, LOG, rows_at_once=7)
        gone = await asyncio.gather(upkeep.expire_decisions(), upkeep.expire_decisions())
        assert 30 + 30 + 20 == sum(gone) + await upkeep.expire_decisions()
        tables = ("decision_entry", "decision_batch", "decision_count")
        left = [await conn.fetchval(f"SELECT count(*) FROM {table}") for table in tables]  # noqa: S608 - constants
        assert [5, 5, 20] == left


async def test_no_runtime_role_deletes_ids_by_itself(bench: Bench) -> None:
    """Ids go by the one function that knows which are needed."""
    async with bench.pool.acquire() as conn:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute("DELETE FROM usage_id")


async def test_every_duty_is_done_at_once_and_by_the_clock(new_database: Callable[[], str]) -> None:
    """Two runners beside each other do their duties when they start and at their times; they stop when asked."""
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench:
        each_second = {"make_months": "* * * * * *", "expire_ids": "* * * * * *"}
        log = await bench.new_log()
        log.record(bench.use("goes"))
        await bench.ingest.append(log.cut())
        async with (
            running_jobs(bench.pool, LOG, schedules=each_second),
            running_jobs(bench.pool, LOG, schedules=each_second),
        ):
            (now,) = await bench.rows("SELECT ledger_now() AS now")
            month = now["now"].date().replace(day=1)
            names = set()
            for _ in range(MONTHS_AHEAD + 1):
                names.add(f"usage_record_{month:%Y%m}")
                month = (month + timedelta(days=31)).replace(day=1)
            rows = await bench.rows("SELECT relname FROM pg_class WHERE relname ~ '^usage_record_[0-9]+$'")
            assert names <= {row["relname"] for row in rows}
            assert {"goes"} == await ids(bench)
            await move(bench, bench.now_us + 50 * DAY_US)

            async def none_left() -> bool:
                return not await ids(bench)

            await wait_until(none_left, seconds_max=120)
        async with superuser(url) as conn:
            done = await conn.fetch("SELECT entrypoint FROM pgqueuer_schedules WHERE last_run IS NOT NULL")
        assert "expire_ids" in {row["entrypoint"] for row in done}
