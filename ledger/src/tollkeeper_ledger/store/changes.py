"""The order of changes: what makes WatchLimits push a tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql
from tollkeeper_ledger.store.tenants import write_limit_states

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection

CHANGE_CHANNEL = "tollkeeper_change"


async def record_changes(conn: Connection, tenant_ids: Collection[UUID]) -> int:
    """Take the next change number for these tenants and announce it at commit; give the number.

    Must be the last statement of the transaction: the counter row stays locked until commit, which puts numbers into
    commit order. Give every tenant whose snapshot changed (name, state, plan, features, limits); children of a changed
    parent follow by themselves. An empty collection (for example a new meter) only takes a number. Brings limit_state
    up to date first, so that amount_version rises exactly with amounts and enforcements.
    """
    await write_limit_states(conn, tenant_ids)
    change: int = await conn.fetchval(sql("installation.next_change"))
    if tenant_ids:
        await conn.execute(sql("installation.insert_tenant_changes"), change, sorted(set(tenant_ids)))
    await conn.execute(sql("installation.notify"), CHANGE_CHANNEL, str(change))
    return change
