"""Sum records per (tenant, segment, meter, minute). Exact: Python integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage import MINUTE_US

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID


@dataclass(frozen=True, slots=True, order=True)
class RollupKey:
    """Name one sum. Sorted keys are the order in which transactions lock them."""

    tenant_id: UUID
    segment_id: UUID
    meter_id: int
    minute_us: int


@dataclass(frozen=True, slots=True)
class RollupSum:
    """A sum and how many records are in it."""

    units: int
    records: int


def roll_up(
    *,
    part: Sequence[int],
    parts: Sequence[tuple[UUID, UUID]],
    event_us: Sequence[int],
    shape: Sequence[int],
    shape_meters: Sequence[Sequence[int]],
    units: Sequence[tuple[int, ...]],
) -> list[tuple[RollupKey, RollupSum]]:
    """Sum a batch, in key order.

    `part` points per record into `parts`, pairs of tenant and segment; `shape` into `shape_meters`, meter ids in the
    order of the record's units.
    """
    gathered: dict[tuple[int, int, int], list[tuple[int, ...]]] = {}
    for record_part, at, record_shape, amounts in zip(part, event_us, shape, units, strict=True):
        key = (record_part, record_shape, at // MINUTE_US)
        group = gathered.get(key)
        if group is None:
            gathered[key] = [amounts]
        else:
            group.append(amounts)
    sums: dict[tuple[UUID, UUID, int, int], tuple[int, int]] = {}
    for (record_part, record_shape, minute), group in gathered.items():
        tenant_id, segment_id = parts[record_part]
        for meter_id, column in zip(shape_meters[record_shape], zip(*group, strict=True), strict=True):
            name = (tenant_id, segment_id, meter_id, minute * MINUTE_US)
            total, records = sums.get(name, (0, 0))
            sums[name] = (total + sum(column), records + len(group))
    ordered = sorted(sums.items())
    return [(RollupKey(*name), RollupSum(units=total, records=records)) for name, (total, records) in ordered]
