"""Answer what was used and how far ingest is. Reads of one tenant run as `reader`, with that tenant and no other."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage import SEQ_MAX
from tollkeeper_ledger.domain.usage_archive import need_records
from tollkeeper_ledger.domain.usage_producer import state_now
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.services.usage_query import BEGINNING, END
from tollkeeper_ledger.store import usage_reports as store
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import tenant_transaction, transaction
from tollkeeper_ledger.store.usage_archive import archived_between
from tollkeeper_ledger.store.usage_topics import read_topics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Pools
    from tollkeeper_ledger.store.usage_topics import TopicRow

RECORDS_PAGE = 1000
PRODUCERS_MAX = 10_000
SILENT_AFTER = timedelta(minutes=10)
LOST_AFTER = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class StoredUse:
    """A stored record as reports show it."""

    id: str
    event_time: datetime
    units: Mapping[str, int]
    attributes: Mapping[str, str]
    producer_id: UUID
    seq: int
    flags: int


@dataclass(frozen=True, slots=True)
class ProducerView:
    """A producer with its state as of now."""

    row: store.ProducerRow
    state: str


@dataclass(frozen=True, slots=True)
class TopicView:
    """A partition of a topic with its state as of now."""

    row: TopicRow
    state: str


@dataclass(frozen=True, slots=True)
class IngestStatus:
    """Say how far ingest is."""

    now: datetime
    producers: Sequence[ProducerView]
    topics: Sequence[TopicView]
    producers_cut: bool
    """There are more producers."""
    records: int
    quarantined: int


async def list_records(
    pools: Pools, *, tenant: str, start: datetime | None, end: datetime | None
) -> AsyncIterator[list[StoredUse]]:
    """Give a tenant's stored records in (event time, id) order, in pages of 1,000.

    Each page is a transaction of its own, so a slow reader holds nothing; records stored meanwhile behind the reader's
    place are not shown. Raises UnknownNameError for the tenant; PreconditionError where raw records of the span are
    archived, or were meanwhile.
    """
    tenant_id = await need_tenant(pools.billing, tenant)
    place = (start or BEGINNING, "")
    names: dict[int, str] = {}
    producers: dict[int, UUID] = {}
    while True:
        async with tenant_transaction(pools.reader, tenant_id, readonly=True) as conn:
            rows = await store.records_after(conn, tenant_id, end=end or END, after=place, count_max=RECORDS_PAGE)
            # After the rows: a month that left before they were read would be missing from them.
            need_records(await archived_between(conn, place[0], end or END))
            new_meters = {meter_id for row in rows for meter_id in row.meter_ids} - names.keys()
            if new_meters:
                names |= await store.meter_names(conn, new_meters)
        new_batches = {row.batch_id for row in rows} - producers.keys()
        if new_batches:
            async with transaction(pools.billing) as conn:
                producers = await store.batch_producers(conn, {row.batch_id for row in rows})
        if rows:
            yield [_stored(row, names, producers) for row in rows]
        if len(rows) < RECORDS_PAGE:
            return
        place = (rows[-1].event_time, rows[-1].id)


def _stored(row: store.RecordRow, names: Mapping[int, str], producers: Mapping[int, UUID]) -> StoredUse:
    return StoredUse(
        id=row.id,
        event_time=row.event_time,
        units={names[meter_id]: units for meter_id, units in zip(row.meter_ids, row.units, strict=True)},
        attributes=row.attributes,
        producer_id=producers[row.batch_id],
        seq=row.seq,
        flags=row.flags,
    )


async def ingest_status(pools: Pools) -> IngestStatus:
    """Say how far every producer is, and how many records were stored and quarantined ever."""
    async with transaction(pools.billing) as conn:
        now = await ledger_now(conn)
        rows = await store.read_producers(conn, count_max=PRODUCERS_MAX + 1)
        topics = await read_topics(conn)
        stored, quarantined = await store.ingest_totals(conn)
    return IngestStatus(
        now=now,
        producers=[ProducerView(row=row, state=_state_of(row)) for row in rows[:PRODUCERS_MAX]],
        topics=[TopicView(row=row, state=_state_of(row)) for row in topics],
        producers_cut=len(rows) > PRODUCERS_MAX,
        records=stored,
        quarantined=quarantined,
    )


def _state_of(row: store.ProducerRow | TopicRow) -> str:
    return state_now(row.state, quiet=row.quiet, silent_after=SILENT_AFTER, lost_after=LOST_AFTER)


async def list_audit_log(pools: Pools, *, before: int | None, count_max: int) -> list[store.AuditRow]:
    """Give administrative acts and holes, newest first."""
    async with transaction(pools.billing) as conn:
        return await store.audit_before(conn, before=SEQ_MAX if before is None else before, count_max=count_max)
