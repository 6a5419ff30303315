"""What every aggregation should say, from a list of records in the obvious way, and what the ledger has of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.periods import to_us
from usage_bench import superuser

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usage_bench import Bench
    from usage_support import Use

MINUTE_US = 60_000_000
QUARTER_US = 900_000_000
KINDS = {
    "k_sum": ("sum", ["zone"], ""),
    "k_count": ("count", [], ""),
    "k_min": ("min", ["zone"], ""),
    "k_max": ("max", [], ""),
    "k_avg": ("avg", [], ""),
    "k_unique": ("unique", ["zone"], "user"),
    "k_latest": ("latest", [], ""),
    "k_gauge": ("time_weighted", ["zone"], ""),
    "k_tail": ("percentile", ["zone", "user"], ""),
}
"""Meters of every aggregation: aggregation, dimensions, attribute whose values are counted."""


async def add_kinds(bench: Bench) -> dict[str, int]:
    """Declare a meter of every aggregation; give their ids."""
    async with superuser(bench.url) as conn:
        for name, (aggregation, dimensions, value) in KINDS.items():
            await conn.execute(
                "INSERT INTO meter (seller_id, name, unit, aggregation, scale, attributes, pseudonymised, dimensions,"
                " value_attribute) VALUES ('seller', $1, 'units', $2, 0, '{zone,user}', '{}', $3, $4)"
                " ON CONFLICT DO NOTHING",
                name,
                aggregation,
                dimensions,
                value,
            )
        rows = await conn.fetch("SELECT name, meter_id FROM meter")
    return {row["name"]: row["meter_id"] for row in rows}


@dataclass(frozen=True, slots=True)
class Told:
    """Every derived figure, over all segments, by (tenant, meter, dimensions, start)."""

    minutes: dict[Any, tuple[int, int]]
    quarters: dict[Any, tuple[int, int]]
    values: dict[Any, int]
    states: dict[Any, Any]


def _gauge(points: list[tuple[int, str, int]]) -> list[Any]:
    area = 0
    for at in range(1, len(points)):
        area += (points[at][0] - points[at - 1][0]) * points[at - 1][2]
    return [points[0][0], points[0][1], area, *points[-1]]


def _bucket(units: int) -> str:
    """Find the bucket by trying: its lower bound and width, up from 0."""
    number, low, width = 0, 0, 1
    while not low <= max(0, units) < low + width:
        number, low = number + 1, low + width
        if number >= 128 and number % 64 == 0:
            width *= 2
    return str(number)


def _histogram(points: list[tuple[int, str, int]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _, _, units in points:
        counts[_bucket(units)] = counts.get(_bucket(units), 0) + 1
    return counts


def expected(uses: Iterable[Use]) -> Told:
    """Give every figure of records that were stored and not voided."""
    minutes: dict[Any, tuple[int, int]] = {}
    quarters: dict[Any, tuple[int, int]] = {}
    values: dict[Any, int] = {}
    points: dict[Any, list[tuple[int, str, int]]] = {}
    for use in uses:
        attributes = dict(use.attributes)
        sign = -1 if use.flags & 16 else 1
        for meter, units in use.quantities:
            kind, dimensions, value = KINDS.get(meter, ("sum", [], ""))
            dims = {name: attributes[name] for name in sorted(dimensions) if name in attributes}
            dims_text = json.dumps(dims, ensure_ascii=False, separators=(",", ":"))
            for told, width in ((minutes, MINUTE_US), (quarters, QUARTER_US)):
                key = (use.tenant, meter, dims_text, use.event_us // width * width)
                total, records = told.get(key, (0, 0))
                told[key] = (total + sign * units, records + 1)
            key = (use.tenant, meter, dims_text, use.event_us // QUARTER_US * QUARTER_US)
            if value and value in attributes:
                name = (*key, sha256(attributes[value].encode()).digest()[:16])
                values[name] = values.get(name, 0) + 1
            if kind in ("min", "max", "latest", "time_weighted", "percentile"):
                points.setdefault((kind, *key), []).append((use.event_us, use.id, sign * units))
    makers = {
        "min": lambda found: [min(units for _, _, units in found)],
        "max": lambda found: [max(units for _, _, units in found)],
        "latest": lambda found: list(max(found)),
        "time_weighted": lambda found: _gauge(sorted(found)),
        "percentile": _histogram,
    }
    states = {key[1:]: makers[key[0]](found) for key, found in points.items()}
    return Told(minutes=minutes, quarters=quarters, values=values, states=states)


async def kept(bench: Bench) -> Told:
    """Give every figure as the ledger keeps it."""
    async with superuser(bench.url) as conn:
        meters = {row["meter_id"]: row["name"] for row in await conn.fetch("SELECT * FROM meter")}
        tenants = {row["tenant_id"]: row["wire_id"] for row in await conn.fetch("SELECT * FROM tenant")}

        async def summed(table: str, column: str) -> dict[Any, tuple[int, int]]:
            rows = await conn.fetch(
                f"SELECT tenant_id, meter_id, dims, {column} AS start, sum(units) AS units, sum(records) AS records"  # noqa: S608
                f" FROM {table} GROUP BY 1, 2, 3, 4 HAVING sum(records) <> 0 OR sum(units) <> 0"
            )
            return {
                (tenants[row["tenant_id"]], meters[row["meter_id"]], row["dims"], to_us(row["start"])): (
                    int(row["units"]),
                    int(row["records"]),
                )
                for row in rows
            }

        values = await conn.fetch(
            "SELECT tenant_id, meter_id, dims, quarter, value, sum(records) AS records FROM usage_rollup_value"
            " GROUP BY 1, 2, 3, 4, 5 HAVING sum(records) <> 0"
        )
        states = await conn.fetch("SELECT * FROM usage_rollup_state")
        return Told(
            minutes=await summed("usage_rollup_minute", "minute"),
            quarters=await summed("usage_rollup_quarter", "quarter"),
            values={
                (
                    tenants[row["tenant_id"]],
                    meters[row["meter_id"]],
                    row["dims"],
                    to_us(row["quarter"]),
                    row["value"],
                ): int(row["records"])
                for row in values
            },
            states={
                (tenants[row["tenant_id"]], meters[row["meter_id"]], row["dims"], to_us(row["quarter"])): json.loads(
                    row["state"]
                )
                for row in states
            },
        )
