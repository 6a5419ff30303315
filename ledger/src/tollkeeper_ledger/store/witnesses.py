"""Witnesses in Postgres, and where the installation stands after restores and jumps of the clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.issuing import Issuing, Witness
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class Committing:
    """A witness that this transaction commits, what may be issued, and whether the newest one shown is there."""

    witness: Witness
    issuing: Issuing
    is_known: bool


@dataclass(frozen=True, slots=True)
class LedgerState:
    """Where the ledger stands; times are microseconds, None = never or not now."""

    installation_id: bytes
    timeline: int
    restored_at_us: int | None
    frozen_before_us: int
    learning_until_us: int
    held_at_us: int | None
    jump_us: int | None


async def commit_witness(conn: Connection, *, value: bytes, newest: Witness) -> Committing:
    """Add a witness to the transaction and look for the newest one that anybody has shown."""
    row = await conn.fetchrow(sql("installation.commit_witness"), value, newest.timeline, newest.number, newest.value)
    if row is None:
        raise RuntimeError("installation has no row: run `tollkeeper-ledger migrate`")
    return Committing(
        witness=Witness(timeline=row["timeline"], number=row["number"], value=value),
        issuing=Issuing(
            timeline=row["timeline"],
            frozen_before_us=row["frozen_before_us"],
            learning_until_us=row["learning_until_us"],
            is_held=row["is_held"],
        ),
        is_known=row["known"],
    )


async def lock_timeline(conn: Connection) -> tuple[int, int]:
    """Lock the installation; gives timeline and `frozen_before_us`."""
    row = await conn.fetchrow(sql("installation.lock_installation"))
    if row is None:
        raise RuntimeError("installation has no row: run `tollkeeper-ledger migrate`")
    return row["timeline"], row["frozen_before_us"]


async def begin_timeline(
    conn: Connection, *, timeline: int, now_us: int, frozen_before_us: int, learning_until_us: int
) -> None:
    """Begin the timeline after a restore. The installation is locked."""
    await conn.execute(sql("installation.next_timeline"), timeline, now_us, frozen_before_us, learning_until_us)


async def thaw(conn: Connection) -> None:
    """End the stop after a restore."""
    await conn.execute(sql("installation.thaw"))


async def forget_witnesses(conn: Connection) -> None:
    """Forget witnesses older than an hour."""
    await conn.execute(sql("installation.forget_witnesses"))


async def read_state(conn: Connection) -> LedgerState:
    """Read where the ledger stands."""
    row = await conn.fetchrow(sql("installation.ledger_state"))
    if row is None:
        raise RuntimeError("installation has no row: run `tollkeeper-ledger migrate`")
    return LedgerState(**dict(row))


async def hold_clock(conn: Connection, *, now_us: int, jump_us: int) -> None:
    """Hold window opening after a forward jump."""
    await conn.execute(sql("installation.hold_clock"), now_us, jump_us)


async def release_clock(conn: Connection) -> bool:
    """Let windows be opened again; gives whether they were held."""
    return await conn.fetchval(sql("installation.release_clock")) is True
