"""Read and make the cuts of running periods that progressive invoices are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.periods import Period
    from tollkeeper_ledger.store.billing_closes import CloseKey
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class StoredCut:
    """A cut whose invoice stands or is still to come."""

    cut_at: datetime
    inputs: bytes
    number: str | None
    """The invoice's; None where it waits."""


async def read_progressive(conn: Connection, *, now: datetime, only: str | None) -> list[tuple[UUID, UUID, str]]:
    """Read (tenant id, subscription id, wire id) of subscriptions whose plan has a threshold, in order of wire id."""
    rows = await conn.fetch(sql("billing.progressive_subscriptions"), now, only)
    return [(row["tenant_id"], row["subscription_id"], row["wire_id"]) for row in rows]


async def read_cuts(conn: Connection, tenant_id: UUID, subscription_id: UUID, period: Period) -> list[StoredCut]:
    """Read the cuts of a period in order; those whose invoice is void and not replaced are left out."""
    rows = await conn.fetch(sql("billing.cuts"), tenant_id, subscription_id, period.start, period.end)
    return [StoredCut(cut_at=row["cut_at"], inputs=row["inputs"], number=row["number"]) for row in rows]


async def is_counted(conn: Connection, key: CloseKey) -> bool:
    """Say whether a cut's period is closed, so that the invoice of the period counts on the cut's."""
    found: bool = await conn.fetchval(sql("billing.is_counted"), key.tenant_id, key.subscription_id, key.period_start)
    return found


async def part_segments(
    conn: Connection, tenant_id: UUID, subscription_id: UUID, *, start: datetime, at: datetime
) -> None:
    """Part a running period's open segments at a cut. The transaction has the tenant alone."""
    await conn.execute(sql("segments.part_segments"), tenant_id, subscription_id, start, at)


async def was_cut(conn: Connection, tenant_id: UUID, subscription_id: UUID, at: datetime) -> bool:
    """Say whether a cut was made at an instant or later: a clock that stands still gives one cut."""
    found: bool = await conn.fetchval(sql("billing.was_cut"), tenant_id, subscription_id, at)
    return found
