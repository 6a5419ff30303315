"""Give coupons, prepaid credit and units, and take them back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.services.invoices_to_come import need_invoice_to_come
from tollkeeper_ledger.services.notes import check_note
from tollkeeper_ledger.services.subscription_changes import live_subscription
from tollkeeper_ledger.store.catalogue import EVERYTHING, read_meters
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.prepaid import (
    NewCoupon,
    StoredGrant,
    add_coupon,
    add_grant,
    has_coupon,
    read_grants,
    remove_coupon,
    revoke_grant,
)
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from decimal import Decimal
    from uuid import UUID

    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class CouponAsked:
    """A coupon: a percentage or an amount in minor units of the subscription's currency."""

    name: str
    percent: Decimal | None
    amount_minor: int | None
    periods: int | None
    """None = every invoice."""


@dataclass(frozen=True, slots=True)
class GrantAsked:
    """A grant of units of a meter, or of credit in minor units of a currency."""

    name: str
    meter: str
    currency: str
    amount: int
    priority: int
    expires_at: datetime | None
    recurs: bool
    rollover_max: int


async def add_coupon_to(
    conn: Connection, tenant_id: UUID, asked: CouponAsked, act: Act, *, new_id: Callable[[], UUID]
) -> UUID:
    """Take a coupon off the running subscription's next invoices; give its id. Raises UnknownNameError."""
    await lock_tenant(conn, tenant_id)
    schedule = await live_subscription(conn, tenant_id, now=act.now)
    coupon = NewCoupon(
        coupon_id=new_id(),
        name=asked.name,
        percent=asked.percent,
        amount_minor=asked.amount_minor,
        periods=asked.periods,
    )
    await add_coupon(conn, tenant_id, schedule.subscription_id, coupon, now=act.now)
    after: JsonObject = {
        "name": asked.name,
        "percent": None if asked.percent is None else f"{asked.percent:f}",
        "amount_minor": asked.amount_minor,
        "periods": asked.periods,
    }
    entry = AuditEntry(subject=f"coupon/{coupon.coupon_id}", tenant_id=tenant_id, before=None, after=after)
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action="AddCoupon", request_id=act.request_id)
    return coupon.coupon_id


async def create_grant(
    conn: Connection, tenant_id: UUID, asked: GrantAsked, act: Act, *, new_id: Callable[[], UUID]
) -> UUID:
    """Grant units or credit to a subscribed tenant, in the currency that it pays in; give the grant's id.

    Raises UnknownNameError: no such meter, or no subscription runs; InvalidFieldError.
    """
    if asked.meter and asked.meter not in {m.name for m in await read_meters(conn, after="", count_max=EVERYTHING)}:
        raise UnknownNameError("meter", asked.meter, remedy="declare it in the catalogue")
    if asked.expires_at is not None and asked.expires_at <= act.now:
        raise InvalidFieldError("expires_at", "is over", value=asked.expires_at.isoformat(), bound="later than now")
    await need_invoice_to_come(conn, tenant_id, currency=asked.currency, running_at=act.now)
    grant = StoredGrant(
        grant_id=new_id(),
        name=asked.name,
        meter=asked.meter,
        currency=asked.currency,
        amount=asked.amount,
        priority=asked.priority,
        expires_at=asked.expires_at,
        recurs=asked.recurs,
        rollover_max=asked.rollover_max,
        created_at=act.now,
        balance=asked.amount,
    )
    await add_grant(conn, tenant_id, grant)
    after: JsonObject = {"name": grant.name, "meter": grant.meter, "currency": grant.currency, "amount": grant.amount}
    entry = AuditEntry(subject=f"grant/{grant.grant_id}", tenant_id=tenant_id, before=None, after=after)
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action="CreateGrant", request_id=act.request_id)
    return grant.grant_id


async def take_coupon_back(conn: Connection, tenant_id: UUID, coupon_id: UUID, *, note: str, act: Act) -> None:
    """Keep a coupon from every invoice whose period is not closed yet. A repeat changes nothing.

    Raises InvalidFieldError: the tenant has no such coupon.
    """
    check_note(note)
    await lock_tenant(conn, tenant_id)
    removed = await remove_coupon(conn, tenant_id, coupon_id, now=act.now)
    if removed is None:
        if await has_coupon(conn, tenant_id, coupon_id):
            return
        raise InvalidFieldError(
            "coupon_id", "names no coupon of the tenant", value=str(coupon_id), remedy="ListCoupons gives the ids"
        )
    before: JsonObject = {
        "name": removed["name"],
        "percent": None if removed["percent"] is None else f"{removed['percent']:f}",
        "amount_minor": removed["amount_minor"],
        "periods": removed["periods_left"],
    }
    subject = f"coupon/{coupon_id}"
    entry = AuditEntry(subject=subject, tenant_id=tenant_id, before=before, after={"note": note})
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action="RemoveCoupon", request_id=act.request_id)


async def take_grant_back(conn: Connection, tenant_id: UUID, grant_id: UUID, *, note: str, act: Act) -> int:
    """Take back what is left of a grant, which comes no more, and give how much that was: 0 on a repeat.

    What closed periods used stays used. Raises InvalidFieldError: the tenant has no such grant.
    """
    check_note(note)
    await lock_tenant(conn, tenant_id)
    found = [one for one in (await read_grants(conn, [tenant_id])).get(tenant_id, []) if one.grant_id == grant_id]
    if not found:
        raise InvalidFieldError(
            "grant_id", "names no grant of the tenant", value=str(grant_id), remedy="ListGrants gives the ids"
        )
    (grant,) = found
    if grant.revoked_at is not None:
        return 0
    await revoke_grant(conn, tenant_id, grant, now=act.now)
    before: JsonObject = {
        "name": grant.name,
        "meter": grant.meter,
        "currency": grant.currency,
        "balance": grant.balance,
        "recurs": grant.recurs,
    }
    subject = f"grant/{grant_id}"
    entry = AuditEntry(subject=subject, tenant_id=tenant_id, before=before, after={"note": note})
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action="RevokeGrant", request_id=act.request_id)
    return grant.balance
