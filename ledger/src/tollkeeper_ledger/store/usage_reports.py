"""Read usage, ingest and the audit log for reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class UsageQuestion:
    """Name the usage of one tenant to sum."""

    tenant_id: UUID
    start: datetime
    end: datetime
    """Exclusive."""
    meters: Sequence[str] | None
    """None = all."""


@dataclass(frozen=True, slots=True)
class MeterSum:
    """Usage of a meter in a bucket."""

    meter: str
    unit: str
    start: datetime
    total: str
    """An exact decimal integer."""
    records: int


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


async def usage_extent(conn: Connection, question: UsageQuestion) -> tuple[datetime, datetime] | None:
    """Give the first and the last minute with usage; None where there is none."""
    row = await conn.fetchrow(sql("reports.usage_extent"), question.tenant_id, question.start, question.end)
    return None if row is None or row["first"] is None else (row["first"], row["last"])


async def usage_by_width(
    conn: Connection, question: UsageQuestion, *, width: timedelta, count_max: int
) -> list[MeterSum]:
    """Sum usage in buckets of one width, in (meter, start) order."""
    rows = await conn.fetch(
        sql("reports.usage_by_width"),
        question.tenant_id,
        question.start,
        question.end,
        question.meters,
        width,
        count_max,
    )
    return [
        MeterSum(meter=row["name"], unit=row["unit"], start=row["start"], total=row["total"], records=row["records"])
        for row in rows
    ]


async def usage_by_edges(
    conn: Connection, question: UsageQuestion, *, edges: Sequence[datetime], count_max: int
) -> list[MeterSum]:
    """Sum usage in buckets that begin at the edges, ascending, in (meter, start) order."""
    rows = await conn.fetch(
        sql("reports.usage_by_edges"),
        question.tenant_id,
        question.start,
        question.end,
        question.meters,
        edges,
        count_max,
    )
    return [
        MeterSum(
            meter=row["name"],
            unit=row["unit"],
            start=edges[row["place"] - 1],
            total=row["total"],
            records=row["records"],
        )
        for row in rows
    ]


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
