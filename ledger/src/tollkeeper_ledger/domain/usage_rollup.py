"""Sum records per (tenant, segment, meter, dimensions) and minute, and what else their aggregations need. Exact.

What is additive is kept per segment, so that a close cuts exactly; states of other aggregations serve reports and are
kept per quarter of an hour, which every time zone's hours and days consist of.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from tollkeeper_ledger.domain.usage import (
    FLAG_DECREASE,
    FLAG_VOID,
    ID_BYTES_MAX,
    MINUTE_US,
    VOID_PREFIX,
    WIDEST,
    TimeSpan,
)
from tollkeeper_ledger.domain.usage_aggregate import STATEFUL, Aggregation, Point, state_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.usage_aggregate import State

QUARTER_US = 15 * MINUTE_US
NO_DIMENSIONS = "{}"
VALUE_HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class MeterFacts:
    """What the catalogue says of a meter for its rollups."""

    meter_id: int
    aggregation: Aggregation
    dimensions: tuple[str, ...] = ()
    """Attributes that split its rollups."""
    value_attribute: str = ""
    """Aggregation unique: the attribute whose distinct values are counted."""
    hidden: tuple[str, ...] = ()
    """Attributes that its records store as pseudonyms."""
    span: TimeSpan = WIDEST
    """How far an event may lie from its receive time."""

    @property
    def is_tracked(self) -> bool:
        """Say whether it needs more than sums."""
        return self.aggregation in STATEFUL or self.aggregation is Aggregation.UNIQUE


def hidden_by(meters: Iterable[str], facts: Mapping[str, MeterFacts]) -> set[str]:
    """Give the attributes that some of these meters hide; who is unknown hides none."""
    return {name for meter in meters if meter in facts for name in facts[meter].hidden}


class RollupKey(NamedTuple):
    """Name one sum. Sorted keys are the order in which transactions lock them."""

    tenant_id: UUID
    segment_id: UUID
    meter_id: int
    dims: str
    start_us: int


class StateKey(NamedTuple):
    """Name one state. Sorted keys are the order in which transactions lock them."""

    tenant_id: UUID
    meter_id: int
    dims: str
    start_us: int


class ValueKey(NamedTuple):
    """Name one distinct value of a quarter of an hour."""

    tenant_id: UUID
    segment_id: UUID
    meter_id: int
    dims: str
    start_us: int
    value: bytes
    """The first 128 bits of its SHA-256."""


class RollupSum(NamedTuple):
    """A sum and how many records are in it; voids count -1."""

    units: int
    records: int


class RawRecord(NamedTuple):
    """A stored record as rollups see it."""

    tenant_id: UUID
    segment_id: UUID
    flags: int
    event_us: int
    id: str
    quantities: Sequence[tuple[int, int]]
    """Meter id, units."""
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rollups:
    """Everything that is derived from a set of records."""

    minutes: dict[RollupKey, RollupSum] = field(default_factory=dict)
    quarters: dict[RollupKey, RollupSum] = field(default_factory=dict)
    states: dict[StateKey, State] = field(default_factory=dict)
    values: dict[ValueKey, int] = field(default_factory=dict)
    """Records per distinct value."""


def sign_of(flags: int) -> tuple[int, int]:
    """Give what a record's units and the record itself count for in sums: 1 or -1 each."""
    record = -1 if flags & FLAG_VOID else 1
    return (-record if flags & FLAG_DECREASE else record, record)


def dims_of(meter: MeterFacts, attributes: Mapping[str, str]) -> str:
    """Give the values of the meter's dimensions as canonical JSON; those that a record lacks are left out."""
    named = {name: attributes[name] for name in sorted(meter.dimensions) if name in attributes}
    return json.dumps(named, ensure_ascii=False, separators=(",", ":")) if named else NO_DIMENSIONS


def hash_of_value(value: str) -> bytes:
    """Give the name of a distinct value."""
    return sha256(value.encode()).digest()[:VALUE_HASH_BYTES]


def void_id_of(record_id: str) -> str:
    """Give the id of the record that voids another one; fits an id's bound."""
    plain = VOID_PREFIX + record_id
    if len(plain.encode()) <= ID_BYTES_MAX:
        return plain
    return f"{VOID_PREFIX}#{sha256(record_id.encode()).hexdigest()}"


class Part(NamedTuple):
    """Records of a batch that share tenant, segment and flags."""

    tenant_id: UUID
    segment_id: UUID
    flags: int


@dataclass(frozen=True, slots=True)
class Labels:
    """Which sums each quantity of a batch's records adds to, beside its tenant, segment and time."""

    label: Sequence[int]
    """Per record: index into `lines`."""
    lines: Sequence[Sequence[int]]
    """Per label: indexes into `series`, one for each of the record's quantities, in their order."""
    series: Sequence[tuple[int, str]]
    """Meter ids and dimensions, ascending."""


def label_batch(
    *, shape: Sequence[int], shape_meters: Sequence[Sequence[MeterFacts]], attributes: Sequence[str]
) -> Labels:
    """Label records by what of them names sums: each combination is looked at once.

    `shape` points per record into `shape_meters`, meters in the order of the record's units. `attributes` are canonical
    JSON.
    """
    splits = [any(meter.dimensions for meter in meters) for meters in shape_meters]
    places: dict[tuple[int, str], int] = {}
    label = [
        places.setdefault((form, text if splits[form] else NO_DIMENSIONS), len(places))
        for form, text in zip(shape, attributes, strict=True)
    ]
    named = [_named(shape_meters[form], text) for form, text in places]
    series = sorted({one for line in named for one in line})
    rank = {one: at for at, one in enumerate(series)}
    return Labels(label, [[rank[one] for one in line] for line in named], series)


def _named(meters: Sequence[MeterFacts], text: str) -> list[tuple[int, str]]:
    """Give what stands for each meter in keys of records with these attributes: its number and its dimensions."""
    named: Mapping[str, str] = {} if text == NO_DIMENSIONS else json.loads(text)
    return [(meter.meter_id, dims_of(meter, named) if meter.dimensions else NO_DIMENSIONS) for meter in meters]


def quarters_of(minutes: Mapping[RollupKey, RollupSum]) -> dict[RollupKey, RollupSum]:
    """Sum minutes per quarter of an hour, in key order where the minutes are."""
    sums: dict[RollupKey, RollupSum] = {}
    for key, (units, records) in minutes.items():
        name = key._replace(start_us=key.start_us - key.start_us % QUARTER_US)
        total, count = sums.get(name, (0, 0))
        sums[name] = RollupSum(total + units, count + records)
    return sums


def without_voided(records: Sequence[RawRecord]) -> list[RawRecord]:
    """Give the records that are no voids and that no void among them names."""
    voids = {(record.tenant_id, record.id) for record in records if record.flags & FLAG_VOID}
    return [
        record
        for record in records
        if not record.flags & FLAG_VOID and (not voids or (record.tenant_id, void_id_of(record.id)) not in voids)
    ]


def points_of(records: Iterable[RawRecord], meters: Mapping[int, MeterFacts]) -> dict[StateKey, list[Point]]:
    """Give what records say of meters whose aggregation has a state, by quarter of an hour. None of them is a void."""
    points: dict[StateKey, list[Point]] = {}
    for record in records:
        start = record.event_us - record.event_us % QUARTER_US
        sign, _ = sign_of(record.flags)
        for meter_id, units in record.quantities:
            meter = meters[meter_id]
            if meter.aggregation in STATEFUL:
                key = StateKey(record.tenant_id, meter_id, dims_of(meter, record.attributes), start)
                points.setdefault(key, []).append(Point(record.event_us, record.id, sign * units))
    return points


def states_of(records: Iterable[RawRecord], meters: Mapping[int, MeterFacts]) -> dict[StateKey, State]:
    """Give the states of records, none of them a void, in key order."""
    points = points_of(records, meters)
    return {key: state_of(meters[key.meter_id].aggregation, points[key]) for key in sorted(points)}


def values_of(records: Iterable[RawRecord], meters: Mapping[int, MeterFacts]) -> dict[ValueKey, int]:
    """Count records per distinct value, voids as -1, in key order. A record without the attribute has no value."""
    counts: dict[ValueKey, int] = {}
    for record in records:
        _, count = sign_of(record.flags)
        start = record.event_us - record.event_us % QUARTER_US
        for meter_id, _units in record.quantities:
            meter = meters[meter_id]
            value = record.attributes.get(meter.value_attribute) if meter.value_attribute else None
            if value is not None:
                dims = dims_of(meter, record.attributes)
                key = ValueKey(record.tenant_id, record.segment_id, meter_id, dims, start, hash_of_value(value))
                counts[key] = counts.get(key, 0) + count
    return dict(sorted(counts.items()))


def roll_up(records: Sequence[RawRecord], meters: Mapping[int, MeterFacts]) -> Rollups:
    """Derive everything from stored records, one after the other: the obvious way, for checking and rebuilding.

    Whoever voids a record is among them where that record is.
    """
    minutes: dict[RollupKey, RollupSum] = {}
    for record in records:
        sign, count = sign_of(record.flags)
        for meter_id, units in record.quantities:
            start = record.event_us - record.event_us % MINUTE_US
            dims = dims_of(meters[meter_id], record.attributes)
            key = RollupKey(record.tenant_id, record.segment_id, meter_id, dims, start)
            total, found = minutes.get(key, (0, 0))
            minutes[key] = RollupSum(total + sign * units, found + count)
    kept = {key: minutes[key] for key in sorted(minutes)}
    return Rollups(
        minutes={key: total for key, total in kept.items() if any(total)},
        quarters={key: total for key, total in quarters_of(kept).items() if any(total)},
        states=states_of(without_voided(records), meters),
        values={key: count for key, count in values_of(records, meters).items() if count},
    )
