"""Write what changes about subscriptions over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.periods import Schedule
    from tollkeeper_ledger.domain.phases import Phase, SubscriptionSchedule
    from tollkeeper_ledger.store.pool import Connection, Row


@dataclass(frozen=True, slots=True)
class PlanVersion:
    """A plan's newest version."""

    plan_version_id: UUID
    version: int
    definition: bytes


async def put_phase(
    conn: Connection, schedule: SubscriptionSchedule, phase: Phase, *, applied: bool, era: Schedule | None = None
) -> None:
    """Add a phase, or change the one that begins then; `era` is what periods are counted by from it on."""
    await conn.execute(
        sql("subscriptions.put_phase"),
        schedule.tenant_id,
        schedule.subscription_id,
        phase.starts_at,
        phase.plan_version_id,
        phase.state,
        phase.quantity,
        applied,
        *((None,) * 4 if era is None else _counted_by(era)),
    )


def _counted_by(era: Schedule) -> tuple[datetime, str, str, int]:
    return era.anchor, era.time_zone, era.interval.unit.value, era.interval.count


async def drop_eras(conn: Connection, schedule: SubscriptionSchedule, eras: Sequence[Schedule]) -> None:
    """Let periods go on as before where these were to begin."""
    if eras:
        starts = [era.started_at for era in eras]
        await conn.execute(sql("subscriptions.drop_eras"), schedule.tenant_id, schedule.subscription_id, starts)


async def drop_phase(conn: Connection, schedule: SubscriptionSchedule, starts_at: datetime) -> None:
    """Remove the phase that was to begin then."""
    await conn.execute(sql("subscriptions.drop_phase"), schedule.tenant_id, schedule.subscription_id, starts_at)


async def read_scheduled(conn: Connection, subscription_ids: Sequence[UUID]) -> Sequence[Row]:
    """Read the phases of subscriptions that are to come, in order of time."""
    return await conn.fetch(sql("subscriptions.scheduled"), subscription_ids)


async def change_later_phases(
    conn: Connection,
    schedule: SubscriptionSchedule,
    *,
    after: datetime,
    plan_version_id: UUID | None = None,
    state: str | None = None,
    quantity: int | None = None,
) -> None:
    """Change what is scheduled after an instant; None leaves as it is, and an end stays an end."""
    await conn.execute(
        sql("subscriptions.change_later_phases"),
        schedule.tenant_id,
        schedule.subscription_id,
        after,
        plan_version_id,
        state,
        quantity,
    )


async def revoke_end(conn: Connection, schedule: SubscriptionSchedule, going_on: Phase) -> None:
    """Let a subscription go on as in a phase where it was to end."""
    await conn.execute(
        sql("subscriptions.revoke_end"),
        schedule.tenant_id,
        schedule.subscription_id,
        going_on.plan_version_id,
        going_on.state,
        going_on.quantity,
    )


async def follow_phase(
    conn: Connection, schedule: SubscriptionSchedule, phase: Phase, era: Schedule, *, now: datetime
) -> None:
    """Let limits, features, state and periods follow a phase, and note that they do."""
    is_over = phase.state == "cancelled"
    await conn.execute(
        sql("subscriptions.follow_phase"),
        schedule.tenant_id,
        schedule.subscription_id,
        phase.plan_version_id,
        phase.state,
        phase.quantity,
        phase.starts_at if is_over else None,
        *_counted_by(era),
        era.started_at,
    )
    await conn.execute(sql("subscriptions.mark_applied"), schedule.tenant_id, schedule.subscription_id, now)


async def read_due_tenants(conn: Connection, *, now: datetime, count_max: int) -> Sequence[UUID]:
    """Read the tenants with phases whose time has come."""
    return [row["tenant_id"] for row in await conn.fetch(sql("subscriptions.due_phases"), now, count_max)]


async def read_newest_plan(conn: Connection, name: str) -> PlanVersion | None:
    """Read a plan's newest version; None where there is no such plan."""
    row = await conn.fetchrow(sql("subscriptions.newest_plan"), name)
    return None if row is None else PlanVersion(**row)


async def read_declared(conn: Connection, tenant_id: UUID) -> tuple[str, str]:
    """Read a tenant's wire id and the plan that a catalogue named for it last; empty where none did."""
    (row,) = await conn.fetch(sql("subscriptions.declared"), tenant_id)
    return row["wire_id"], row["plan"]


async def read_last_end(conn: Connection, tenant_id: UUID) -> datetime | None:
    """Read when a tenant's last subscription ends; datetime.max with an offset where it has no end."""
    end: datetime | None = await conn.fetchval(sql("subscriptions.last_end"), tenant_id)
    return end


async def read_time_zone(conn: Connection, wire_id: str) -> str | None:
    """Read the time zone of a tenant's subscription, else of its payer's, else empty; None without the tenant."""
    row = await conn.fetchrow(sql("subscriptions.tenant_time_zone"), wire_id)
    return None if row is None else row["time_zone"] or ""


async def read_seller_time_zone(conn: Connection, tenant_id: UUID) -> str:
    """Read the time zone of a tenant's seller."""
    time_zone: str = await conn.fetchval(sql("subscriptions.seller_time_zone"), tenant_id)
    return time_zone
