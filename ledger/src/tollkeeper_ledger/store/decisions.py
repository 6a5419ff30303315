"""What limits decided, as sidecars told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime, timedelta
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection, Row


@dataclass(frozen=True, slots=True)
class DecisionCount:
    """How often one limit decided so."""

    tenant: str
    """Wire id of the tenant whose limit it is."""
    limit: str
    reason: str
    """Name of a DecisionReason without its prefix."""
    count: int
    left_out: int
    """Of these, such that should have been kept one by one and were not."""


@dataclass(frozen=True, slots=True)
class DecisionEntry:
    """One decision of one limit."""

    tenant: str
    limit: str
    reason: str
    at: datetime
    caller: str
    """Wire id of the tenant that called."""
    units: int
    amount: int
    used: int
    attributes: Mapping[str, str]


async def take_batch(conn: Connection, holder: bytes, batch_seq: int) -> bool:
    """Take a holder's batch; False: it is stored already. Whoever brings it at the same time waits for the commit."""
    taken: bool | None = await conn.fetchval(sql("decisions.take_batch"), holder, batch_seq)
    return taken is True


async def add_counts(conn: Connection, told: Sequence[tuple[UUID, DecisionCount]], *, day: date) -> None:
    """Add counts, each with its tenant's id."""
    await conn.execute(
        sql("decisions.add_counts"),
        day,
        [tenant_id for tenant_id, _ in told],
        [one.limit for _, one in told],
        [one.reason for _, one in told],
        [one.count for _, one in told],
        [one.left_out for _, one in told],
    )


async def add_entries(conn: Connection, told: Sequence[tuple[UUID, DecisionEntry]]) -> None:
    """Keep decisions, each with its tenant's id."""
    await conn.execute(
        sql("decisions.add_entries"),
        [tenant_id for tenant_id, _ in told],
        [one.limit for _, one in told],
        [one.reason for _, one in told],
        [one.at for _, one in told],
        [one.caller for _, one in told],
        [one.units for _, one in told],
        [one.amount for _, one in told],
        [one.used for _, one in told],
        [json.dumps(dict(one.attributes), ensure_ascii=False) for _, one in told],
    )


async def list_entries(
    conn: Connection,
    *,
    before: int | None,
    only: UUID | None,
    limit: str | None,
    reason: str | None,
    count_max: int,
) -> list[Row]:
    """Read entries, those that came last first."""
    return await conn.fetch(sql("decisions.entries"), before, only, limit, reason, count_max)


async def list_sums(
    conn: Connection,
    *,
    after: tuple[str, str, str] | None,
    only: UUID | None,
    limit: str | None,
    days: tuple[date | None, date | None],
    count_max: int,
) -> list[Row]:
    """Read sums in the order of tenant, limit and reason; `days` are the first and the last, None = all."""
    tenant, after_limit, after_reason = after or (None, None, None)
    return await conn.fetch(sql("decisions.sums"), tenant, after_limit, after_reason, only, limit, *days, count_max)


async def expire_entries(conn: Connection, *, age: timedelta, count_max: int) -> int:
    """Forget the oldest entries stored so long ago, at most so many; give how many."""
    return _rows(await conn.execute(sql("decisions.expire_entries"), age, count_max))


async def expire_counts(conn: Connection, *, before: date, count_max: int) -> int:
    """Forget the counts of days before one, at most so many; give how many."""
    return _rows(await conn.execute(sql("decisions.expire_counts"), before, count_max))


async def expire_batches(conn: Connection, *, age: timedelta, count_max: int) -> int:
    """Forget holders that told nothing for so long, at most so many; give how many."""
    return _rows(await conn.execute(sql("decisions.expire_batches"), age, count_max))


def _rows(done: str) -> int:
    return int(done.rpartition(" ")[2])
