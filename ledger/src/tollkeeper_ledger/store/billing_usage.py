"""Read the usage of billing segments as prices need it: sums, sums by attribute value, single records."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.rating.charges import Total
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    import asyncpg

    from tollkeeper_ledger.domain.rating.charges import Attributes
    from tollkeeper_ledger.domain.rating.dimensions import Demand
    from tollkeeper_ledger.store.pool import Connection, Row

EVENTS_MAX = 1_000_000
"""Records of one meter in one period that a price per record takes; they are kept with the invoice."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Segments to read, and a span that holds all their records."""

    tenant_id: UUID
    segments: Collection[UUID]
    first: datetime
    last: datetime


async def read_demanded(
    conn: Connection, wanted: Wanted, demands: Mapping[str, Demand], totals: Mapping[UUID, Sequence[Total]]
) -> dict[UUID, list[Total]]:
    """Give sums per segment, in meter order, with what prices demand of each meter instead of these meters' totals.

    Raises ValueError for more records than a price per record takes.
    """
    found = {
        segment_id: [total for total in totals[segment_id] if total.meter not in demands]
        for segment_id in wanted.segments
        if segment_id in totals
    }
    for meter, demand in sorted(demands.items()):
        read = _events if demand.events else _values
        for segment_id, demanded in (await read(conn, wanted, meter, demand)).items():
            found.setdefault(segment_id, []).extend(demanded)
    return {segment_id: sorted(of_it, key=lambda total: total.meter) for segment_id, of_it in found.items()}


async def read_uniques(
    conn: Connection, tenant_id: UUID, meters: Collection[Row], groups: Sequence[Sequence[UUID]]
) -> dict[UUID, list[Total]]:
    """Count distinct values of these meters, which `read_unique_meters` gave, so that a group's counts add up.

    Each segment of a group has what it adds to those before it in the group: a value that was there already adds
    nothing, and one that it voids takes one off.
    """
    found: dict[UUID, list[Total]] = {}
    for meter in meters:
        for group in groups:
            before = 0
            for place, segment_id in enumerate(group, start=1):
                counted = await conn.fetchval(
                    sql("billing.count_values"), tenant_id, list(group[:place]), meter["meter_id"]
                )
                if counted != before:
                    total = Total(meter["name"], meter["unit"], meter["scale"], units=counted - before)
                    found.setdefault(segment_id, []).append(total)
                before = counted
    return found


async def read_unique_meters(conn: Connection, meters: Collection[str]) -> list[Row]:
    """Give those of these meters that count distinct values, in order of name: meter_id, name, unit, scale."""
    return await conn.fetch(sql("billing.unique_meters"), list(meters))


async def _values(conn: Connection, wanted: Wanted, meter: str, demand: Demand) -> dict[UUID, list[Total]]:
    rows = await conn.fetch(
        sql("billing.segment_values"),
        wanted.tenant_id,
        list(wanted.segments),
        meter,
        list(demand.attributes),
    )
    found: dict[UUID, list[Total]] = {}
    for row in rows:
        total = _total(meter, row, demand, units=int(row["units"]))
        found.setdefault(row["segment_id"], []).append(total)
    return found


async def _events(conn: Connection, wanted: Wanted, meter: str, demand: Demand) -> dict[UUID, list[Total]]:
    rows = await conn.fetch(
        sql("billing.segment_events"),
        wanted.tenant_id,
        list(wanted.segments),
        wanted.first,
        wanted.last,
        meter,
        list(demand.attributes),
        EVENTS_MAX + 1,
    )
    if len(rows) > EVENTS_MAX:
        raise ValueError(f"{meter} has more than {EVENTS_MAX:,} records, too many for a price per record")
    groups: dict[tuple[UUID, Attributes], list[Any]] = {}
    for row in rows:
        groups.setdefault((row["segment_id"], _attributes(row, demand)), []).append(row)
    found: dict[UUID, list[Total]] = {}
    for (segment_id, _), of_group in sorted(groups.items()):
        events = _in_runs((row["units"], row["is_void"]) for row in of_group)
        units = sum(each * count for each, count in events)
        total = _total(meter, of_group[0], demand, units=units, events=events)
        found.setdefault(segment_id, []).append(total)
    return found


def _in_runs(records: Iterable[tuple[int, bool]]) -> tuple[tuple[int, int], ...]:
    return tuple((units, sum(1 for _ in run) * (-1 if is_void else 1)) for (units, is_void), run in groupby(records))


def _attributes(row: asyncpg.Record, demand: Demand) -> Attributes:
    values: Sequence[str] = row["values"] or ()
    return tuple(zip(demand.attributes, values, strict=True))


def _total(
    meter: str, row: asyncpg.Record, demand: Demand, *, units: int, events: tuple[tuple[int, int], ...] = ()
) -> Total:
    return Total(
        meter=meter,
        unit=row["unit"],
        scale=row["scale"],
        units=units,
        attributes=_attributes(row, demand),
        events=events,
    )
