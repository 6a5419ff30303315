"""Read a batch: check that it can be read as entries, hash every entry, and find what is wrong with single records.

Pure and without a look at any table, so it runs before a transaction begins. What a table must answer (does the tenant
exist, was the id stored before) comes later, in `services/usage.py`.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_right
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain import usage
from tollkeeper_ledger.domain.columns import chain, hash_records
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.usage import Problem, UsageAppend, UsageColumns, malformed
from tollkeeper_ledger.domain.usage_hash import hole_hash
from tollkeeper_ledger.domain.usage_rules import find_problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tollkeeper_ledger.domain.usage import Hole, LevelChange


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
    """Check, number, hash and chain a batch; `own`: the ledger made it. CPU-bound, about a microsecond a record.

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
        shapes, shape, units, found, place, hashes = hash_records(columns, event_us, usage.FLAG_SYSTEM_ID)
        struct.pack(f"<{len(received_us)}q", *received_us)
    except (struct.error, OverflowError) as error:
        raise malformed("records", "holds a number that 64 bits can't") from error
    except ValueError as error:
        raise malformed("records", "can't be hashed", value=str(error)) from error
    attributes = _attributes(found, columns)
    seqs, ends, chained = _number(append, hashes)
    records = Records(
        seqs=seqs,
        ids=columns.ids,
        tenant=columns.tenant,
        event_us=event_us,
        received_us=received_us,
        flags=columns.flags,
        shape=shape,
        units=units,
        attributes=[attributes[one] for one in place],
        hashes=hashes,
        home=columns.home or [0] * len(columns.ids),
    )
    return UsageBatch(
        source=append,
        last_seq=ends[-1] if ends else append.first_seq - 1,
        tenants=columns.tenants,
        meters=columns.meters,
        shapes=shapes,
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


def _attributes(found: Sequence[tuple[Sequence[int], Sequence[int]]], columns: UsageColumns) -> list[str]:
    """Give attributes as canonical JSON."""
    return [
        json.dumps(dict(sorted(pairs, key=lambda pair: pair[0].encode())), ensure_ascii=False, separators=(",", ":"))
        for pairs in (
            [(columns.attribute_names[name], columns.attribute_values[value]) for name, value in zip(*one, strict=True)]
            for one in found
        )
    ]


def _number(append: UsageAppend, hashes: Sequence[bytes]) -> tuple[Sequence[int], Sequence[int], list[bytes]]:
    """Give the records' sequence numbers, the entries' last numbers and h after each entry."""
    if not append.holes:
        numbers = range(append.first_seq, append.first_seq + len(hashes))
        if numbers and numbers[-1] > usage.SEQ_MAX:
            raise malformed("first_seq", "leaves no sequence numbers for the records", bound=str(usage.SEQ_MAX))
        return numbers, numbers, chain(append.h_before, hashes)
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
    return [*seqs, *rest], [*ends, *rest], chain(append.h_before, entries)


def holes_after(holes: Sequence[Hole], seq: int) -> list[Hole]:
    """Give the holes that end after `seq`."""
    return [hole for hole in holes if hole.last_seq > seq]
