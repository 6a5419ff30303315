"""Read every subscription's phases, tenant after tenant."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.phases import Phase
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection, Row

_ROWS_AT_ONCE = 2_000


async def read_phases(conn: Connection, *, before: datetime) -> AsyncIterator[list[tuple[Phase, ...]]]:
    """Give, per tenant, the phases of each of its subscriptions that began before a time. `conn` is in a transaction.

    Bounded: holds some thousand rows at a time, however many tenants there are.
    """
    rows: list[Row] = []
    cursor = await conn.cursor(sql("recurring.phases"), before)
    while fetched := await cursor.fetch(_ROWS_AT_ONCE):
        rows.extend(fetched)
        last: UUID = rows[-1]["tenant_id"]
        begun = next(place for place, row in enumerate(rows) if row["tenant_id"] == last)
        for tenant in _tenants(rows[:begun]):
            yield tenant
        rows = rows[begun:]
    for tenant in _tenants(rows):
        yield tenant


def _tenants(rows: Sequence[Row]) -> list[list[tuple[Phase, ...]]]:
    return [
        [tuple(map(_phase, of_it)) for _, of_it in groupby(of_tenant, key=lambda row: row["subscription_id"])]
        for _, of_tenant in groupby(rows, key=lambda row: row["tenant_id"])
    ]


def _phase(row: Row) -> Phase:
    return Phase(
        starts_at=row["starts_at"],
        plan_version_id=row["plan_version_id"],
        state=row["state"],
        quantity=row["quantity"],
    )
