"""Money over time: what is owed, and what was earned."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence
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


async def read_usage_at_cost(conn: Connection, *, by: str, start: datetime | None, end: datetime | None) -> list[Row]:
    """Sum usage of closed periods by month, by `meter` or `tenant`, and by the cost price that it has."""
    return await conn.fetch(sql("money_views.usage_at_cost"), by, start, end)


async def read_credit_notes(
    conn: Connection, invoices: Sequence[tuple[UUID, UUID]]
) -> dict[UUID, list[dict[str, Any]]]:
    """Read the credit notes of invoices, each given as (payer's tenant id, invoice id): documents by invoice id."""
    found: dict[UUID, list[dict[str, Any]]] = {}
    if invoices:
        payers, ids = zip(*invoices, strict=True)
        for row in await conn.fetch(sql("money_views.credit_notes_of"), payers, ids):
            found.setdefault(row["invoice_id"], []).append(json.loads(row["document"]))
    return found
