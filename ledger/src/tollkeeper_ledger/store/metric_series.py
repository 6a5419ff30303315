"""The last readings of counters that only grow, in Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.metric_series import Last
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.metric_series import Reading
    from tollkeeper_ledger.store.pool import Connection


async def last_readings(conn: Connection, series: Sequence[bytes]) -> dict[bytes, Last]:
    """Give the last reading of each series that has one. Its way in is locked, so nobody writes another one."""
    rows = await conn.fetch(sql("usage.last_readings"), series)
    return {row["series"]: Last(row["start_ns"], row["time_ns"], row["total"]) for row in rows}


async def keep_readings(conn: Connection, readings: Sequence[Reading], *, now: datetime) -> None:
    """Keep readings, one of a series, as the last ones."""
    await conn.execute(
        sql("usage.keep_readings"),
        [reading.series for reading in readings],
        [reading.start_ns for reading in readings],
        [reading.time_ns for reading in readings],
        [reading.total for reading in readings],
        now,
    )


async def drop_readings(conn: Connection, *, before: datetime, count_max: int) -> int:
    """Drop readings that were kept before that, at most so many; give how many."""
    done = await conn.execute(sql("usage.drop_readings"), before, count_max)
    return int(done.rpartition(" ")[2])


async def taken_ids(conn: Connection, pairs: Sequence[tuple[UUID, str]]) -> set[tuple[UUID, str]]:
    """Give which of these tenants and ids are taken."""
    rows = await conn.fetch(
        sql("usage.ids_taken"), [tenant_id for tenant_id, _ in pairs], [record_id for _, record_id in pairs]
    )
    return {(row["tenant_id"], row["id"]) for row in rows}
