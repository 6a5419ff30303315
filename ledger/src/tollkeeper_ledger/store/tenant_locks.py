"""Order appends and closes of one tenant: appends share the tenant's lock, a close takes it alone.

Both end with the transaction. Postgres queues them fairly, so a close waits for running appends and later appends wait
for the close. Taken after producers and ids, before windows, rollups and the chain head.

Postgres has room for a few thousand locks in all. An append of many tenants shares the locks of stripes of tenants
instead of one each, and a close takes its tenant's stripe alone as well: only an append of many tenants waits for the
close of a tenant that is not in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection

TENANTS_EACH_MAX = 256
"""Tenants that one transaction locks by a lock each; an append shares more by their stripes."""

_STRIPE_SHIFT = 58
_KEY_BYTES = 8


def tenant_lock_key(tenant_id: UUID) -> int:
    """Give the advisory lock's key of a tenant: its id's first 8 bytes. Tenant ids are random, so keys hardly meet."""
    return int.from_bytes(tenant_id.bytes[:_KEY_BYTES], "big", signed=True)


def stripe_of(key: int) -> int:
    """Give the stripe of a tenant's key, one of 64 from -32 on: in order of the keys, so that both orders are one."""
    return key >> _STRIPE_SHIFT


async def share_tenants(conn: Connection, tenant_ids: Iterable[UUID]) -> None:
    """Take the tenants' locks shared, in key order, until the transaction ends. For appends."""
    used = set(tenant_ids)
    if len(used) <= TENANTS_EACH_MAX:
        keys = sorted({tenant_lock_key(tenant_id) for tenant_id in used})
        await conn.execute(sql("segments.share_tenants"), keys)
    else:
        # A key's first byte says its stripe, and few are as many as stripes.
        heads = {tenant_id.bytes[:1] for tenant_id in used}
        stripes = {stripe_of(int.from_bytes(head.ljust(_KEY_BYTES, b"\0"), "big", signed=True)) for head in heads}
        await conn.execute(sql("segments.share_stripes"), sorted(stripes))


async def lock_tenant(conn: Connection, tenant_id: UUID) -> None:
    """Take the tenant's lock alone until the transaction ends. For whatever changes how its usage is billed.

    Whoever takes several takes them with `lock_tenants`.
    """
    await lock_tenants(conn, [tenant_id])


async def lock_tenants(conn: Connection, tenant_ids: Iterable[UUID]) -> None:
    """Take the tenants' locks alone, stripes first, both in key order, until the transaction ends. For closes.

    At most TENANTS_EACH_MAX, and neighbours by key: the fewer stripes are taken, the fewer appends wait.
    """
    keys = sorted({tenant_lock_key(tenant_id) for tenant_id in tenant_ids})
    if len(keys) > TENANTS_EACH_MAX:
        raise ValueError(f"{len(keys)} tenants in one close, at most {TENANTS_EACH_MAX} fit the table of locks")
    await conn.execute(sql("segments.lock_stripes"), sorted({stripe_of(key) for key in keys}))
    await conn.execute(sql("segments.lock_tenants"), keys)
