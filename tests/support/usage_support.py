"""A producer's log in memory, cut into batches in any way: the obvious encoder that tests send usage with."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from tollkeeper_ledger.domain.usage import (
    FLAG_DECREASE,
    FLAG_SYSTEM_ID,
    Hole,
    LevelChange,
    LevelName,
    UsageAppend,
    UsageColumns,
)
from tollkeeper_ledger.domain.usage_hash import content_hash, h_next, h_start, hole_hash

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID


@dataclass(frozen=True, slots=True)
class Use:
    """A usage record."""

    id: str
    tenant: str = "acme"
    event_us: int = 0
    received_us: int = 0
    quantities: tuple[tuple[str, int], ...] = (("requests", 1),)
    attributes: tuple[tuple[str, str], ...] = ()
    flags: int = 0
    home: bytes = b""
    """The producer whose reservation it ends; empty = none, or its own."""
    levels: tuple[tuple[str, bytes, bytes, int, int], ...] = ()
    """What it changes of levels: limit of its tenant, key hash, holder, units, of these over."""

    def hash(self) -> bytes:
        """Give the content hash, the obvious way."""
        return content_hash(
            tenant=self.tenant,
            quantities=self.quantities,
            attributes=self.attributes,
            event_time_us=None if self.flags & FLAG_SYSTEM_ID else self.event_us,
        )


def level_use(
    limit: str, key: bytes, holder: bytes, units: int, *, now_us: int, falls: bool = False, over: int = 0
) -> Use:
    """Give a record that raises or lowers a level by `units`, `over` of them beyond its limit."""
    return Use(
        id=secrets.token_hex(8),
        event_us=now_us,
        received_us=now_us,
        quantities=(("tokens", units),),
        flags=FLAG_DECREASE if falls else 0,
        levels=((limit, key, holder, units, over),),
    )


Entry: TypeAlias = "Use | Hole"


def encode(uses: Sequence[Use]) -> UsageColumns:
    """Give records as columns, dictionaries in order of first use."""
    tenants: dict[str, int] = {}
    meters: dict[str, int] = {}
    names: dict[str, int] = {}
    values: dict[str, int] = {}
    quantities = [quantity for use in uses for quantity in use.quantities]
    attributes = [attribute for use in uses for attribute in use.attributes]
    homes: dict[bytes, int] = {}
    home = [1 + homes.setdefault(use.home, len(homes)) if use.home else 0 for use in uses]
    tenant = [tenants.setdefault(use.tenant, len(tenants)) for use in uses]
    meter = [meters.setdefault(name, len(meters)) for name, _ in quantities]
    attribute_name = [names.setdefault(name, len(names)) for name, _ in attributes]
    attribute_value = [values.setdefault(value, len(values)) for _, value in attributes]
    return UsageColumns(
        tenants=list(tenants),
        meters=list(meters),
        attribute_names=list(names),
        attribute_values=list(values),
        ids=[use.id for use in uses],
        tenant=tenant,
        event_time_us=_differences([use.event_us for use in uses]),
        received_us=_differences([use.received_us for use in uses]),
        flags=[use.flags for use in uses],
        quantity_count=[len(use.quantities) for use in uses],
        attribute_count=[len(use.attributes) for use in uses],
        meter=meter,
        units=[units for _, units in quantities],
        attribute_name=attribute_name,
        attribute_value=attribute_value,
        homes=list(homes),
        home=home if homes else [],
        level_changes=[
            LevelChange(at, LevelName(use.tenant, limit, key), holder, units, over)
            for at, use in enumerate(uses)
            for limit, key, holder, units, over in use.levels
        ],
    )


def _differences(times: Sequence[int]) -> list[int]:
    return [now - before for before, now in zip([0, *times], times, strict=False)]


@dataclass(slots=True)
class Log:
    """What one producer has recorded, in order, with h after each entry."""

    producer_id: UUID
    incarnation: int = 1
    entries: list[Entry] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    chain: list[bytes] = field(default_factory=list)

    @property
    def last_seq(self) -> int:
        """Give the last sequence number taken; 0 = none."""
        return self.ends[-1] if self.ends else 0

    def h(self, entries: int) -> bytes:
        """Give h after so many entries."""
        return self.chain[entries - 1] if entries else h_start(self.producer_id.bytes)

    def record(self, *uses: Use) -> None:
        """Append records."""
        for use in uses:
            self._append(use, use.hash(), self.last_seq + 1)

    def lose(self, count: int, reason: str = "CRC") -> None:
        """Append a hole that takes so many numbers."""
        first, last = self.last_seq + 1, self.last_seq + count
        self._append(Hole(first_seq=first, last_seq=last, reason=reason), hole_hash(first, last), last)

    def _append(self, entry: Entry, entry_hash: bytes, end: int) -> None:
        h = h_next(self.h(len(self.entries)), entry_hash)
        self.entries.append(entry)
        self.ends.append(end)
        self.chain.append(h)

    def cut(
        self,
        first: int = 0,
        last: int | None = None,
        *,
        watermark_us: int = 0,
        tenants_served: Sequence[str] = (),
        closing: bool = False,
    ) -> UsageAppend:
        """Give the entries from `first` up to, not with, `last` as a batch."""
        run = self.entries[first:last]
        return UsageAppend(
            producer_id=self.producer_id,
            incarnation=self.incarnation,
            first_seq=(self.ends[first - 1] if first else 0) + 1,
            h_before=self.h(first),
            columns=encode([entry for entry in run if isinstance(entry, Use)]),
            holes=[entry for entry in run if isinstance(entry, Hole)],
            watermark_us=watermark_us,
            tenants_served=tenants_served,
            closing=closing,
        )
