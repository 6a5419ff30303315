"""Read usage, ingest and the audit log for reports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.store.queries import sql
from tollkeeper_ledger.store.usage_rollups import meter_facts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from tollkeeper_ledger.domain.usage_aggregate import State
    from tollkeeper_ledger.domain.usage_report import Where
    from tollkeeper_ledger.domain.usage_rollup import MeterFacts
    from tollkeeper_ledger.store.pool import Connection, Row


@dataclass(frozen=True, slots=True)
class MeterInfo:
    """A meter as reports need it."""

    name: str
    unit: str
    attributes: tuple[str, ...]
    facts: MeterFacts


@dataclass(frozen=True, slots=True)
class Span:
    """Name the rollups of one tenant's meters to read."""

    tenant_id: UUID
    meter_ids: Sequence[int]
    start: datetime
    end: datetime
    """Exclusive."""


@dataclass(frozen=True, slots=True)
class SumRow:
    """A sum in a bucket."""

    meter_id: int
    dims: Mapping[str, str]
    place: int
    """Number of the bucket, from 0."""
    units: int
    records: int


@dataclass(frozen=True, slots=True)
class StateRow:
    """A state of a quarter of an hour."""

    meter_id: int
    dims: Mapping[str, str]
    quarter: datetime
    state: State


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A stored record."""

    id: str
    event_time: datetime
    meter_ids: Sequence[int]
    units: Sequence[int]
    attributes: Mapping[str, str]
    batch_id: int
    seq: int
    flags: int


@dataclass(frozen=True, slots=True)
class ProducerRow:
    """A producer."""

    producer_id: UUID
    state: str
    incarnation: int
    committed_seq: int
    watermark: datetime | None
    seen_at: datetime
    quiet: timedelta
    """Real time since it was heard of."""


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An entry of the audit log."""

    audit_id: int
    at: datetime
    actor: str
    action: str
    tenant: str
    request_id: str
    before: Any
    """Decoded JSON; None = nothing."""
    after: Any


async def read_tenant_and_meters(
    conn: Connection, wire_id: str, names: Sequence[str] | None
) -> tuple[UUID, list[MeterInfo]] | None:
    """Give a tenant's id and meters in name order; None = all. None without the tenant; meters unknown are left out.

    For a role that sees all tenants.
    """
    rows = await conn.fetch(sql("reports.tenant_and_meters"), wire_id, names)
    if not rows:
        return None
    return rows[0]["tenant_id"], [
        MeterInfo(name=row["name"], unit=row["unit"], attributes=tuple(row["attributes"]), facts=meter_facts(row))
        for row in rows
        if row["meter_id"] is not None
    ]


@dataclass(frozen=True, slots=True)
class Extent:
    """Where usage lies in a span."""

    first: datetime | None
    """Start of the first quarter of an hour with usage, and of the last; None where there is none."""
    last: datetime | None
    now: datetime
    """Ledger time."""


async def usage_extent(conn: Connection, span: Span) -> Extent:
    """Give where usage lies, and ledger time."""
    row = await conn.fetchrow(sql("reports.usage_extent"), span.tenant_id, span.meter_ids, span.start, span.end)
    if row is None:
        raise RuntimeError("a sum without groups has no row")
    return Extent(**row)


async def read_sums(
    conn: Connection, span: Span, *, edges: Sequence[datetime], by_minute: bool, count_max: int, where: Where
) -> list[SumRow]:
    """Sum usage in buckets that begin at the edges, ascending, per meter and dimensions."""
    statement = sql("reports.sums_by_minute") if by_minute else sql("reports.sums_by_quarter")
    rows = await conn.fetch(
        statement, span.tenant_id, span.meter_ids, span.start, span.end, edges, count_max, _allowed(where)
    )
    return [
        SumRow(
            meter_id=row["meter_id"],
            dims=json.loads(row["dims"]),
            place=row["place"] - 1,
            units=int(row["units"]),
            records=row["records"],
        )
        for row in rows
    ]


async def read_totals(
    conn: Connection, span: Span, *, edges: Sequence[datetime], by_minute: bool, count_max: int
) -> list[SumRow]:
    """Sum usage in buckets likewise, whatever its dimensions: rows have none."""
    statement = sql("reports.totals_by_minute") if by_minute else sql("reports.totals_by_quarter")
    rows = await conn.fetch(statement, span.tenant_id, span.meter_ids, span.start, span.end, edges, count_max)
    return [
        SumRow(meter_id=meter_id, dims={}, place=place - 1, units=int(units), records=records)
        for meter_id, place, units, records in rows
    ]


async def count_values(
    conn: Connection, span: Span, *, edges: Sequence[datetime], group_by: Sequence[str], where: Where
) -> list[SumRow]:
    """Count distinct values in buckets, likewise, grouped by some of the dimensions; `records` are the values."""
    statement = sql("reports.values_by_quarter")
    rows = await conn.fetch(
        statement, span.tenant_id, span.meter_ids, span.start, span.end, edges, group_by, _allowed(where)
    )
    return [
        SumRow(
            meter_id=row["meter_id"],
            dims=row["chosen"],
            place=row["place"] - 1,
            units=0,
            records=row["distinct_values"],
        )
        for row in rows
    ]


def _allowed(where: Where) -> dict[str, list[str]] | None:
    return {name: sorted(values) for name, values in where.items()} or None


async def read_states(conn: Connection, span: Span) -> list[StateRow]:
    """Give states in order of their quarters."""
    rows = await conn.fetch(sql("reports.states_by_quarter"), span.tenant_id, span.meter_ids, span.start, span.end)
    return [_state(row) for row in rows]


async def states_before(conn: Connection, span: Span) -> list[StateRow]:
    """Give each meter's and dimensions' last state before the span."""
    rows = await conn.fetch(sql("reports.states_before"), span.tenant_id, span.meter_ids, span.start)
    return [_state(row) for row in rows]


def _state(row: Row) -> StateRow:
    return StateRow(meter_id=row["meter_id"], dims=json.loads(row["dims"]), quarter=row["quarter"], state=row["state"])


async def void_ids(conn: Connection, span: Span) -> set[str]:
    """Give the ids of voids in the span."""
    return {row["id"] for row in await conn.fetch(sql("reports.voids_between"), span.tenant_id, span.start, span.end)}


async def records_after(
    conn: Connection, tenant_id: UUID, *, end: datetime, after: tuple[datetime, str], count_max: int
) -> list[RecordRow]:
    """Give a page of stored records in (event time, id) order."""
    rows = await conn.fetch(sql("reports.records_after"), tenant_id, end, *after, count_max)
    return [RecordRow(**row) for row in rows]


async def meter_names(conn: Connection, meter_ids: Iterable[int]) -> dict[int, str]:
    """Give the names of meters."""
    rows = await conn.fetch(sql("reports.meter_names"), list(meter_ids))
    return {row["meter_id"]: row["name"] for row in rows}


async def batch_producers(conn: Connection, batch_ids: Iterable[int]) -> dict[int, UUID]:
    """Give who sent batches. For a role that sees the chain."""
    rows = await conn.fetch(sql("reports.batch_producers"), list(batch_ids))
    return {row["batch_id"]: row["producer_id"] for row in rows}


async def read_producers(conn: Connection, *, count_max: int) -> list[ProducerRow]:
    """Give producers, last heard of first."""
    return [ProducerRow(**row) for row in await conn.fetch(sql("reports.producers"), count_max)]


async def ingest_totals(conn: Connection) -> tuple[int, int]:
    """Give how many records were stored and how many quarantined, ever."""
    row = await conn.fetchrow(sql("reports.ingest_totals"))
    return (row["stored"], row["quarantined"]) if row is not None else (0, 0)


async def audit_before(conn: Connection, *, before: int, count_max: int) -> list[AuditRow]:
    """Give entries of the audit log, newest first, that are older than number `before`."""
    return [AuditRow(**row) for row in await conn.fetch(sql("reports.audit_before"), before, count_max)]
