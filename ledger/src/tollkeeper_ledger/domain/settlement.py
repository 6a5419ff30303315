"""How a reservation ended: what its record says, and what whoever ends it is told. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from tollkeeper_ledger.domain.usage import (
    DAY_US,
    FLAG_EXCESS,
    FLAG_EXPIRED,
    FLAG_SYSTEM_ID,
    LATENESS_MAX_US,
    LevelChange,
    LevelName,
    UsageColumns,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tollkeeper_ledger.domain.usage_batch import Records, UsageBatch

TTL_MAX_US = 7 * DAY_US
"""How long a reservation may be open; its home spends what it held then, whatever it hears later."""
OUTCOME_KEPT_US = TTL_MAX_US + LATENESS_MAX_US
"""How long the ledger keeps an outcome for a home that does not come: by then nothing of it goes back to anybody, and a
record of the home's own about it is too late."""
_RECORD_ID = re.compile(r"r/([0-9a-f]{32})\Z")


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a token says of its reservation."""

    reservation_id: bytes
    """16 bytes."""
    tenant: str
    """Wire id."""
    home: UUID
    """The producer whose log holds it."""
    expires_us: int
    costs: tuple[tuple[str, int], ...]
    """Reserved units per meter, each meter once."""
    attributes: tuple[tuple[str, str], ...]
    """Of its usage record, in name order."""
    holder: bytes = b""
    """The process that took the units."""
    levels: tuple[tuple[str, int, LevelName], ...] = ()
    """Held of levels: meter, units, level."""

    @property
    def record_id(self) -> str:
        """The id of the record that ends it, whoever writes it: so exactly one outcome stands."""
        return f"r/{self.reservation_id.hex()}"


@dataclass(frozen=True, slots=True)
class Actual:
    """What was used, as whoever settles says."""

    quantities: tuple[tuple[str, int], ...]
    """Units per meter, each meter once; a reserved meter that is missing was not used."""
    attributes: tuple[tuple[str, str], ...]
    event_us: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a record ended a reservation of another producer."""

    tenant: int
    """Index into the batch's tenants."""
    reservation_id: bytes
    home: UUID
    shape: int
    """Index into the batch's shapes."""
    units: tuple[int, ...]
    """In the order of the shape's meters."""


def outcomes_elsewhere(batch: UsageBatch, records: Records) -> list[Outcome]:
    """Give the outcomes among stored records whose home is another producer than the batch's."""
    if not batch.source.columns.homes:
        return []
    homes = [UUID(bytes=home) for home in batch.source.columns.homes]
    found = []
    for tenant, record_id, home, shape, units in zip(
        records.tenant, records.ids, records.home, records.shape, records.units, strict=True
    ):
        named = _RECORD_ID.match(record_id)
        if named is not None and home and homes[home - 1] != batch.source.producer_id:
            found.append(Outcome(tenant, bytes.fromhex(named[1]), homes[home - 1], shape, units))
    return found


def end_columns(
    reservation: Reservation, actual: Actual | None, attributes: Sequence[tuple[str, str]], *, now_us: int
) -> UsageColumns:
    """Give the record that ends a reservation, as a batch of one; `actual` is None for a release."""
    given = actual.quantities if actual is not None else ()
    quantities = sorted(given or [(meter, 0) for meter, _ in reservation.costs], key=lambda one: one[0].encode())
    event_us = now_us if actual is None or actual.event_us is None else actual.event_us
    flags = FLAG_SYSTEM_ID
    if excess_of(reservation, dict(given)):
        flags |= FLAG_EXCESS
    if reservation.expires_us <= now_us:
        flags |= FLAG_EXPIRED
    return UsageColumns(
        tenants=[reservation.tenant],
        meters=[meter for meter, _ in quantities],
        attribute_names=[name for name, _ in attributes],
        attribute_values=[value for _, value in attributes],
        ids=[reservation.record_id],
        tenant=[0],
        event_time_us=[event_us],
        received_us=[now_us],
        flags=[flags],
        quantity_count=[len(quantities)],
        attribute_count=[len(attributes)],
        meter=range(len(quantities)),
        units=[units for _, units in quantities],
        attribute_name=range(len(attributes)),
        attribute_value=range(len(attributes)),
        homes=[reservation.home.bytes],
        home=[1],
        level_changes=_rises(reservation, dict(given)),
    )


def _rises(reservation: Reservation, used: Mapping[str, int]) -> list[LevelChange]:
    """Give what the end makes levels rise by; where nothing is held of what was reserved, all is beyond the limit."""
    reserved = dict(reservation.costs)
    rises = []
    for meter, held, level in reservation.levels:
        units = used.get(meter, 0)
        over = units if held == 0 and reserved.get(meter, 0) > 0 else 0
        if units > 0:
            rises.append(LevelChange(0, level, reservation.holder, units, over))
    return rises


def refund_of(reservation: Reservation, used: Mapping[str, int]) -> list[tuple[str, int]]:
    """Give the reserved units per meter that were not used."""
    return [(meter, units - used.get(meter, 0)) for meter, units in reservation.costs if units > used.get(meter, 0)]


def excess_of(reservation: Reservation, used: Mapping[str, int]) -> list[tuple[str, int]]:
    """Give the used units per reserved meter that were not reserved."""
    return [(meter, used.get(meter, 0) - units) for meter, units in reservation.costs if used.get(meter, 0) > units]
