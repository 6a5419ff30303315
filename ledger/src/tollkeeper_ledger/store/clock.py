"""Ledger time in Postgres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.store.pool import SEARCH_PATH
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from datetime import datetime

    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class ClockReading:
    """Ledger time and how fast it runs."""

    now_us: int
    speed_milli: int
    version: int


async def ledger_now(conn: Connection) -> datetime:
    """Read ledger time. Never below what the ledger has kept as its floor."""
    now: datetime = await conn.fetchval(sql("installation.ledger_now"))
    return now


async def read_clock(conn: Connection) -> ClockReading:
    """Read ledger time with its setting."""
    row = await conn.fetchrow(sql("installation.clock"))
    if row is None:
        raise RuntimeError("clock_setting has no row: run `tollkeeper-ledger migrate`")
    return ClockReading(now_us=to_us(row["now"]), speed_milli=row["speed_milli"], version=row["version"])


async def set_clock(conn: Connection, *, now: datetime | None, speed_milli: int | None) -> ClockReading:
    """Set ledger time and speed; a `now` in the past of ledger time leaves time as it is.

    Does not wait for the disk: the clock of an embedded setup may lose its last steps with a crash of the machine.
    """
    row = await conn.fetchrow(sql("installation.set_clock"), now, speed_milli)
    if row is None:
        raise RuntimeError("clock_setting has no row: run `tollkeeper-ledger migrate`")
    return ClockReading(now_us=to_us(row["now"]), speed_milli=row["speed_milli"], version=row["version"])


async def start_clock(url: str, at: datetime) -> bool:
    """Start the clock of a fresh database at a time, also a past one; return whether it was fresh.

    A clock that was ever set stays as it is. Connects as the migrating user.
    """
    conn = await asyncpg.connect(url)
    try:
        await conn.execute(f"SET search_path = {SEARCH_PATH}")
        return await conn.fetchrow(sql("installation.start_clock"), at) is not None
    finally:
        await conn.close()
