"""Show a tenant that its record is in the chain."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import UnknownNameError
from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.usage_audit import hashes_of
from tollkeeper_ledger.domain.usage_proof import UsageProof, batch_paths, read_statement
from tollkeeper_ledger.services.batch_records import archived_records, records_of_batch
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.services.usage_roots import is_signed
from tollkeeper_ledger.store import usage_archive as archives
from tollkeeper_ledger.store import usage_roots as store
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.usage_rollups import all_meters
from tollkeeper_ledger.store.verifying import read_links

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from tollkeeper_ledger.domain.usage_audit import AuditedRecord
    from tollkeeper_ledger.domain.usage_proof import SignedRoot
    from tollkeeper_ledger.store.pool import Connection, Pools
    from tollkeeper_ledger.store.verifying import StoredLink

LATER_AT_ONCE = 20_000
"""Later batches of one answer: 680 kB."""
_ROOTS_AT_ONCE = 100
_NAME_IT_BY_TIME = (
    "ids are kept for 49 days: for an older record give its event time to the microsecond as well (event_time, `--at`)"
)
_AS_RECORDED = "give the event time to the microsecond, as it was recorded"


async def prove_usage(
    pools: Pools,
    *,
    tenant: str,
    record_id: str,
    at: datetime | None = None,
    archive: Path | None = None,
    later_from: int = 0,
) -> tuple[AuditedRecord, UsageProof]:
    """Give a record and its way into the chain, up to the first signed root that covers it, where there is one.

    Shows of other records of its batch one hash each. `at` is the record's event time: without it, it is found as long
    as its id is kept. `archive`: directory with the files of archived months, of which no more is read than may hold
    the batch. Of the batches between its own and the root up to 20,000 are shown, those after the first `later_from`.
    Raises UnknownNameError TENANT_UNKNOWN, USAGE_UNKNOWN; PreconditionError USAGE_ARCHIVED where a file is
    needed that can't be read.
    """
    tenant_id = await need_tenant(pools.billing, tenant)
    async with (
        connection(pools.billing) as conn,
        conn.transaction(isolation="repeatable_read", readonly=True),
    ):
        await archives.hold_months(conn)
        batch_id = None
        if "\0" not in record_id:
            batch_id = await store.batch_of_record(conn, tenant_id, record_id, at)
            if batch_id is None and at is not None:
                months = await archives.archive_at(conn, at)
                away = await archived_records(archive, months, tenant=tenant, id=record_id, event_time=at)
                batch_id = away[0].batch_id if away else None
        if batch_id is None:
            raise UnknownNameError("usage", record_id, remedy=_NAME_IT_BY_TIME if at is None else _AS_RECORDED)
        found = await store.link_of_batch(conn, batch_id)
        names = {facts.meter_id: name for name, facts in (await all_meters(conn)).items()}
        records = await records_of_batch(conn, batch_id, names, archive)
        place = next((n for n, one in enumerate(records) if (one.tenant, one.id) == (tenant, record_id)), None)
        if found is None or place is None:
            raise UnknownNameError("usage", record_id, remedy="its record is gone: run `tollkeeper audit verify`")
        return records[place], await _proof(conn, records, place, found, later_from)


async def _proof(
    conn: Connection,
    records: Sequence[AuditedRecord],
    place: int,
    found: tuple[int, bytes, StoredLink],
    later_from: int,
) -> UsageProof:
    """Lead from one of a batch's records to the batch's link, and on to a root."""
    stream, previous, link = found
    mine = records[place]
    hashed = [hashes_of(record) for record in records]
    hashes: dict[str, list[bytes]] = {}
    for record, (content, _) in zip(records, hashed, strict=True):
        hashes.setdefault(record.tenant, []).append(content)
    before = sum(record.tenant == mine.tenant for record in records[:place])
    tenant_path, batch_path = batch_paths(hashes, mine.tenant, before)
    root, last = await _root_after(conn, stream, link.position, link.body.committed_us)
    after = min(last, link.position + later_from)
    end = min(last, after + LATER_AT_ONCE)
    return UsageProof(
        content_hash=hashed[place][0],
        row_hashes=[row for _, row in hashed],
        tenant_path=tenant_path,
        tenant_records=len(hashes[mine.tenant]),
        batch_path=batch_path,
        stream=stream,
        position=link.position,
        previous_hash=previous,
        body=link.body,
        hash=link.hash,
        later_batches=[one.body.digest() async for one in read_links(conn, stream, last=end, after=after)],
        later_count=last - link.position,
        root=root,
    )


def _signed_position(root: SignedRoot, stream: int) -> int:
    """Give how far a root signs a stream; 0 where it doesn't, or is not as it was signed: a later one may."""
    try:
        _, heads = read_statement(root.statement)
    except ValueError:
        return 0
    signed = max((head.position for head in heads if head.stream == stream), default=0)
    return signed if signed and is_signed(root) else 0


async def _root_after(conn: Connection, stream: int, position: int, at_us: int) -> tuple[SignedRoot | None, int]:
    """Give the first root that covers a link and the position that it signs; none and the link's own without one."""
    # The link's time was read before its commit waited for locks: roots of others may lie in between.
    for skip in count(0, _ROOTS_AT_ONCE):
        roots = await store.roots_since(conn, from_us(at_us), skip=skip, count_max=_ROOTS_AT_ONCE)
        for root in roots:
            signed = _signed_position(root, stream)
            if signed >= position:
                return root, signed
        if len(roots) < _ROOTS_AT_ONCE:
            break
    return None, position
