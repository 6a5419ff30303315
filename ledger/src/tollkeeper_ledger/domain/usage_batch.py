"""Read a batch: check that it can be read as entries, hash every entry, and find what is wrong with single records.

Pure and without a look at any table, so it runs before a transaction begins. What a table must answer (does the tenant
exist, was the id stored before) comes later, in `services/usage.py`.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_right
from dataclasses import dataclass, fields
from hashlib import sha256
from itertools import accumulate, repeat
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain import usage
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.usage import Problem, UsageAppend, UsageColumns, malformed
from tollkeeper_ledger.domain.usage_hash import (
    EVENT_TIME_ABSENT,
    EVENT_TIME_PRESENT,
    content_head,
    count_bytes,
    hole_hash,
    string_bytes,
)
from tollkeeper_ledger.domain.usage_rules import find_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tollkeeper_ledger.domain.usage import Hole, LevelChange

_TIME = struct.Struct("<4sq")


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a batch as columns of equal length, in sequence order."""

    seqs: Sequence[int]
    ids: Sequence[str]
    tenant: Sequence[int]
    """Index into the batch's tenants."""
    event_us: Sequence[int]
    received_us: Sequence[int]
    flags: Sequence[int]
    shape: Sequence[int]
    """Index into the batch's shapes."""
    units: Sequence[tuple[int, ...]]
    """In the order of the shape's meters."""
    attributes: Sequence[str]
    """Canonical JSON."""
    hashes: Sequence[bytes]
    home: Sequence[int]
    """1 + index into the batch's homes of the reservation that the record ends elsewhere, 0 = none."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, places: Sequence[int]) -> Records:
        """Give the records at these places, ascending; all of them costs nothing."""
        if len(places) == len(self):
            return self
        columns = (getattr(self, field.name) for field in fields(self))
        return Records(*([column[place] for place in places] for column in columns))


@dataclass(frozen=True, slots=True)
class UsageBatch:
    """A batch that can be committed: entries numbered first_seq to last_seq, hashed and chained."""

    source: UsageAppend
    last_seq: int
    """first_seq - 1 where the batch has no entries."""
    tenants: Sequence[str]
    meters: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    """Per shape: indexes into meters, in bytewise name order."""
    records: Records
    problems: Mapping[int, Problem]
    """By record: what any ledger would refuse, whatever its tables say."""
    entry_ends: Sequence[int]
    """Per entry: its last sequence number."""
    entry_h: Sequence[bytes]
    """Per entry: h after it."""

    levels: Mapping[int, Sequence[LevelChange]]
    """By record: what it changes of levels."""

    def h_at(self, seq: int) -> bytes | None:
        """Give h after the entry that ends at `seq`; None where no entry of this batch ends there."""
        if seq == self.source.first_seq - 1:
            return self.source.h_before
        place = bisect_right(self.entry_ends, seq) - 1
        if place < 0 or self.entry_ends[place] != seq:
            return None
        return self.entry_h[place]


def read_batch(append: UsageAppend, *, own: bool = False) -> UsageBatch:
    """Check, number, hash and chain a batch; `own`: the ledger made it. CPU-bound, about 5 microseconds a record.

    Raises InvalidFieldError: FIELD_* for the envelope, BATCH_MALFORMED where the columns are no entries. A single
    record that breaks a rule is no error: it is named in `problems` and keeps its sequence number.
    """
    _check_envelope(append)
    _check_holes(append)
    columns = append.columns
    _check_columns(columns)
    event_us = list(accumulate(columns.event_time_us))
    received_us = list(accumulate(columns.received_us))
    try:
        hashed = _hash_records(columns, event_us)
        struct.pack(f"<{len(received_us)}q", *received_us)
    except (struct.error, OverflowError) as error:
        raise malformed("records", "holds a number that 64 bits can't") from error
    seqs, ends, chained = _number(append, hashed.hashes)
    records = Records(
        seqs=seqs,
        ids=columns.ids,
        tenant=columns.tenant,
        event_us=event_us,
        received_us=received_us,
        flags=columns.flags,
        shape=hashed.shape,
        units=hashed.units,
        attributes=hashed.attributes,
        hashes=hashed.hashes,
        home=columns.home or [0] * len(columns.ids),
    )
    return UsageBatch(
        source=append,
        last_seq=ends[-1] if ends else append.first_seq - 1,
        tenants=columns.tenants,
        meters=columns.meters,
        shapes=hashed.shapes,
        records=records,
        problems=find_problems(columns, own=own),
        entry_ends=ends,
        entry_h=chained,
        levels=_levels(columns),
    )


def _check_envelope(append: UsageAppend) -> None:
    if len(append.h_before) != usage.HASH_BYTES:
        raise InvalidFieldError(
            "h_before", "must be 32 bytes", reason="FIELD_INVALID", value=len(append.h_before), bound="32 bytes"
        )
    if not 1 <= append.first_seq <= usage.SEQ_MAX:
        raise InvalidFieldError(
            "first_seq",
            "is out of range",
            reason="FIELD_OUT_OF_RANGE",
            value=append.first_seq,
            bound=f"1 to {usage.SEQ_MAX}",
        )
    if len(append.tenants_served) > usage.TENANTS_SERVED_MAX:
        raise InvalidFieldError(
            "tenants_served",
            "has too many entries",
            reason="FIELD_TOO_LONG",
            value=len(append.tenants_served),
            bound=str(usage.TENANTS_SERVED_MAX),
        )


def _check_holes(append: UsageAppend) -> None:
    if len(append.holes) > usage.HOLES_MAX:
        raise malformed("holes", "has too many holes", value=len(append.holes), bound=str(usage.HOLES_MAX))
    for hole in append.holes:
        if len(hole.reason.encode()) > usage.HOLE_REASON_BYTES_MAX:
            raise malformed("holes.reason", "is too long", bound=f"{usage.HOLE_REASON_BYTES_MAX} bytes")
        if hole.content_hash and (len(hole.content_hash) != usage.HASH_BYTES or hole.first_seq != hole.last_seq):
            raise malformed("holes.content_hash", "must be that of one entry", bound=f"{usage.HASH_BYTES} bytes")


def _levels(columns: UsageColumns) -> dict[int, list[LevelChange]]:
    """Give level changes by record. Raises InvalidFieldError where one is none."""
    levels: dict[int, list[LevelChange]] = {}
    for change in columns.level_changes:
        if not (0 <= change.record < len(columns.ids) and 0 <= change.over <= change.units <= usage.UNITS_MAX):
            raise malformed("records.level_changes", "holds a change of no record or of no units")
        levels.setdefault(change.record, []).append(change)
    return levels


def _check_columns(columns: UsageColumns) -> None:
    count = len(columns.ids)
    if count > usage.RECORDS_MAX:
        raise malformed("records.ids", "has too many records", value=count, bound=str(usage.RECORDS_MAX))
    for field in ("tenant", "event_time_us", "received_us", "flags", "quantity_count", "attribute_count"):
        values: Sequence[int] = getattr(columns, field)
        if len(values) != count:
            raise malformed(f"records.{field}", "must have one value per record", value=len(values), bound=str(count))
    for counts, counted in (
        ("quantity_count", ("meter", "units")),
        ("attribute_count", ("attribute_name", "attribute_value")),
    ):
        total = sum(getattr(columns, counts))
        for field in counted:
            values = getattr(columns, field)
            if len(values) != total:
                raise malformed(
                    f"records.{field}", f"must be as long as {counts} sums to", value=len(values), bound=str(total)
                )
    _check_homes(columns)
    for field, dictionary in (
        ("tenant", columns.tenants),
        ("meter", columns.meters),
        ("attribute_name", columns.attribute_names),
        ("attribute_value", columns.attribute_values),
    ):
        values = getattr(columns, field)
        if values and not (min(values) >= 0 and max(values) < len(dictionary)):
            raise malformed(f"records.{field}", "points outside its dictionary", bound=f"0 to {len(dictionary) - 1}")


def _check_homes(columns: UsageColumns) -> None:
    count = len(columns.ids)
    if columns.home and len(columns.home) != count:
        raise malformed("records.home", "must have one value per record", value=len(columns.home), bound=str(count))
    if columns.home and not (min(columns.home) >= 0 and max(columns.home) <= len(columns.homes)):
        raise malformed("records.home", "points outside its dictionary", bound=f"0 to {len(columns.homes)}")
    if any(len(home) != usage.PRODUCER_BYTES for home in columns.homes):
        raise malformed("records.homes", "must be names of producers", bound=f"{usage.PRODUCER_BYTES} bytes each")


@dataclass(frozen=True, slots=True)
class _Shape:
    """Pack the quantities of records that carry the same meters."""

    index: int
    order: tuple[int, ...] | None
    """Where the record's order is not the meters' own: which quantity comes first, second, …"""
    pack: Callable[..., bytes]
    arguments: list[bytes | int]
    """What `pack` takes: constant bytes, units, constant bytes, units, …"""


@dataclass(frozen=True, slots=True)
class _Hashed:
    shapes: list[tuple[int, ...]]
    shape: list[int]
    units: list[tuple[int, ...]]
    attributes: list[str]
    hashes: list[bytes]


@dataclass(frozen=True, slots=True)
class _Quantities:
    """Quantities per record."""

    shapes: list[tuple[int, ...]]
    shape: list[int]
    units: list[tuple[int, ...]]
    packed: list[bytes]


def _hash_records(columns: UsageColumns, event_us: Sequence[int]) -> _Hashed:
    # Column by column, everything that repeats looked up by what it depends on: this sets the ledger's ingest rate.
    heads = [content_head(tenant) for tenant in columns.tenants]
    times = list(map(_TIME.pack, repeat(EVENT_TIME_PRESENT), event_us))
    if any(columns.flags):
        times = [
            EVENT_TIME_ABSENT if flags & usage.FLAG_SYSTEM_ID else time
            for flags, time in zip(columns.flags, times, strict=True)
        ]
    quantities = _alike(columns) if _are_alike(columns) else _each(columns)
    tails = _tails(columns)
    rows = zip(columns.tenant, quantities.packed, tails, times, strict=True)
    return _Hashed(
        shapes=quantities.shapes,
        shape=quantities.shape,
        units=quantities.units,
        attributes=[text for _, text in tails],
        hashes=[sha256(heads[tenant] + packed + tail + time).digest() for tenant, packed, (tail, _), time in rows],
    )


def _are_alike(columns: UsageColumns) -> bool:
    """Say whether there are records, and all carry the same meters in the same order."""
    counts, meters = columns.quantity_count, columns.meter
    if not counts or min(counts) != max(counts):
        return False
    return all(max(found) == min(found) for found in (meters[place :: counts[0]] for place in range(counts[0])))


def _alike(columns: UsageColumns) -> _Quantities:
    """Pack quantities of records that are alike: column by column, in C."""
    repeats, count = len(columns.quantity_count), columns.quantity_count[0]
    shapes: list[tuple[int, ...]] = []
    shape = _new_shape(tuple(columns.meter[:count]), columns.meters, shapes)
    units = [columns.units[place::count] for place in shape.order or range(count)]
    arguments: list[Iterable[bytes | int]] = [repeat(one, repeats) for one in shape.arguments]
    arguments[1::2] = units
    return _Quantities(
        shapes=shapes,
        shape=[shape.index] * repeats,
        units=list(zip(*units, strict=True)) if units else [()] * repeats,
        packed=list(map(shape.pack, *arguments)),
    )


def _each(columns: UsageColumns) -> _Quantities:
    """Pack the quantities of one record after the other."""
    shapes: dict[tuple[int, ...], _Shape] = {}
    found = _Quantities(shapes=[], shape=[], units=[], packed=[])
    at = 0
    for count in columns.quantity_count:
        quantities = slice(at, at := at + count)
        meters = tuple(columns.meter[quantities])
        shape = shapes.get(meters)
        if shape is None:
            shape = shapes[meters] = _new_shape(meters, columns.meters, found.shapes)
        units = tuple(columns.units[quantities])
        if shape.order is not None:
            units = tuple([units[place] for place in shape.order])
        arguments = shape.arguments.copy()
        arguments[1::2] = units
        found.shape.append(shape.index)
        found.units.append(units)
        found.packed.append(shape.pack(*arguments))
    return found


def _new_shape(meters: tuple[int, ...], names: Sequence[str], known: list[tuple[int, ...]]) -> _Shape:
    order = tuple(sorted(range(len(meters)), key=lambda place: names[meters[place]].encode()))
    ordered = tuple(meters[place] for place in order)
    constants = [string_bytes(names[meter]) for meter in ordered]
    head = count_bytes(len(meters))
    if not constants:
        layout, arguments = f"<{len(head)}s", [head]
    else:
        constants[0] = head + constants[0]
        layout = "<" + "".join(f"{len(constant)}sq" for constant in constants)
        arguments = constants
    if ordered in known:
        index = known.index(ordered)
    else:
        index = len(known)
        known.append(ordered)
    spread: list[bytes | int] = []
    for constant in arguments:
        spread += [constant, 0] if meters else [constant]
    return _Shape(
        index=index,
        order=None if order == tuple(range(len(meters))) else order,
        pack=struct.Struct(layout).pack,
        arguments=spread,
    )


def _tails(columns: UsageColumns) -> list[tuple[bytes, str]]:
    """Give per record what its attributes are in its hash, and as JSON."""
    counts = columns.attribute_count
    count = counts[0] if counts else 0
    keys: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]
    if count and min(counts) == max(counts):
        names = zip(*[columns.attribute_name[place::count] for place in range(count)], strict=True)
        values = zip(*[columns.attribute_value[place::count] for place in range(count)], strict=True)
        keys = list(zip(names, values, strict=True))
    else:
        ends = list(accumulate(counts))
        spans = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        keys = [(tuple(columns.attribute_name[span]), tuple(columns.attribute_value[span])) for span in spans]
    tails = {key: _new_tail(key, columns) for key in set(keys)}
    return [tails[key] for key in keys]


def _new_tail(key: tuple[tuple[int, ...], tuple[int, ...]], columns: UsageColumns) -> tuple[bytes, str]:
    pairs = [(columns.attribute_names[name], columns.attribute_values[value]) for name, value in zip(*key, strict=True)]
    pairs.sort(key=lambda pair: pair[0].encode())
    hashed = count_bytes(len(pairs)) + b"".join(string_bytes(name) + string_bytes(value) for name, value in pairs)
    return hashed, json.dumps(dict(pairs), ensure_ascii=False, separators=(",", ":"))


def _number(append: UsageAppend, hashes: Sequence[bytes]) -> tuple[Sequence[int], Sequence[int], list[bytes]]:
    """Give the records' sequence numbers, the entries' last numbers and h after each entry."""
    if not append.holes:
        numbers = range(append.first_seq, append.first_seq + len(hashes))
        if numbers and numbers[-1] > usage.SEQ_MAX:
            raise malformed("first_seq", "leaves no sequence numbers for the records", bound=str(usage.SEQ_MAX))
        return numbers, numbers, list(_chain(append.h_before, hashes))
    seqs: list[int] = []
    ends: list[int] = []
    entries: list[bytes] = []
    free = append.first_seq
    for hole in append.holes:
        count = hole.first_seq - free
        if count < 0 or hole.last_seq < hole.first_seq or hole.last_seq > usage.SEQ_MAX:
            raise malformed("holes", "must ascend, apart from each other", value=f"{hole.first_seq}-{hole.last_seq}")
        if count > len(hashes) - len(seqs):
            raise malformed("holes", "lie behind numbers that no record takes", value=f"{hole.first_seq}")
        entries += hashes[len(seqs) : len(seqs) + count]
        seqs += range(free, hole.first_seq)
        ends += [*range(free, hole.first_seq), hole.last_seq]
        entries.append(hole.content_hash or hole_hash(hole.first_seq, hole.last_seq))
        free = hole.last_seq + 1
    rest = range(free, free + len(hashes) - len(seqs))
    if rest and rest[-1] > usage.SEQ_MAX:
        raise malformed("holes", "leave no sequence numbers for the records", bound=str(usage.SEQ_MAX))
    entries += hashes[len(seqs) :]
    return [*seqs, *rest], [*ends, *rest], list(_chain(append.h_before, entries))


def _chain(h: bytes, entries: Sequence[bytes]) -> Sequence[bytes]:
    chained = []
    for entry in entries:
        h = sha256(h + entry).digest()
        chained.append(h)
    return chained


def holes_after(holes: Sequence[Hole], seq: int) -> list[Hole]:
    """Give the holes that end after `seq`."""
    return [hole for hole in holes if hole.last_seq > seq]
