"""Records of the ledger's own making as a batch. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage import UsageColumns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.metric_series import Reading


@dataclass(frozen=True, slots=True)
class Use:
    """One usage record."""

    tenant: str
    id: str
    event_us: int
    quantities: Sequence[tuple[str, int]]
    """Meter, units."""
    attributes: Sequence[tuple[str, str]]
    flags: int = 0
    reading: Reading | None = None
    """Of a counter that only grows: what it stood at. Its units are what that adds, known when it is committed."""


def columns_of(uses: Sequence[Use], *, received_us: int) -> UsageColumns:
    """Give records, received at one time, as columns; dictionaries in order of first use."""
    tenants: dict[str, int] = {}
    meters: dict[str, int] = {}
    names: dict[str, int] = {}
    values: dict[str, int] = {}
    quantities = [one for use in uses for one in use.quantities]
    attributes = [one for use in uses for one in use.attributes]
    times = [use.event_us for use in uses]
    return UsageColumns(
        tenant=[tenants.setdefault(use.tenant, len(tenants)) for use in uses],
        meter=[meters.setdefault(meter, len(meters)) for meter, _ in quantities],
        attribute_name=[names.setdefault(name, len(names)) for name, _ in attributes],
        attribute_value=[values.setdefault(value, len(values)) for _, value in attributes],
        tenants=list(tenants),
        meters=list(meters),
        attribute_names=list(names),
        attribute_values=list(values),
        ids=[use.id for use in uses],
        event_time_us=[at - before for before, at in zip([0, *times], times, strict=False)],
        received_us=[received_us, *[0] * (len(uses) - 1)],
        flags=[use.flags for use in uses],
        quantity_count=[len(use.quantities) for use in uses],
        attribute_count=[len(use.attributes) for use in uses],
        units=[units for _, units in quantities],
    )
