"""Trials whose end depends on a payment method, or is to be told of."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from tollkeeper_ledger.domain.phases import Phase
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.store.pool import Connection


async def has_method(conn: Connection, tenant_id: UUID) -> bool:
    """Say whether who pays for a tenant has a payment method."""
    has: bool = await conn.fetchval(sql("trials.has_method"), tenant_id)
    return has


async def read_displaced(conn: Connection, tenant_id: UUID) -> dict[UUID, list[Phase]]:
    """Read what phases will be once the payer has a payment method, by subscription; those without are left out."""
    return {
        row["subscription_id"]: [
            Phase(
                starts_at=datetime.fromisoformat(one["starts_at"]),
                plan_version_id=UUID(one["plan_version_id"]),
                state=one["state"],
                quantity=one["quantity"],
            )
            for one in row["trial_displaced"]
        ]
        for row in await conn.fetch(sql("trials.displaced"), tenant_id)
    }


def _to_json(phase: Phase) -> JsonObject:
    return {
        "starts_at": phase.starts_at.isoformat(),
        "plan_version_id": str(phase.plan_version_id),
        "state": phase.state,
        "quantity": phase.quantity,
    }


async def keep(
    conn: Connection,
    tenant_id: UUID,
    subscription_id: UUID,
    *,
    asks: bool = False,
    displaced: Sequence[Phase] | None = None,
    notice_at: datetime | None = None,
) -> None:
    """Keep what is known of a trial; without a word of it there is none to come."""
    shown = None if displaced is None else [_to_json(phase) for phase in displaced]
    await conn.execute(sql("trials.keep"), tenant_id, subscription_id, asks, shown, notice_at)


async def tenants_of_payer(conn: Connection, payer_id: UUID) -> list[UUID]:
    """Read the tenants that a payer pays for whose trials ask for a payment method."""
    return [row["tenant_id"] for row in await conn.fetch(sql("trials.of_payer"), payer_id)]


async def read_astray(conn: Connection, *, after: UUID, count_max: int) -> list[UUID]:
    """Read the tenants behind one, in order, whose trials say something else than what their payers have."""
    return [row["tenant_id"] for row in await conn.fetch(sql("trials.astray"), count_max, after)]


async def take_due(conn: Connection, *, now: datetime, count_max: int) -> list[tuple[UUID, UUID]]:
    """Take trials whose end is to be told of: tenant and subscription."""
    rows = await conn.fetch(sql("trials.due_notices"), now, count_max)
    return [(row["tenant_id"], row["subscription_id"]) for row in rows]


async def is_told(conn: Connection, tenant_id: UUID, span: str) -> bool:
    """Say whether an end was told of before."""
    told: bool = await conn.fetchval(sql("trials.is_told"), tenant_id, span)
    return told
