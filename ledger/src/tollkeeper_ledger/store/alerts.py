"""Thresholds on use and spend: what rose, what was told of, what is to be looked at."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING
from uuid import UUID

from tollkeeper_ledger.domain.alerts import Figure
from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.standing import STANDING_DAY
from tollkeeper_ledger.domain.windows import end_day_of
from tollkeeper_ledger.store.limits import days_of
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from tollkeeper_ledger.store.pool import Connection, Row


@dataclass(frozen=True, slots=True)
class WindowUse:
    """How far a window is; times are microseconds of ledger time."""

    tenant_id: UUID
    window_id: bytes
    limit: str
    key_values: tuple[str, ...]
    start_us: int
    end_us: int
    amount: int
    consumed: int
    over: int


@dataclass(frozen=True, slots=True)
class Alert:
    """A threshold that was reached."""

    alert_id: UUID
    figure: Figure
    threshold: str
    fired_at: datetime


async def take_windows(conn: Connection, *, count_max: int) -> set[bytes]:
    """Take notes of windows with more use; they are gone with the transaction."""
    rows = await conn.fetch(sql("alerts.take_windows"), count_max)
    return set(chain.from_iterable(row["window_ids"] for row in rows))


async def take_tenants(conn: Connection, *, count_max: int) -> set[UUID]:
    """Take notes of tenants with more usage; they are gone with the transaction."""
    rows = await conn.fetch(sql("alerts.take_tenants"), count_max)
    return set(chain.from_iterable(row["tenant_ids"] for row in rows))


async def read_window_uses(conn: Connection, window_ids: Collection[bytes]) -> list[WindowUse]:
    """Read how far windows are; those without end are left out."""
    days = [day for day in days_of(list(window_ids)) if day != STANDING_DAY]
    if not days:
        return []
    rows = await conn.fetch(sql("alerts.windows"), list(window_ids), days)
    return [
        WindowUse(
            tenant_id=row["tenant_id"],
            window_id=row["window_id"],
            limit=row["limit_name"],
            key_values=tuple(row["key_values"]),
            start_us=row["start_us"],
            end_us=row["end_us"],
            amount=row["amount"],
            consumed=row["consumed"],
            over=row["over"],
        )
        for row in rows
    ]


async def read_open_windows(conn: Connection, tenant_id: UUID, *, now: datetime, count_max: int) -> list[bytes]:
    """Read which windows of a tenant are not over, in order of limit and key."""
    now_us = to_us(now)
    rows = await conn.fetch(sql("alerts.open_windows"), tenant_id, now_us, end_day_of(now_us + 1), count_max)
    return [row["window_id"] for row in rows]


async def read_running_plans(conn: Connection, tenant_ids: Collection[UUID]) -> list[Row]:
    """Read the plan versions of tenants' running subscriptions, each once: tenants are many, plans few."""
    return await conn.fetch(sql("alerts.plans_running"), list(tenant_ids))


async def read_rules(conn: Connection, tenant_ids: Collection[UUID], plan_version_ids: Collection[UUID]) -> list[Row]:
    """Read the own rules, and the plan version, of those tenants that have rules, or have one of these plan versions.

    Who has no subscription is left out.
    """
    return await conn.fetch(sql("alerts.rules"), list(tenant_ids), list(plan_version_ids))


async def mark_due(conn: Connection, tenant_ids: Collection[UUID]) -> None:
    """Note tenants whose billing period is to be looked at."""
    if tenant_ids:
        await conn.execute(sql("alerts.mark_due"), list(tenant_ids))


async def take_due(conn: Connection) -> UUID | None:
    """Take a tenant whose billing period is to be looked at; None where there is none."""
    found: UUID | None = await conn.fetchval(sql("alerts.take_due"))
    return found


async def note_failure(conn: Connection, tenant_id: UUID) -> None:
    """Note that a tenant's billing period can't be looked at: after ten times not before its next usage."""
    await conn.execute(sql("alerts.note_failure"), tenant_id)
    await conn.execute(sql("alerts.give_up"), tenant_id)


async def add_alerts(conn: Connection, figures: Sequence[Figure], *, now: datetime) -> list[Alert]:
    """Add an alert for each threshold that is reached, and give those that nobody had added."""
    alerts = [Alert(uuid.uuid4(), figure, threshold, now) for figure in figures for threshold in figure.reached]
    if not alerts:
        return []
    rows = await conn.fetch(
        sql("alerts.add"),
        now,
        [one.figure.tenant_id for one in alerts],
        [one.alert_id for one in alerts],
        [one.figure.kind for one in alerts],
        [one.figure.subject for one in alerts],
        [one.figure.span for one in alerts],
        [one.threshold for one in alerts],
        [json.dumps(one.figure.key_values, ensure_ascii=False) for one in alerts],
        [one.figure.starts_at for one in alerts],
        [one.figure.ends_at for one in alerts],
        [one.figure.base for one in alerts],
        [one.figure.value for one in alerts],
    )
    added = {row["alert_id"] for row in rows}
    return [one for one in alerts if one.alert_id in added]


async def read_fired(conn: Connection, figures: Sequence[Figure]) -> set[tuple[str, str, str, str]]:
    """Read which thresholds of one tenant's figures were told of: kind, subject, span, threshold."""
    rows = await conn.fetch(
        sql("alerts.fired"),
        [one.tenant_id for one in figures],
        [one.kind for one in figures],
        [one.subject for one in figures],
        [one.span for one in figures],
    )
    return {(row["kind"], row["subject"], row["span"], row["threshold"]) for row in rows}


async def list_alerts(
    conn: Connection, *, before: tuple[datetime, UUID] | None, count_max: int, only: UUID | None
) -> list[tuple[str, Alert]]:
    """Read alerts, newest first, each with its tenant's wire id."""
    at, alert_id = before or (None, None)
    rows = await conn.fetch(sql("alerts.alerts"), at, alert_id, count_max, only)
    return [(row["wire_id"], alert_from(row)) for row in rows]


def alert_from(row: Row) -> Alert:
    """Give the alert of a stored row."""
    figure = Figure(
        tenant_id=row["tenant_id"],
        kind=row["kind"],
        subject=row["subject"],
        span=row["span"],
        starts_at=row["starts_at"],
        ends_at=row["ends_at"],
        base=row["base"],
        value=row["value"],
        at=(row["threshold"],),
        key_values=tuple(row["key_values"]),
    )
    return Alert(row["alert_id"], figure, row["threshold"], row["fired_at"])


async def read_payers(conn: Connection, tenant_ids: Collection[UUID]) -> list[Row]:
    """Read who pays for tenants and has an address."""
    return await conn.fetch(sql("alerts.payers"), list(tenant_ids))


async def read_alert(conn: Connection, alert_id: str) -> Row:
    """Read what a mail about an alert is made of."""
    row = await conn.fetchrow(sql("alerts.content"), UUID(alert_id))
    if row is None:
        raise RuntimeError(f"alert {alert_id} is gone")
    return row


def window_figure(use: WindowUse, at: tuple[str, ...], *, is_mailed: bool) -> Figure:
    """Give how far a window is, as thresholds see it: what was admitted, beyond a soft limit too."""
    return Figure(
        tenant_id=use.tenant_id,
        kind="limit",
        subject=use.limit,
        span=use.window_id.hex(),
        starts_at=from_us(use.start_us),
        ends_at=from_us(use.end_us),
        base=Decimal(use.amount),
        value=Decimal(use.consumed),
        at=at,
        key_values=use.key_values,
        is_mailed=is_mailed,
    )
