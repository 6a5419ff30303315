"""Money over time: what is owed, and what was earned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection, Row


async def read_receivables(conn: Connection, *, now: datetime, only: UUID | None) -> list[Row]:
    """Sum what payers owe by age, who owes most first."""
    return await conn.fetch(sql("money_views.receivables"), now, only)


async def read_revenue(conn: Connection, *, by: str, start: datetime | None, end: datetime | None) -> list[Row]:
    """Sum revenue by month and by `plan`, `meter` or `tenant`; by month alone for anything else."""
    if by == "meter":
        return await conn.fetch(sql("money_views.revenue_by_meter"), start, end)
    return await conn.fetch(sql("money_views.revenue"), by, start, end)
