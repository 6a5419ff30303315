# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""AdminService's part about coupons and grants."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import admin_pb2

from tollkeeper_ledger.domain.catalogue.reader import UNITS_MAX
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.money import CURRENCY_DIGITS, parse_decimal
from tollkeeper_ledger.rpc.acting import timestamp
from tollkeeper_ledger.rpc.fields import id_of, instant_of, out_of_range
from tollkeeper_ledger.rpc.idempotent import Answer, once_for_tenant
from tollkeeper_ledger.rpc.paging import before_of, next_token, page_size
from tollkeeper_ledger.services.prepaid import (
    CouponAsked,
    GrantAsked,
    add_coupon_to,
    create_grant,
    take_coupon_back,
    take_grant_back,
)
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.prepaid import list_coupons, read_grant_entries, read_grants

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    import grpc.aio

    from tollkeeper_ledger.rpc.idempotent import OfTenant
    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.store.pool import Connection, Row

    Context = grpc.aio.ServicerContext[Any, Any]

PERIODS_MAX = 1_200
PRIORITY_MAX = 1_000
_NAME_CHARS_MAX = 128
_PERCENT_MAX = Decimal(100)


def _coupon(row: Row) -> admin_pb2.Coupon:
    left = row["periods_left"]
    message = admin_pb2.Coupon(
        coupon_id=str(row["coupon_id"]),
        tenant=row["wire_id"],
        name=row["name"],
        percent="" if row["percent"] is None else f"{row['percent']:f}",
        amount_minor=row["amount_minor"] or 0,
        periods_left=left,
        state="used_up" if left == 0 else "good",
        added_at=timestamp(row["created_at"]),
    )
    if row["removed_at"] is not None:
        message.state = "removed"
        message.removed_at.CopyFrom(timestamp(row["removed_at"]))
    return message


class AdminReductions:
    """Serve what concerns coupons and grants."""

    _resources: Resources

    async def AddCoupon(self, request: admin_pb2.AddCouponRequest, context: Context) -> admin_pb2.AddCouponResponse:
        """Take something off a subscription's next invoices."""
        asked = CouponAsked(
            name=_label(request.name, required=True),
            percent=_percent(request.percent) if request.percent else None,
            amount_minor=_units("amount_minor", request.amount_minor) if request.amount_minor else None,
            periods=request.periods or None,
        )
        if (asked.percent is None) == (asked.amount_minor is None):
            raise InvalidFieldError("percent", "or amount_minor, one of them, must be given")
        if request.periods > PERIODS_MAX:
            raise out_of_range("periods", request.periods, f"0 to {PERIODS_MAX}")

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.AddCouponResponse:
            coupon_id = await add_coupon_to(conn, tenant_id, asked, act, new_id=uuid.uuid4)
            return admin_pb2.AddCouponResponse(coupon_id=str(coupon_id))

        return await self._once(request, admin_pb2.AddCouponResponse, work, context)

    async def ListCoupons(
        self, request: admin_pb2.ListCouponsRequest, context: Context
    ) -> admin_pb2.ListCouponsResponse:
        """List coupons, newest first."""
        size = page_size(request.page_size)
        pool = self._resources.pools.billing
        only = await need_tenant(pool, request.tenant) if request.tenant else None
        async with transaction(pool) as conn:
            rows = await list_coupons(
                conn,
                before=before_of(request.page_token),
                count_max=size + 1,
                only=only,
                with_past=request.with_past,
            )
        token = next_token(rows, size, lambda row: (row["created_at"], row["coupon_id"]))
        return admin_pb2.ListCouponsResponse(coupons=map(_coupon, rows[:size]), next_page_token=token)

    async def RemoveCoupon(
        self, request: admin_pb2.RemoveCouponRequest, context: Context
    ) -> admin_pb2.RemoveCouponResponse:
        """Take a coupon back."""
        coupon_id = id_of(request.coupon_id, "coupon")

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.RemoveCouponResponse:
            await take_coupon_back(conn, tenant_id, coupon_id, note=request.note, act=act)
            return admin_pb2.RemoveCouponResponse()

        return await self._once(request, admin_pb2.RemoveCouponResponse, work, context)

    async def CreateGrant(
        self, request: admin_pb2.CreateGrantRequest, context: Context
    ) -> admin_pb2.CreateGrantResponse:
        """Grant prepaid units or credit."""
        if request.currency and request.currency not in CURRENCY_DIGITS:
            raise InvalidFieldError("currency", "is not a currency", value=request.currency, bound="ISO 4217 codes")
        if bool(request.meter) == bool(request.currency):
            raise InvalidFieldError("meter", "or currency, one of them, must be given")
        if request.priority > PRIORITY_MAX:
            raise out_of_range("priority", request.priority, f"0 to {PRIORITY_MAX}")
        asked = GrantAsked(
            name=_label(request.name) or ("Granted units" if request.meter else "Prepaid credit"),
            meter=request.meter,
            currency=request.currency,
            amount=_units("amount", request.amount),
            priority=request.priority,
            expires_at=instant_of("expires_at", request.expires_at) if request.HasField("expires_at") else None,
            recurs=request.recurs,
            rollover_max=_units("rollover_max", request.rollover_max, least=0),
        )

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.CreateGrantResponse:
            return admin_pb2.CreateGrantResponse(
                grant_id=str(await create_grant(conn, tenant_id, asked, act, new_id=uuid.uuid4))
            )

        return await self._once(request, admin_pb2.CreateGrantResponse, work, context)

    async def ListGrants(self, request: admin_pb2.ListGrantsRequest, context: Context) -> admin_pb2.ListGrantsResponse:
        """List a tenant's grants with their balances and every movement."""
        pool = self._resources.pools.billing
        tenant_id = await need_tenant(pool, request.tenant)
        async with transaction(pool) as conn:
            grants = (await read_grants(conn, [tenant_id])).get(tenant_id, [])
            entries = await read_grant_entries(conn, tenant_id)
        answer = admin_pb2.ListGrantsResponse()
        for grant in grants:
            shown = answer.grants.add(
                grant_id=str(grant.grant_id),
                name=grant.name,
                meter=grant.meter,
                currency=grant.currency,
                amount=grant.amount,
                balance=grant.balance,
                priority=grant.priority,
                recurs=grant.recurs,
                rollover_max=grant.rollover_max,
            )
            if grant.expires_at is not None:
                shown.expires_at.CopyFrom(timestamp(grant.expires_at))
            if grant.revoked_at is not None:
                shown.revoked_at.CopyFrom(timestamp(grant.revoked_at))
        for entry in entries:
            answer.entries.add(
                grant_id=str(entry["grant_id"]),
                at=timestamp(entry["at"]),
                kind=entry["kind"],
                amount=entry["amount"],
                balance=entry["balance"],
            )
        return answer

    async def RevokeGrant(
        self, request: admin_pb2.RevokeGrantRequest, context: Context
    ) -> admin_pb2.RevokeGrantResponse:
        """Take back what is left of a grant."""
        grant_id = id_of(request.grant_id, "grant")

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.RevokeGrantResponse:
            amount = await take_grant_back(conn, tenant_id, grant_id, note=request.note, act=act)
            return admin_pb2.RevokeGrantResponse(amount=amount)

        return await self._once(request, admin_pb2.RevokeGrantResponse, work, context)

    async def _once(
        self,
        request: OfTenant,
        answer_type: type[Answer],
        work: Callable[[Connection, UUID, Act], Awaitable[Answer]],
        context: Context,
    ) -> Answer:
        return await once_for_tenant(self._resources.pools.billing, request, answer_type, work, context)


def _units(field: str, units: int, *, least: int = 1) -> int:
    if not least <= units <= UNITS_MAX:
        raise out_of_range(field, units, f"{least} to {UNITS_MAX}")
    return units


def _percent(text: str) -> Decimal:
    try:
        percent = parse_decimal(text)
    except ValueError:
        percent = Decimal(0)
    if not 0 < percent <= _PERCENT_MAX:
        raise out_of_range("percent", ascii(text[:40]), "a decimal above 0, up to 100")
    return percent


def _label(text: str, *, required: bool = False) -> str:
    if (required and not text) or len(text) > _NAME_CHARS_MAX or not text.isprintable():
        raise InvalidFieldError("name", "is no name", value=ascii(text[:64]), bound="1 to 128 printable characters")
    return text
