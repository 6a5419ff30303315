"""Everything that is derived from usage records, in Postgres: sums, distinct values, states of other aggregations."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.usage import MINUTE_US, TimeSpan
from tollkeeper_ledger.domain.usage_aggregate import Aggregation
from tollkeeper_ledger.domain.usage_rollup import QUARTER_US, MeterFacts, RawRecord, sign_of
from tollkeeper_ledger.store.literals import array_literal, number_literal
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.usage_aggregate import State
    from tollkeeper_ledger.domain.usage_rollup import Labels, Part, RollupKey, RollupSum, StateKey, ValueKey
    from tollkeeper_ledger.store.pool import Connection, Row
    from tollkeeper_ledger.store.usage_batches import RecordTexts

_UUID_LETTERS = 36
QUARTER = timedelta(microseconds=QUARTER_US)


async def find_meters(conn: Connection, names: Iterable[str]) -> dict[str, MeterFacts]:
    """Give those meters that exist, by name."""
    rows = await conn.fetch(sql("usage.meters_named"), [name for name in names if "\0" not in name])
    return {row["name"]: meter_facts(row) for row in rows}


async def all_meters(conn: Connection) -> dict[str, MeterFacts]:
    """Give every meter, by name."""
    return {row["name"]: meter_facts(row) for row in await conn.fetch(sql("usage.meters_all"))}


def meter_facts(row: Row) -> MeterFacts:
    """Give what a meter's row says for its rollups."""
    return MeterFacts(
        meter_id=row["meter_id"],
        aggregation=Aggregation(row["aggregation"]),
        dimensions=tuple(row["dimensions"]),
        value_attribute=row["value_attribute"],
        hidden=tuple(row["pseudonymised"]),
        span=TimeSpan(late_us=row["late_max_s"] * 1_000_000, early_us=row["early_max_s"] * 1_000_000),
    )


async def add_sums(
    conn: Connection, minutes: Mapping[RollupKey, RollupSum], quarters: Mapping[RollupKey, RollupSum]
) -> None:
    """Add to the sums per minute and per quarter of an hour, locking either in the order given. Months must exist."""
    await conn.execute(sql("usage.add_sums"), *await asyncio.to_thread(_sum_arguments, minutes, quarters))


def _sum_arguments(minutes: Mapping[RollupKey, RollupSum], quarters: Mapping[RollupKey, RollupSum]) -> tuple[str, ...]:
    """Give the arguments of `add_sums`: ids are long and repeat, so sums point to pairs of tenant and segment."""
    pairs: dict[tuple[UUID, UUID], int] = {}
    columns = [text for sums in (minutes, quarters) for text in _sum_columns(sums, pairs)]
    return (
        array_literal(tenant_id for tenant_id, _ in pairs),
        array_literal(segment_id for _, segment_id in pairs),
        *columns,
    )


def _sum_columns(
    sums: Mapping[RollupKey, RollupSum], pairs: dict[tuple[UUID, UUID], int]
) -> tuple[str, str, str, str, str, str]:
    """Give sums as columns, tenants and segments by their place in `pairs`, which grows."""
    return (
        array_literal([pairs.setdefault((key.tenant_id, key.segment_id), len(pairs) + 1) for key in sums]),
        array_literal([key.meter_id for key in sums]),
        "\n".join([key.dims for key in sums]),
        array_literal([key.start_us for key in sums]),
        array_literal([total.units for total in sums.values()]),
        array_literal([total.records for total in sums.values()]),
    )


@dataclass(frozen=True, slots=True)
class RecordSums:
    """What records add to sums, as a statement takes it."""

    tenant_ids: Sequence[UUID]
    """Per part: its tenant."""
    first_us: int
    last_us: int
    """Event times of the first and the last record."""
    arguments: tuple[str, ...]


def record_sums(parts: Sequence[Part], labels: Labels, texts: RecordTexts, event_us: Sequence[int]) -> RecordSums:
    """Make text of what sums need beside the records' own texts. CPU-bound. `parts` are those of the texts."""
    # Texts of ids ascend as Postgres' ids do, and two in one compare faster than two.
    pairs = list(map(str.__add__, texts.tenants, texts.segments))
    ordered = sorted(set(pairs))
    rank = {pair: at for at, pair in enumerate(ordered, 1)}
    signs = {flags: sign_of(flags) for flags in {of.flags for of in parts}}
    lines = [(label, place, series) for label, line in enumerate(labels.lines) for place, series in enumerate(line)]
    arguments = (
        array_literal([pair[:_UUID_LETTERS] for pair in ordered]),
        array_literal([pair[_UUID_LETTERS:] for pair in ordered]),
        number_literal([rank[pair] for pair in pairs]),
        number_literal([signs[of.flags][0] for of in parts]),
        number_literal([signs[of.flags][1] for of in parts]),
        number_literal([meter_id for meter_id, _ in labels.series]),
        "\n".join([dims for _, dims in labels.series]),
        number_literal([label for label, _, _ in lines]),
        number_literal([place + 1 for _, place, _ in lines]),
        number_literal([series + 1 for _, _, series in lines]),
        texts.part,
        number_literal(labels.label),
        number_literal([at // MINUTE_US for at in event_us]),
        texts.units,
    )
    return RecordSums([of.tenant_id for of in parts], min(event_us), max(event_us), arguments)


async def add_record_sums(conn: Connection, sums: RecordSums) -> None:
    """Add records to the sums per minute and per quarter of an hour, locking either in key order. Months must exist."""
    await conn.execute(sql("usage.add_record_sums"), *sums.arguments)


async def add_values(conn: Connection, counts: Mapping[ValueKey, int]) -> None:
    """Count records per distinct value, locking them in the order given. Their months must exist."""
    await conn.execute(
        sql("usage.add_values"),
        [key.tenant_id for key in counts],
        [key.segment_id for key in counts],
        [key.meter_id for key in counts],
        [key.dims for key in counts],
        [key.start_us for key in counts],
        [key.value for key in counts],
        list(counts.values()),
    )


async def drop_empty(conn: Connection, tenant_ids: Collection[UUID], *, first_us: int, last_us: int) -> None:
    """Drop sums and values in which voids left nothing, of quarters of an hour that hold these event times."""
    first = from_us(first_us - first_us % QUARTER_US)
    for name in ("usage.drop_empty_minutes", "usage.drop_empty_quarters", "usage.drop_empty_values"):
        await conn.execute(sql(name), list(tenant_ids), first, from_us(last_us))


async def drop_hour(conn: Connection, tenant_ids: Collection[UUID], start: datetime, end: datetime) -> None:
    """Drop everything that is derived of tenants' records of a span of whole quarters of an hour."""
    for name in ("usage.drop_minutes_of", "usage.drop_quarters_of", "usage.drop_states_of", "usage.drop_values_of"):
        await conn.execute(sql(name), list(tenant_ids), start, end)


async def lock_states(conn: Connection, keys: Sequence[StateKey]) -> list[State | None]:
    """Lock states in the order given, new ones as well, and give them; None where it is new."""
    arguments = _state_columns(keys)
    await conn.execute(sql("usage.need_states"), *arguments)
    rows = await conn.fetch(sql("usage.lock_states"), *arguments)
    return [row["state"] for row in rows]


async def write_states(conn: Connection, states: Mapping[StateKey, State | None]) -> None:
    """Write states that are locked; those of no records are dropped."""
    kept = {key: state for key, state in states.items() if state is not None}
    if kept:
        await conn.execute(sql("usage.write_states"), *_state_columns(kept), "\n".join(map(json.dumps, kept.values())))
    gone = [key for key, state in states.items() if state is None]
    if gone:
        await conn.execute(sql("usage.drop_states"), *_state_columns(gone))


def _state_columns(keys: Iterable[StateKey]) -> tuple[list[Any], ...]:
    ordered = list(keys)
    return (
        [key.tenant_id for key in ordered],
        [key.meter_id for key in ordered],
        [key.dims for key in ordered],
        [key.start_us for key in ordered],
    )


async def records_of_quarters(
    conn: Connection, quarters: Collection[tuple[UUID, int]], meter_ids: Collection[int]
) -> list[RawRecord]:
    """Give the records of tenants' quarters of an hour, voids as well, with what they say of these meters."""
    rows = await conn.fetch(
        sql("usage.records_of_quarters"),
        [tenant_id for tenant_id, _ in quarters],
        [from_us(start_us) for _, start_us in quarters],
    )
    return [
        raw_record(row, zip(row["meter_ids"], row["units"], strict=True), row["attributes"], meter_ids) for row in rows
    ]


def raw_record(
    row: Row, quantities: Iterable[tuple[int, int]], attributes: Mapping[str, str], meter_ids: Collection[int]
) -> RawRecord:
    """Give a stored record as rollups see it, with what it says of these meters."""
    return RawRecord(
        tenant_id=row["tenant_id"],
        segment_id=row["segment_id"],
        flags=row["flags"],
        event_us=to_us(row["event_time"]),
        id=row["id"],
        quantities=[one for one in quantities if one[0] in meter_ids],
        attributes=attributes,
    )
