"""What nightly comparisons with a provider found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from tollkeeper_ledger.store.pool import Connection, Row


async def read_known_invoices(conn: Connection, marks: Collection[str]) -> set[str]:
    """Read which of these are ids of our invoices, whenever they were finalised."""
    return {row["invoice_id"] for row in await conn.fetch(sql("providers.known_invoices"), list(marks))}


async def begin_reconciliation(conn: Connection, provider: str, *, at: datetime, since: datetime) -> int | None:
    """Begin a comparison; None where one was done within 20 hours, or began within one and may be under way."""
    await conn.execute(sql("providers.begin_reconciliation"), provider)
    found: int | None = await conn.fetchval(sql("providers.add_reconciliation"), provider, at, since)
    return found


async def end_reconciliation(
    conn: Connection, reconciliation_id: int, *, compared: int, differences: Sequence[dict[str, Any]], problem: str
) -> None:
    """Keep what a comparison found."""
    await conn.execute(sql("providers.end_reconciliation"), reconciliation_id, compared, list(differences), problem)


async def read_reconciliations(conn: Connection, *, count_max: int) -> list[Row]:
    """Read what comparisons found, newest first."""
    return await conn.fetch(sql("providers.reconciliations"), count_max)
