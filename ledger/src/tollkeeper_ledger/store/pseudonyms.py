"""Keep the keys of tenants' pseudonyms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.pseudonyms import PseudonymKey
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection


async def read_keys(conn: Connection, tenant_ids: Collection[UUID]) -> dict[UUID, PseudonymKey]:
    """Give the keys of tenants, which all exist; those that have none get one."""
    asked = sorted(tenant_ids)
    rows = await conn.fetch(sql("pseudonyms.keys"), asked)
    if len(rows) < len(asked):
        # A statement of its own: it sees what others made in the same moment.
        await conn.execute(sql("pseudonyms.make_keys"), asked)
        rows = await conn.fetch(sql("pseudonyms.keys"), asked)
    return {row["tenant_id"]: PseudonymKey(version=row["version"], secret=row["secret"]) for row in rows}


async def turn_key(conn: Connection, tenant_id: UUID) -> tuple[int, int]:
    """Destroy a tenant's key; give its version and that of the one in its place, 0 where there was none.

    Versions rise by 1 to 1,000, so that a ledger which was restored from before gives another one.
    """
    row = await conn.fetchrow(sql("pseudonyms.turn_key"), tenant_id)
    return (row["before"], row["after"]) if row else (0, 0)
