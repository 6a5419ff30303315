"""Records that take others back. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage import FLAG_DECREASE, FLAG_SYSTEM_ID, FLAG_VOID
from tollkeeper_ledger.domain.usage_columns import Use, columns_of
from tollkeeper_ledger.domain.usage_rollup import void_id_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tollkeeper_ledger.domain.usage import UsageColumns


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
    return columns_of(
        [
            Use(
                tenant=tenant,
                id=void_id_of(record.id),
                event_us=record.event_us,
                quantities=record.quantities,
                attributes=sorted(record.attributes.items()),
                flags=FLAG_VOID | FLAG_SYSTEM_ID | record.flags & FLAG_DECREASE,
            )
            for record in records
        ],
        received_us=now_us,
    )
