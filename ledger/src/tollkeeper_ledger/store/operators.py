"""What operators see of limits, and windows that they turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper_ledger.domain.windows import end_day_of
from tollkeeper_ledger.store.limits import cursor_from, days_of
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from tollkeeper_ledger.domain.cursor import Cursor
    from tollkeeper_ledger.store.limits import Identity
    from tollkeeper_ledger.store.pool import Connection

NIL = UUID(int=0)
AUDIT_ID_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class WindowView:
    """A window with what is known of its use; times are microseconds of ledger time, units are the meter's."""

    tenant: str
    limit: str
    key_hash: bytes
    key_values: tuple[str, ...]
    start_us: int
    end_us: int
    round: int
    amount: int
    allotted: int
    timeline: int
    consumed: int = 0
    over: int = 0
    lowered_at_us: int | None = None
    settled_at_us: int | None = None

    @property
    def outstanding(self) -> int:
        """Units out above the amount."""
        return max(0, self.allotted - self.amount)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a listing of windows goes on: after this window."""

    tenant: str = ""
    limit: str = ""
    key_hash: bytes = b""
    start_us: int = -1


@dataclass(frozen=True, slots=True)
class KnownIdentity:
    """An identity that this transaction has locked."""

    identity: Identity
    key_values: tuple[str, ...]
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One act on a limit."""

    audit_id: int
    at: datetime
    actor: str
    action: str
    subject: str
    request_id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


async def read_windows(
    conn: Connection, *, now_us: int, tenant: str | None, limit: str | None, after: Place, count_max: int
) -> list[WindowView]:
    """Read windows that are not over, in order of tenant, limit, key and start."""
    rows = await conn.fetch(
        sql("operators.states"),
        now_us,
        end_day_of(now_us + 1),
        tenant,
        limit,
        after.tenant,
        after.limit,
        after.key_hash,
        after.start_us,
        count_max,
    )
    return [
        WindowView(
            tenant=row["wire_id"],
            limit=row["limit_name"],
            key_hash=row["key_hash"],
            key_values=tuple(row["key_values"]),
            start_us=row["start_us"],
            end_us=row["end_us"],
            round=row["round"],
            amount=row["amount"],
            allotted=row["allotted"],
            timeline=row["timeline"],
            consumed=row["consumed"],
            over=row["over"],
            lowered_at_us=row["lowered_at_us"],
            settled_at_us=row["settled_at_us"],
        )
        for row in rows
    ]


async def lock_limit(
    conn: Connection, tenant_id: UUID, limit: str, key_values: tuple[str, ...] | None
) -> list[KnownIdentity]:
    """Lock the identities of one limit, or the one of these key values."""
    rows = await conn.fetch(
        sql("operators.lock_limit"), tenant_id, limit, None if key_values is None else list(key_values)
    )
    return [_known(row) for row in rows]


async def note_replaced(conn: Connection, window_ids: list[bytes]) -> None:
    """Note that the next round of windows has begun."""
    await conn.execute(sql("operators.replace"), window_ids, days_of(window_ids))


async def read_replaced(conn: Connection, tenant_ids: Collection[UUID], *, now_us: int) -> list[tuple[Identity, bytes]]:
    """Read rounds that have ended, with their identities, of windows that are not over."""
    rows = await conn.fetch(sql("operators.replaced"), list(tenant_ids), now_us, end_day_of(now_us + 1))
    return [((row["tenant_id"], row["limit_name"], row["key_hash"]), row["window_id"]) for row in rows]


async def lock_expired(
    conn: Connection, *, now_us: int, tenant_id: UUID | None, after: Identity, count_max: int
) -> list[KnownIdentity]:
    """Lock identities whose newest window is over."""
    rows = await conn.fetch(sql("operators.lock_expired"), now_us, tenant_id, *after, count_max)
    return [_known(row) for row in rows]


def _known(row: Any) -> KnownIdentity:
    return KnownIdentity(
        identity=(row["tenant_id"], row["limit_name"], row["key_hash"]),
        key_values=tuple(row["key_values"]),
        cursor=cursor_from(row),
    )


async def read_history(
    conn: Connection, tenant_id: UUID, *, limit: str | None, before: int, count_max: int
) -> list[HistoryEntry]:
    """Read what was done to a tenant's limits, newest first."""
    rows = await conn.fetch(sql("operators.history"), tenant_id, limit, before, count_max)
    return [HistoryEntry(**dict(row)) for row in rows]


async def read_features(conn: Connection, *, after: str, count_max: int) -> list[str]:
    """Read features in name order."""
    return [row["name"] for row in await conn.fetch(sql("operators.features"), after, count_max)]
