"""What befalls appends in tests: locks that are held, records that Postgres refuses; and the sums they must leave."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from tollkeeper_ledger.domain.usage import Problem
from usage_bench import superuser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from usage_bench import Bench

    class Reached(Protocol):
        """A database."""

        @property
        def url(self) -> str:
            """Give where it is."""
            ...


ROLLUP_DIFFERENCES = """
    SELECT * FROM (
      SELECT tenant_id, segment_id, meter_id, minute, units, records FROM usage_rollup_minute
    ) AS kept FULL JOIN (
      SELECT tenant_id, segment_id, meter_id, date_trunc('minute', event_time, 'UTC') AS minute,
             sum(amount)::numeric(38, 0) AS units, count(*) AS records
      FROM usage_record, unnest(meter_ids, usage_record.units) AS quantity (meter_id, amount) GROUP BY 1, 2, 3, 4
    ) AS raw USING (tenant_id, segment_id, meter_id, minute, units, records)
    WHERE kept IS NULL OR raw IS NULL"""
"""Sums per minute that the records don't give, and the other way round: none must be left."""

WAITING = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'tollkeeper_ingest' AND wait_event_type = 'Lock'"""


async def waiting(bench: Bench, count: int) -> list[int]:
    """Wait until so many ingest connections wait for a lock, and give their processes."""
    async with superuser(bench.url) as conn, asyncio.timeout(60):
        while len(found := await conn.fetch(WAITING)) < count:  # noqa: ASYNC110 - Postgres tells nobody who waits
            await asyncio.sleep(0.005)
    return [row["pid"] for row in found]


@asynccontextmanager
async def held(bench: Bench, statement: str) -> AsyncIterator[None]:
    """Hold the locks of a statement while the block runs."""
    async with superuser(bench.url) as conn, conn.transaction():
        await conn.execute(statement)
        yield


POISON = Problem("UNSTORABLE", "")


@asynccontextmanager
async def refusing(bench: Reached, table: str, condition: str, code: str) -> AsyncIterator[None]:
    """Have Postgres refuse rows of a table with an error of its own while the block runs."""
    async with superuser(bench.url) as conn:
        await conn.execute(
            f"""CREATE FUNCTION poisoned() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                  IF {condition} THEN RAISE EXCEPTION 'poison' USING ERRCODE = '{code}'; END IF;
                  RETURN NEW;
                END $$;
                CREATE TRIGGER poisoned BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION poisoned();"""
        )
        try:
            yield
        finally:
            await conn.execute(f"DROP TRIGGER poisoned ON {table}; DROP FUNCTION poisoned();")
