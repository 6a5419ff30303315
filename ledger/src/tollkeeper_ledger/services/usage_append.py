"""One append: everything that happens to a batch inside its transaction.

Locks in the order that every transaction of the ledger keeps: producer, ids, tenants (shared), segments, sums in key
order, head of the chain.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tollkeeper_ledger.domain.settlement import outcomes_elsewhere
from tollkeeper_ledger.domain.usage import CONFLICT, AppendOutcome
from tollkeeper_ledger.domain.usage_aggregate import Aggregation
from tollkeeper_ledger.domain.usage_batch import holes_after
from tollkeeper_ledger.domain.usage_chain import BatchBody
from tollkeeper_ledger.domain.usage_hash import (
    merkle_root_by_tenant,
    refused_hash,
    row_check,
    row_checks,
    row_hashes,
    rows_digest,
)
from tollkeeper_ledger.domain.usage_judgement import NOBODY, describe_records, judge, verdicts_of
from tollkeeper_ledger.domain.usage_producer import HOLDER_BYTES, place, unknown
from tollkeeper_ledger.domain.usage_rollup import MeterFacts, Part
from tollkeeper_ledger.services.segments import ensure_segments
from tollkeeper_ledger.services.usage_levels import change_levels
from tollkeeper_ledger.services.usage_rollups import add_rollups, derive
from tollkeeper_ledger.services.usage_verdicts import earlier_verdicts
from tollkeeper_ledger.store.billing_segments import segments_of_span
from tollkeeper_ledger.store.clock import from_us, to_us
from tollkeeper_ledger.store.settlements import NewSettlement, add_settlements
from tollkeeper_ledger.store.standing import note_ended
from tollkeeper_ledger.store.tenant_locks import share_tenants
from tollkeeper_ledger.store.usage_batches import (
    IdClaim,
    NewRecords,
    Refused,
    add_quarantine,
    add_records,
    audit_holes,
    claim_ids,
    find_tenants,
    next_batch,
)
from tollkeeper_ledger.store.usage_chain import add_link
from tollkeeper_ledger.store.usage_producers import advance_producer, lock_producer, see_producer, serve_tenants
from tollkeeper_ledger.store.usage_rollups import find_meters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.usage import Problem, ProducerPosition, Verdict
    from tollkeeper_ledger.domain.usage_batch import Records, UsageBatch
    from tollkeeper_ledger.domain.usage_producer import Producer
    from tollkeeper_ledger.services.usage_rollups import BatchRollups
    from tollkeeper_ledger.store.pool import Connection


class Position(Protocol):
    """Say where the ledger stands with a producer, and how much of that a restore would keep."""

    async def __call__(
        self, conn: Connection, producer_id: UUID, *, committed_seq: int, h: bytes, now: datetime
    ) -> ProducerPosition:
        """Give the position."""
        ...


@dataclass(frozen=True, slots=True)
class _Names:
    tenant_ids: Mapping[str, UUID]
    meters: Mapping[str, MeterFacts]
    timeline: int
    """Postgres' timeline, as looked up for batches that change levels; else 0."""

    def tenant(self, wire_id: str) -> UUID:
        return self.tenant_ids.get(wire_id, NOBODY)

    def tenants(self, batch: UsageBatch) -> list[UUID]:
        return [self.tenant(wire_id) for wire_id in batch.tenants]


async def append_batch(
    conn: Connection, batch: UsageBatch, *, now: datetime, stream: int, position: Position, timeline: int = 0
) -> AppendOutcome:
    """Commit what of the batch is new; the caller's transaction ends right after.

    `timeline`: how often Postgres was set back, and 1; for batches that change levels.
    Raises PreconditionError as `domain.usage_producer.place` says; nothing is stored then.
    """
    source = batch.source
    producer = await lock_producer(conn, source.producer_id)
    if producer is None:
        raise unknown(source.producer_id)
    placement = place(producer, batch)
    served = [wire_id for wire_id in dict.fromkeys([*batch.tenants, *source.tenants_served]) if wire_id]
    names = _Names(await find_tenants(conn, served), await find_meters(conn, batch.meters), timeline)
    earlier = await earlier_verdicts(conn, batch, count=placement.skip, tenant_ids=names.tenants(batch))
    if placement.behind:
        await see_producer(conn, source.producer_id)
        at = await position(conn, source.producer_id, committed_seq=producer.committed_seq, h=producer.h, now=now)
        return AppendOutcome(position=at, trimmed=placement.skip, verdicts=tuple(earlier))
    done = _Done()
    if batch.last_seq > producer.committed_seq:
        done = await _commit_entries(conn, batch, producer, skip=placement.skip, names=names, now=now, stream=stream)
    h = batch.h_at(batch.last_seq) or producer.h
    await serve_tenants(conn, source.producer_id, names.tenant_ids.values())
    await advance_producer(
        conn,
        source.producer_id,
        committed_seq=batch.last_seq,
        h=h,
        watermark=_watermark(source.watermark_us, now),
        closing=source.closing,
    )
    if source.closing and len(producer.holder) == HOLDER_BYTES:
        await note_ended(conn, [producer.holder], producer_id=source.producer_id, ended_seq=batch.last_seq)
    return AppendOutcome(
        position=await position(conn, source.producer_id, committed_seq=batch.last_seq, h=h, now=now),
        stored=done.stored,
        duplicates=done.duplicates,
        conflicts=done.conflicts,
        quarantined=done.quarantined,
        trimmed=placement.skip,
        verdicts=(*earlier, *done.verdicts),
    )


@dataclass(frozen=True, slots=True)
class _Done:
    stored: int = 0
    duplicates: int = 0
    conflicts: int = 0
    quarantined: int = 0
    verdicts: Sequence[Verdict] = ()


async def _commit_entries(
    conn: Connection, batch: UsageBatch, producer: Producer, *, skip: int, names: _Names, now: datetime, stream: int
) -> _Done:
    batch_id = await next_batch(conn)
    problems = judge(batch, skip=skip, tenant_ids=names.tenant_ids, meters=names.meters, now_us=to_us(now))
    places: Sequence[int] = range(skip, len(batch.records))
    if problems:
        places = [at for at in places if at not in problems]
    taken = await _claim(conn, batch, places, batch_id, names)
    if taken:
        places = [at for at in places if at not in taken]
    conflicts = {at: CONFLICT for at, same in taken.items() if not same}
    if batch.levels:
        refusals = await _change_levels(conn, batch, places, names)
        problems = {**problems, **refusals}
        places = [at for at in places if at not in refusals]
    stored = batch.records.take(places)
    rows = rows_digest(())
    if stored:
        rows = await _store(conn, batch, stored, batch_id, names)
        await _keep_outcomes(conn, batch, stored, names, now)
    refused = {**problems, **conflicts}
    refused_rows, refused_digest = _refused(batch, refused, names, batch_id=batch_id, now=now)
    if refused_rows:
        await add_quarantine(conn, refused_rows, producer_id=producer.producer_id, batch_id=batch_id, now=now)
    holes = holes_after(batch.source.holes, producer.committed_seq)
    if holes:
        await audit_holes(conn, holes, producer_id=producer.producer_id, now=now)
    body = BatchBody(
        batch_id=batch_id,
        producer_id=producer.producer_id,
        incarnation=producer.incarnation,
        first_seq=producer.committed_seq + 1,
        last_seq=batch.last_seq,
        h=batch.entry_h[-1],
        merkle_root=await asyncio.to_thread(_merkle_root, batch, stored),
        rows_digest=rows,
        refused_digest=refused_digest,
        stored=len(stored),
        duplicates=len(taken) - len(conflicts),
        conflicts=len(conflicts),
        quarantined=len(problems),
        holes=sum(hole.last_seq - hole.first_seq + 1 for hole in holes),
        committed_us=to_us(now),
    )
    await add_link(conn, body, stream=stream)
    return _Done(
        stored=body.stored,
        duplicates=body.duplicates,
        conflicts=body.conflicts,
        quarantined=body.quarantined,
        verdicts=verdicts_of(batch, refused, taken),
    )


async def _keep_outcomes(conn: Connection, batch: UsageBatch, stored: Records, names: _Names, now: datetime) -> None:
    """Keep how reservations of other producers ended: what is stored is the one outcome that stands."""
    outcomes = outcomes_elsewhere(batch, stored)
    if outcomes:
        settlements = [
            NewSettlement(
                tenant_id=names.tenant(batch.tenants[outcome.tenant]),
                reservation_id=outcome.reservation_id,
                home=outcome.home,
                meter_ids=[names.meters[batch.meters[meter]].meter_id for meter in batch.shapes[outcome.shape]],
                units=outcome.units,
            )
            for outcome in outcomes
        ]
        await add_settlements(conn, settlements, now=now)


async def _change_levels(
    conn: Connection, batch: UsageBatch, places: Sequence[int], names: _Names
) -> dict[int, Problem]:
    """Put what new records change of levels in force; gives those that can't be. Tenants are locked before windows."""
    records = batch.records.take(places)
    await share_tenants(conn, sorted({names.tenant(batch.tenants[at]) for at in records.tenant}))
    return await change_levels(conn, batch, places)


async def _claim(
    conn: Connection, batch: UsageBatch, places: Sequence[int], batch_id: int, names: _Names
) -> dict[int, bool]:
    """Claim the ids of these records; give those that were taken, by place in the batch, and whether by their like."""
    if not places:
        return {}
    records = batch.records.take(places)
    claim = IdClaim(
        batch_id=batch_id,
        tenant_ids=names.tenants(batch),
        tenant=records.tenant,
        ids=records.ids,
        seqs=records.seqs,
        hashes=records.hashes,
    )
    return {places[at]: same for at, same in (await claim_ids(conn, claim)).items()}


async def _store(conn: Connection, batch: UsageBatch, records: Records, batch_id: int, names: _Names) -> bytes:
    """Store records and what is derived of them; give the digest of the rows."""
    tenant_ids = names.tenants(batch)
    await share_tenants(conn, [tenant_ids[at] for at in sorted(set(records.tenant))])
    segments = await _stamp(conn, records, tenant_ids)
    # A shape that only refused records have may hold unknown meters: nobody points at it.
    shapes = [[names.meters.get(batch.meters[meter], _NO_METER) for meter in shape] for shape in batch.shapes]
    # CPU-bound, a few microseconds a record: in a thread, so that heartbeats of this process go on.
    rows, rollups, digest = await asyncio.to_thread(
        _rows_and_rollups, records, batch_id=batch_id, tenant_ids=tenant_ids, segments=segments, shapes=shapes
    )
    await add_records(conn, rows)
    await add_rollups(conn, rollups)
    return digest


_NO_METER = MeterFacts(meter_id=0, aggregation=Aggregation.SUM)


def _rows_and_rollups(
    records: Records,
    *,
    batch_id: int,
    tenant_ids: Sequence[UUID],
    segments: Sequence[UUID],
    shapes: Sequence[Sequence[MeterFacts]],
) -> tuple[NewRecords, BatchRollups, bytes]:
    parts: dict[tuple[UUID, UUID, int], int] = {}
    part = [
        parts.setdefault((tenant_ids[tenant], segment, flags), len(parts))
        for tenant, segment, flags in zip(records.tenant, segments, records.flags, strict=True)
    ]
    hashed = row_hashes(
        records.hashes,
        record_ids=records.ids,
        batch_id=batch_id,
        seqs=records.seqs,
        events_us=records.event_us,
        received_us=records.received_us,
        flags=records.flags,
        segment_ids=[segment.bytes for segment in segments],
    )
    rows = NewRecords(
        batch_id=batch_id,
        parts=list(parts),
        part=part,
        shapes=[[meter.meter_id for meter in shape] for shape in shapes],
        shape=records.shape,
        ids=records.ids,
        seqs=records.seqs,
        event_us=records.event_us,
        received_us=records.received_us,
        units=records.units,
        attributes=records.attributes,
        checks=row_checks(hashed),
    )
    rollups = derive(records, parts=[Part(*one) for one in parts], part=part, shape_meters=shapes)
    return rows, rollups, rows_digest(hashed)


async def _stamp(conn: Connection, records: Records, tenant_ids: Sequence[UUID]) -> list[UUID]:
    """Give each record's segment: by tenant where one segment holds the whole batch, else by event time."""
    span = from_us(min(records.event_us)), from_us(max(records.event_us))
    used = sorted(set(records.tenant))
    open_ones = await segments_of_span(conn, [tenant_ids[tenant] for tenant in used], first=span[0], last=span[1])
    known = {tenant: open_ones[tenant_ids[tenant]] for tenant in used if tenant_ids[tenant] in open_ones}
    if len(known) == len(used):
        return [known[tenant] for tenant in records.tenant]
    return await _stamp_others(conn, records, tenant_ids, known)


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


def _refused(
    batch: UsageBatch, refused: Mapping[int, Problem], names: _Names, *, batch_id: int, now: datetime
) -> tuple[list[Refused], bytes]:
    """Give the rows of what is refused, in sequence order, and their digest."""
    records = batch.records
    described = describe_records(batch, refused) if refused else {}
    rows, hashes = [], []
    for at, problem in sorted(refused.items()):
        tenant_id = names.tenant(batch.tenants[records.tenant[at]])
        hashed = refused_hash(
            tenant_id=tenant_id.bytes,
            producer_id=batch.source.producer_id.bytes,
            batch_id=batch_id,
            seq=records.seqs[at],
            at_us=to_us(now),
            reason=problem.reason,
            field=problem.field,
            content_hash=records.hashes[at],
            record=described[at],
        )
        hashes.append(hashed)
        rows.append(
            Refused(
                tenant_id=tenant_id,
                seq=records.seqs[at],
                reason=problem.reason,
                field=problem.field,
                content_hash=records.hashes[at],
                record=described[at],
                row_check=row_check(hashed),
            )
        )
    return rows, rows_digest(hashes)


def _merkle_root(batch: UsageBatch, stored: Records) -> bytes:
    hashes: dict[str, list[bytes]] = {}
    for tenant, content_hash in zip(stored.tenant, stored.hashes, strict=True):
        hashes.setdefault(batch.tenants[tenant], []).append(content_hash)
    return merkle_root_by_tenant(hashes)


def _watermark(watermark_us: int, now: datetime) -> datetime | None:
    """Give the producer's watermark, none for 0; it is not believed beyond the ledger's own time."""
    return from_us(min(watermark_us, to_us(now))) if watermark_us > 0 else None
