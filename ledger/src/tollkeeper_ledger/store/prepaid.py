"""Read and move coupons, granted units and prepaid credit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.rating.reductions import Coupon
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection, Row


@dataclass(frozen=True, slots=True)
class StoredGrant:
    """A grant with what is left of it."""

    grant_id: UUID
    name: str
    meter: str
    """Empty for credit."""
    currency: str
    """Empty for units."""
    amount: int
    priority: int
    expires_at: datetime | None
    recurs: bool
    rollover_max: int
    created_at: datetime
    balance: int
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class GrantEntry:
    """One movement of a grant."""

    tenant_id: UUID
    grant_id: UUID
    kind: str
    """`granted`, `used`, `expired`, `revoked`, or `returned` by a void invoice."""
    amount: int
    """Below 0 where it leaves the grant."""
    balance: int
    """After it."""
    period_start: datetime | None
    """Of the period whose close moved it."""


@dataclass(frozen=True, slots=True)
class NewCoupon:
    """A coupon to add."""

    coupon_id: UUID
    name: str
    percent: Decimal | None
    amount_minor: int | None
    periods: int | None
    """Invoices that it is good for; None = every one."""


async def read_coupons(
    conn: Connection, before: Sequence[tuple[UUID, UUID, datetime]]
) -> dict[UUID, tuple[Coupon, ...]]:
    """Read coupons that are still good and were added before an instant, oldest first, by subscription.

    `before` has tenant, subscription and instant; subscriptions without a coupon are left out.
    """
    tenants, subscriptions, instants = zip(*before, strict=True)
    rows = await conn.fetch(sql("billing.coupons"), list(tenants), list(subscriptions), list(instants))
    found: dict[UUID, tuple[Coupon, ...]] = {}
    for row in rows:
        coupon = Coupon(
            coupon_id=str(row["coupon_id"]), name=row["name"], percent=row["percent"], amount_minor=row["amount_minor"]
        )
        found[row["subscription_id"]] = (*found.get(row["subscription_id"], ()), coupon)
    return found


async def use_coupons(conn: Connection, tenant_ids: Iterable[UUID], coupon_ids: Sequence[UUID]) -> None:
    """Count one invoice for these coupons of these tenants."""
    if coupon_ids:
        await conn.execute(sql("billing.use_coupons"), list(tenant_ids), coupon_ids)


async def return_coupons(conn: Connection, tenant_id: UUID, coupon_ids: Sequence[UUID]) -> None:
    """Take one invoice, which became void, off these coupons' count; those without a count stay as they are."""
    await conn.execute(sql("billing.return_coupons"), tenant_id, coupon_ids)


async def add_coupon(
    conn: Connection, tenant_id: UUID, subscription_id: UUID, coupon: NewCoupon, *, now: datetime
) -> None:
    """Add a coupon to a subscription."""
    await conn.execute(
        sql("billing.add_coupon"),
        tenant_id,
        subscription_id,
        coupon.coupon_id,
        coupon.name,
        coupon.percent,
        coupon.amount_minor,
        coupon.periods,
        now,
    )


async def list_coupons(
    conn: Connection, *, before: tuple[datetime, UUID] | None, count_max: int, only: UUID | None, with_past: bool
) -> list[Row]:
    """Read coupons, newest first; with those that are used up or removed where asked."""
    at, coupon_id = before or (None, None)
    return await conn.fetch(sql("billing.list_coupons"), at, coupon_id, count_max, only, with_past)


async def remove_coupon(conn: Connection, tenant_id: UUID, coupon_id: UUID, *, now: datetime) -> Row | None:
    """Take a coupon back and give what it was; None where it was removed before."""
    return await conn.fetchrow(sql("billing.remove_coupon"), tenant_id, coupon_id, now)


async def has_coupon(conn: Connection, tenant_id: UUID, coupon_id: UUID) -> bool:
    """Whether a tenant has or had a coupon."""
    found: bool = await conn.fetchval(sql("billing.has_coupon"), tenant_id, coupon_id)
    return found


async def read_grants(conn: Connection, tenant_ids: Iterable[UUID]) -> dict[UUID, list[StoredGrant]]:
    """Read tenants' grants in the order in which they are used, also those that are used up; none = left out."""
    found: dict[UUID, list[StoredGrant]] = {}
    for row in await conn.fetch(sql("billing.grants"), list(tenant_ids)):
        tenant_id, *fields = row
        found.setdefault(tenant_id, []).append(StoredGrant(*fields))
    return found


async def add_grant(conn: Connection, tenant_id: UUID, grant: StoredGrant) -> None:
    """Add a grant with its first movement."""
    await conn.execute(
        sql("billing.add_grant"),
        tenant_id,
        grant.grant_id,
        grant.name,
        grant.meter,
        grant.currency,
        grant.amount,
        grant.priority,
        grant.expires_at,
        grant.recurs,
        grant.rollover_max,
        grant.created_at,
    )
    entry = GrantEntry(tenant_id, grant.grant_id, "granted", grant.amount, grant.amount, period_start=None)
    await add_grant_entries(conn, [entry], at=grant.created_at)


async def revoke_grant(conn: Connection, tenant_id: UUID, grant: StoredGrant, *, now: datetime) -> None:
    """Take back what is left of a grant. The transaction has its tenant alone."""
    await conn.execute(sql("billing.revoke_grant"), tenant_id, grant.grant_id, now)
    if grant.balance:
        entry = GrantEntry(tenant_id, grant.grant_id, "revoked", -grant.balance, 0, period_start=None)
        await add_grant_entries(conn, [entry], at=now)


async def add_grant_entries(conn: Connection, entries: Sequence[GrantEntry], *, at: datetime) -> None:
    """Add movements of grants in this order. The transaction has their tenants alone."""
    if entries:
        await conn.execute(
            sql("billing.add_grant_entries"),
            at,
            [entry.tenant_id for entry in entries],
            [entry.grant_id for entry in entries],
            [entry.kind for entry in entries],
            [entry.amount for entry in entries],
            [entry.balance for entry in entries],
            [entry.period_start for entry in entries],
        )


async def read_grant_entries(conn: Connection, tenant_id: UUID) -> list[Mapping[str, Any]]:
    """Read every movement of a tenant's grants in order."""
    return [dict(row) for row in await conn.fetch(sql("billing.grant_entries"), tenant_id)]
