"""Records that take others back. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage import FLAG_DECREASE, FLAG_SYSTEM_ID, FLAG_VOID, UsageColumns
from tollkeeper_ledger.domain.usage_rollup import void_id_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """What the ledger holds of a record."""

    id: str
    event_us: int
    flags: int
    quantities: Sequence[tuple[str, int]]
    """Meter, units."""
    attributes: Mapping[str, str]


def void_columns(tenant: str, records: Sequence[StoredRecord], *, now_us: int) -> UsageColumns:
    """Give the voids of a tenant's records as a batch: the same time, quantities and attributes, other id and flags.

    Their ids are made of those that they void, so a record is taken back once.
    """
    meters: dict[str, int] = {}
    names: dict[str, int] = {}
    values: dict[str, int] = {}
    quantities = [one for record in records for one in record.quantities]
    attributes = [one for record in records for one in sorted(record.attributes.items())]
    times = [record.event_us for record in records]
    return UsageColumns(
        meter=[meters.setdefault(meter, len(meters)) for meter, _ in quantities],
        attribute_name=[names.setdefault(name, len(names)) for name, _ in attributes],
        attribute_value=[values.setdefault(value, len(values)) for _, value in attributes],
        tenants=[tenant],
        meters=list(meters),
        attribute_names=list(names),
        attribute_values=list(values),
        ids=[void_id_of(record.id) for record in records],
        tenant=[0] * len(records),
        event_time_us=[at - before for before, at in zip([0, *times], times, strict=False)],
        received_us=[now_us, *[0] * (len(records) - 1)],
        flags=[FLAG_VOID | FLAG_SYSTEM_ID | record.flags & FLAG_DECREASE for record in records],
        quantity_count=[len(record.quantities) for record in records],
        attribute_count=[len(record.attributes) for record in records],
        units=[units for _, units in quantities],
    )
