"""Show a tenant that its record is in the chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import UnknownNameError
from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.usage_audit import hashes_of
from tollkeeper_ledger.domain.usage_proof import UsageProof, batch_paths, read_statement
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store import usage_roots as store
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.usage_audit import batch_rows
from tollkeeper_ledger.store.usage_rollups import all_meters
from tollkeeper_ledger.store.verifying import read_links

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.usage_audit import AuditedRecord
    from tollkeeper_ledger.domain.usage_proof import SignedRoot
    from tollkeeper_ledger.store.pool import Connection, Pools

_ROOTS_MAX = 10
"""Roots after a commit among which the first that covers it is."""


async def prove_usage(pools: Pools, *, tenant: str, record_id: str) -> tuple[AuditedRecord, UsageProof]:
    """Give a record and its way into the chain, up to the first signed root that covers it, where there is one.

    Shows of other tenants' records one hash each step. Raises UnknownNameError TENANT_UNKNOWN, USAGE_UNKNOWN.
    """
    tenant_id = await need_tenant(pools.billing, tenant)
    async with (
        connection(pools.billing) as conn,
        conn.transaction(isolation="repeatable_read", readonly=True),
    ):
        found = None if "\0" in record_id else await store.link_of_record(conn, tenant_id, record_id)
        if found is None:
            raise UnknownNameError("usage", record_id, remedy="name a stored record of the last 49 days")
        stream, previous, link = found
        names = {facts.meter_id: name for name, facts in (await all_meters(conn)).items()}
        records = (await batch_rows(conn, [link.body.batch_id], names)).get(link.body.batch_id, [])
        hashes: dict[str, list[bytes]] = {}
        place = -1
        mine: AuditedRecord | None = None
        for record in records:
            if (record.tenant, record.id) == (tenant, record_id):
                place, mine = len(hashes.get(tenant, [])), record
            hashes.setdefault(record.tenant, []).append(hashes_of(record)[0])
        if mine is None:
            raise UnknownNameError("usage", record_id, remedy="its record is gone: run `tollkeeper audit verify`")
        tenant_path, batch_path = batch_paths(hashes, tenant, place)
        root, last = await _root_after(conn, stream, link.position, link.body.committed_us)
        later = [one.body.digest() async for one in read_links(conn, stream, last=last, after=link.position)]
    return mine, UsageProof(
        content_hash=hashes[tenant][place],
        tenant_path=tenant_path,
        tenant_records=len(hashes[tenant]),
        batch_path=batch_path,
        stream=stream,
        position=link.position,
        previous_hash=previous,
        body=link.body,
        hash=link.hash,
        later_batches=later,
        root=root,
    )


async def _root_after(conn: Connection, stream: int, position: int, at_us: int) -> tuple[SignedRoot | None, int]:
    """Give the first root that covers a link and the position that it signs; none and the link's own without one."""
    for root in await store.roots_since(conn, from_us(at_us), count_max=_ROOTS_MAX):
        for head in read_statement(root.statement)[1]:
            if head.stream == stream and head.position >= position:
                return root, head.position
    return None, position
