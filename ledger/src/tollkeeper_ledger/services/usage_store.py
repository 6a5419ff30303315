"""Store records and what is derived of them, inside the transaction of their append."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.columns import row_hashes
from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.usage_aggregate import Aggregation
from tollkeeper_ledger.domain.usage_hash import row_checks, rows_digest
from tollkeeper_ledger.domain.usage_rollup import MeterFacts, Part
from tollkeeper_ledger.services.segments import ensure_segments
from tollkeeper_ledger.services.usage_beside import beside
from tollkeeper_ledger.services.usage_rollups import add_rollups, derive
from tollkeeper_ledger.store.billing_segments import segments_of_span
from tollkeeper_ledger.store.usage_batches import NewRecords, add_records, texts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.usage_batch import Records
    from tollkeeper_ledger.domain.usage_merge import Merged
    from tollkeeper_ledger.services.usage_rollups import BatchRollups
    from tollkeeper_ledger.store.pool import Connection
    from tollkeeper_ledger.store.usage_batches import RecordTexts

_NO_METER = MeterFacts(meter_id=0, aggregation=Aggregation.SUM)


@dataclass(frozen=True, slots=True)
class _Stamps:
    """Say in which segment each record is."""

    by_tenant: Mapping[int, UUID]
    """Tenants, ascending, all of whose records are in one segment; all tenants where `by_record` is None."""
    by_record: Sequence[UUID] | None


async def store_records(
    conn: Connection,
    merged: Merged,
    *,
    batch_ids: Sequence[int],
    tenant_ids: Sequence[UUID],
    meters: Mapping[str, MeterFacts],
) -> list[bytes]:
    """Store records of batches and all that is derived of them; give the digest of each batch's rows.

    Their ids are claimed and their tenants' locks shared. `tenant_ids` are those of `merged.tenants`.
    """
    stamps = await _stamp(conn, merged.records, tenant_ids)
    # A shape that only refused records have may hold unknown meters: nobody points at it.
    shapes = [[meters.get(meter, _NO_METER) for meter in shape] for shape in merged.shapes]
    # CPU-bound, a few microseconds a record: in a thread, so that heartbeats of this process go on.
    rows = await asyncio.to_thread(
        _make_rows, merged, batch_ids=batch_ids, tenant_ids=tenant_ids, stamps=stamps, shapes=shapes
    )
    _, (rollups, digests) = await beside(add_records(conn, rows.texts), lambda: rows.derive(merged.records, shapes))
    await add_rollups(conn, rollups)
    return digests


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows to store, and what is derived of them."""

    parts: Sequence[Part]
    part: Sequence[int]
    hashed: Sequence[bytes]
    """Per batch: the hashes of its rows, one behind the other."""
    texts: RecordTexts

    def derive(self, records: Records, shapes: Sequence[Sequence[MeterFacts]]) -> tuple[BatchRollups, list[bytes]]:
        """Give what the records add to rollups, and the digest of each batch's rows."""
        rollups = derive(records, parts=self.parts, part=self.part, shape_meters=shapes, texts=self.texts)
        return rollups, [rows_digest([own]) for own in self.hashed]


def _make_rows(
    merged: Merged,
    *,
    batch_ids: Sequence[int],
    tenant_ids: Sequence[UUID],
    stamps: _Stamps,
    shapes: Sequence[Sequence[MeterFacts]],
) -> _Rows:
    records = merged.records
    parts, part = _parts(records, tenant_ids, stamps)
    hashed = _hash_rows(merged, batch_ids=batch_ids, parts=parts, part=part)
    new = NewRecords(
        batch_ids=batch_ids,
        starts=merged.starts,
        parts=parts,
        part=part,
        shapes=[[meter.meter_id for meter in shape] for shape in shapes],
        shape=records.shape,
        ids=records.ids,
        seqs=records.seqs,
        event_us=records.event_us,
        received_us=records.received_us,
        units=records.units,
        attributes=records.attributes,
        checks=row_checks(b"".join(hashed)),
    )
    return _Rows(parts, part, hashed, texts_of(new))


def _parts(records: Records, tenant_ids: Sequence[UUID], stamps: _Stamps) -> tuple[list[Part], Sequence[int]]:
    """Give what records have in common, and per record its part."""
    whole, each = stamps.by_tenant, stamps.by_record
    if each is None and not any(records.flags):
        # A part per tenant, the usual case.
        plain = [Part(tenant_ids[tenant], segment, 0) for tenant, segment in whole.items()]
        if len(plain) == len(tenant_ids):
            return plain, records.tenant
        place = {tenant: at for at, tenant in enumerate(whole)}
        return plain, [place[tenant] for tenant in records.tenant]
    segments = [whole[tenant] for tenant in records.tenant] if each is None else each
    places: dict[tuple[int, UUID, int], int] = {}
    part = [places.setdefault(one, len(places)) for one in zip(records.tenant, segments, records.flags, strict=True)]
    return [Part(tenant_ids[tenant], segment, flags) for tenant, segment, flags in places], part


def _hash_rows(merged: Merged, *, batch_ids: Sequence[int], parts: Sequence[Part], part: Sequence[int]) -> list[bytes]:
    """Give the hashes of every row, one behind the other, by batch."""
    records = merged.records
    segments = [one.segment_id.bytes for one in parts]
    return [
        row_hashes(
            records.hashes[first:last],
            records.ids[first:last],
            batch_id,
            records.seqs[first:last],
            records.event_us[first:last],
            records.received_us[first:last],
            records.flags[first:last],
            segments,
            part[first:last],
        )
        for batch_id, first, last in zip(batch_ids, merged.starts, [*merged.starts[1:], len(records)], strict=True)
    ]


async def _stamp(conn: Connection, records: Records, tenant_ids: Sequence[UUID]) -> _Stamps:
    """Give the segments of records: by tenant where one segment holds the whole batch, else by event time."""
    span = from_us(min(records.event_us)), from_us(max(records.event_us))
    used = sorted(set(records.tenant))
    open_ones = await segments_of_span(conn, [tenant_ids[tenant] for tenant in used], first=span[0], last=span[1])
    found = [(tenant, open_ones.get(tenant_ids[tenant])) for tenant in used]
    known = {tenant: segment_id for tenant, segment_id in found if segment_id is not None}
    others = None if len(known) == len(used) else await _stamp_others(conn, records, tenant_ids, known)
    return _Stamps(known, others)


async def _stamp_others(
    conn: Connection, records: Records, tenant_ids: Sequence[UUID], known: Mapping[int, UUID]
) -> list[UUID]:
    """Give each record's segment; `known` has those of tenants that one open segment is enough for."""
    times: dict[int, list[int]] = {}
    for tenant, at in zip(records.tenant, records.event_us, strict=True):
        if tenant not in known:
            times.setdefault(tenant, []).append(at)
    ends = [(tenant_ids[tenant], edge) for tenant, found in times.items() for edge in (min(found), max(found))]
    edges = await ensure_segments(conn, ends)
    whole = dict(known)
    for tenant, first, last in zip(times, edges[0::2], edges[1::2], strict=True):
        if first.segment_id == last.segment_id:
            whole[tenant] = first.segment_id
    mixed = [(tenant, at) for tenant, found in times.items() if tenant not in whole for at in sorted(set(found))]
    exact = await ensure_segments(conn, [(tenant_ids[tenant], at) for tenant, at in mixed])
    single = {key: segment.segment_id for key, segment in zip(mixed, exact, strict=True)}
    return [
        whole[tenant] if tenant in whole else single[tenant, at]
        for tenant, at in zip(records.tenant, records.event_us, strict=True)
    ]
