"""Leases of levels and of units in flight, read and written beside the windows that they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.standing import STANDING, STANDING_DAY
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from tollkeeper_ledger.store.limits import Identity
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class TimedLease:
    """Name one lease of units in flight."""

    window_id: bytes
    holder: bytes
    epoch: int


async def renew(conn: Connection, holder: bytes, asked: Sequence[tuple[bytes, int, int]]) -> dict[bytes, int]:
    """Renew leases, pairs of window and lease with the units in flight; gives the leases that the holder has now."""
    if not asked:
        return {}
    windows = [window_id for window_id, _, _ in asked]
    epochs = [epoch for _, epoch, _ in asked]
    await conn.execute(
        sql("limits.renew_leases"), windows, epochs, [in_flight for _, _, in_flight in asked], holder, STANDING_DAY
    )
    rows = await conn.fetch(sql("limits.lease_epochs"), windows, holder, STANDING_DAY)
    return {row["window_id"]: row["lease_epoch"] for row in rows}


async def read_standing_use(conn: Connection, window_ids: Collection[bytes]) -> dict[bytes, int]:
    """Read what is stored or in flight."""
    rows = await conn.fetch(sql("limits.standing_use"), list(window_ids), STANDING_DAY)
    return {row["window_id"]: row["used"] for row in rows}


async def read_timed_leases(conn: Connection) -> dict[TimedLease, int]:
    """Read every lease of units in flight that holds some, with its count of renewals."""
    rows = await conn.fetch(sql("limits.timed_leases"), STANDING_DAY)
    return {TimedLease(row["window_id"], row["holder"], row["lease_epoch"]): row["renewals"] for row in rows}


async def reclaim(conn: Connection, lease: TimedLease, *, renewals: int) -> int:
    """End a lease of a locked window unless it was renewed since; gives the units that come back."""
    units: int | None = await conn.fetchval(
        sql("limits.reclaim_lease"), lease.window_id, lease.holder, lease.epoch, renewals, STANDING_DAY
    )
    return units or 0


async def find_standing(conn: Connection, identities: Collection[Identity]) -> dict[Identity, bytes]:
    """Find the windows without end of identities; those that have none are left out."""
    rows = await conn.fetch(
        sql("limits.standing_windows"),
        [tenant_id for tenant_id, _, _ in identities],
        [limit for _, limit, _ in identities],
        [key_hash for _, _, key_hash in identities],
        STANDING.end_us,
    )
    return {(row["tenant_id"], row["limit_name"], row["key_hash"]): row["window_id"] for row in rows}


async def note_ended(conn: Connection, holders: Collection[bytes], *, producer_id: UUID, ended_seq: int) -> None:
    """Note that processes have ended. Idempotent."""
    await conn.execute(sql("limits.note_ended"), list(holders), producer_id, ended_seq)


async def read_ended(conn: Connection, *, count_max: int) -> list[bytes]:
    """Read processes that have ended, whose logs are committed to the end, and that still may hold levels."""
    return [row["holder"] for row in await conn.fetch(sql("limits.ended_holders"), count_max)]


async def levels_of(conn: Connection, holder: bytes) -> list[bytes]:
    """Read the windows of levels that a process leased from."""
    return [row["window_id"] for row in await conn.fetch(sql("limits.levels_of"), holder, STANDING_DAY)]


async def end_holder(conn: Connection, holder: bytes) -> None:
    """Mark a process as done with."""
    await conn.execute(sql("limits.end_holder"), holder)
