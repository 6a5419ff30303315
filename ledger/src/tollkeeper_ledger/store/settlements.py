"""Outcomes of reservations in Postgres, kept until their home has taken them in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.literals import array_literal
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection

SETTLEMENTS_CHANNEL = "tollkeeper_settlements"
_HOMES_PER_NOTICE = 200


@dataclass(frozen=True, slots=True)
class NewSettlement:
    """An outcome to keep."""

    tenant_id: UUID
    reservation_id: bytes
    home: UUID
    meter_ids: Sequence[int]
    units: Sequence[int]


@dataclass(frozen=True, slots=True)
class Settled:
    """An outcome that is kept."""

    reservation_id: bytes
    units: dict[str, int]
    """Per meter name."""


@dataclass(frozen=True, slots=True)
class EndRecord:
    """The stored record that ended a reservation."""

    flags: int
    units: dict[str, int]
    """Per meter name."""


async def add_settlements(conn: Connection, settlements: Sequence[NewSettlement], *, now: datetime) -> None:
    """Keep outcomes and announce their homes at commit. Idempotent."""
    await conn.execute(
        sql("settlements.add"),
        [one.tenant_id for one in settlements],
        [one.reservation_id for one in settlements],
        [one.home for one in settlements],
        [array_literal(one.meter_ids) for one in settlements],
        [array_literal(one.units) for one in settlements],
        now,
    )
    homes = sorted({one.home.hex for one in settlements})
    for begin in range(0, len(homes), _HOMES_PER_NOTICE):
        text = ",".join(homes[begin : begin + _HOMES_PER_NOTICE])
        await conn.execute(sql("installation.notify"), SETTLEMENTS_CHANNEL, text)


async def settlements_of(conn: Connection, home: UUID, *, after: bytes, count: int) -> list[Settled]:
    """Give up to `count` outcomes that a home has not taken in, in order of reservation id, from `after` on."""
    rows = await conn.fetch(sql("settlements.of_home"), home, after, count)
    return [
        Settled(reservation_id=row["reservation_id"], units=dict(zip(row["meters"], row["units"], strict=True)))
        for row in rows
    ]


async def forget_settlements(conn: Connection, home: UUID, reservation_ids: Sequence[bytes]) -> None:
    """Forget outcomes that their home has taken in. Those of another home stay."""
    await conn.execute(sql("settlements.forget"), home, reservation_ids)


async def expire_settlements(conn: Connection, *, before: datetime, count_max: int) -> int:
    """Forget the oldest outcomes committed before a time, at most so many, whether taken in or not; give how many."""
    gone: int = await conn.fetchval(sql("settlements.expire"), before, count_max)
    return gone


async def find_end(conn: Connection, tenant_id: UUID, record_id: str) -> EndRecord | None:
    """Give the record that ended a reservation; None where none is stored."""
    row = await conn.fetchrow(sql("settlements.end_of"), tenant_id, record_id)
    if row is None:
        return None
    return EndRecord(flags=row["flags"], units=dict(zip(row["meters"], row["units"], strict=True)))
