"""Order appends and closes of one tenant: appends share the tenant's lock, a close takes it alone.

Both end with the transaction. Postgres queues them fairly, so a close waits for running appends and later appends wait
for the close. Taken after producers and ids, before windows, rollups and the chain head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection


def tenant_lock_key(tenant_id: UUID) -> int:
    """Give the advisory lock's key of a tenant: its id's first 8 bytes. Tenant ids are random, so keys hardly meet."""
    return int.from_bytes(tenant_id.bytes[:8], "big", signed=True)


async def share_tenants(conn: Connection, tenant_ids: Iterable[UUID]) -> None:
    """Take the tenants' locks shared, in key order, until the transaction ends. For appends."""
    keys = sorted({tenant_lock_key(tenant_id) for tenant_id in tenant_ids})
    await conn.execute(sql("segments.share_tenants"), keys)


async def lock_tenant(conn: Connection, tenant_id: UUID) -> None:
    """Take the tenant's lock alone until the transaction ends. For a close and for a move to another plan version."""
    await conn.execute(sql("segments.lock_tenant"), tenant_lock_key(tenant_id))
