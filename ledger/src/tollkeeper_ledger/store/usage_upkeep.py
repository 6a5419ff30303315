"""Keep usage in bounds: months ahead, ids that have expired."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql
from tollkeeper_ledger.store.usage_batches import make_month

if TYPE_CHECKING:
    from datetime import date, datetime

    from tollkeeper_ledger.store.pool import Connection


async def make_months(conn: Connection, now: datetime, *, ahead: int) -> list[date]:
    """Make the partitions of this month and so many after it; give their first days. Idempotent."""
    months = []
    month = now.date().replace(day=1)
    for _ in range(ahead + 1):
        await make_month(conn, month)
        months.append(month)
        month = (month + timedelta(days=31)).replace(day=1)
    return months


async def expire_ids(conn: Connection, *, count_max: int) -> int:
    """Delete ids that nobody can send again, at most so many; give how many. Each call is a transaction of its own.

    They were committed 49 days ago, the longest lateness and the longest shipping: a record with such an id is refused
    as DEDUP_EXPIRED or TOO_LATE.
    """
    gone: int = await conn.fetchval(sql("usage.expire_ids"), count_max)
    return gone
