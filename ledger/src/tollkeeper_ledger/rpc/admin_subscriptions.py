# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""AdminService's part about subscriptions, coupons and grants."""

from __future__ import annotations

import re
import uuid
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

from tollkeeper.ledger.v1 import admin_pb2

from tollkeeper_ledger.domain.catalogue.reader import UNITS_MAX, is_time_zone
from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.domain.money import CURRENCY_DIGITS, parse_decimal
from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.rpc.acting import act_of, timestamp
from tollkeeper_ledger.rpc.idempotent import Answer, answer_once
from tollkeeper_ledger.rpc.paging import from_token, page_size, to_token
from tollkeeper_ledger.services import subscription_changes as changes
from tollkeeper_ledger.services.prepaid import CouponAsked, GrantAsked, add_coupon_to, create_grant
from tollkeeper_ledger.services.subscription_dates import take_back
from tollkeeper_ledger.services.subscriptions import FIRST, list_subscriptions
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.prepaid import read_grant_entries, read_grants

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime
    from uuid import UUID

    import grpc.aio
    from google.protobuf import timestamp_pb2

    from tollkeeper_ledger.rpc.idempotent import Mutation
    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.services.subscriptions import SubscriptionView
    from tollkeeper_ledger.store.pool import Connection

    Context = grpc.aio.ServicerContext[Any, Any]

    class OfTenant(Mutation, Protocol):
        """A mutating request that names a tenant."""

        @property
        def tenant(self) -> str:
            """Give the wire id."""
            ...


QUANTITY_MAX = 1_000_000
TRIAL_DAYS_MAX = 1_000
PERIODS_MAX = 1_200
PRIORITY_MAX = 1_000
STATES = ("trialing", "active", "past_due", "paused", "cancelled")
_NAME_CHARS_MAX = 128
_ANCHOR_WORDS = ("", "start", "calendar")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_PERCENT_MAX = Decimal(100)


def _subscription(view: SubscriptionView) -> admin_pb2.Subscription:
    message = admin_pb2.Subscription(
        subscription_id=view.subscription_id,
        tenant=view.tenant,
        plan=view.plan,
        plan_version=view.plan_version,
        state=view.state,
        started_at=timestamp(view.started_at),
        quantity=view.quantity,
        anchor=view.counted.anchor.isoformat(),
        time_zone=view.counted.time_zone,
        interval=f"{view.counted.interval.count} {view.counted.interval.unit.value}",
    )
    if view.running is not None:
        message.period_start.CopyFrom(timestamp(view.running.start))
        message.period_end.CopyFrom(timestamp(view.running.end))
    if view.ends_at is not None:
        message.ends_at.CopyFrom(timestamp(view.ends_at))
    for one in view.scheduled:
        message.scheduled.add(
            at_time=timestamp(one.at),
            plan=one.plan,
            plan_version=one.plan_version,
            quantity=one.quantity,
            state=one.state,
            anchor=one.anchor,
            time_zone=one.time_zone,
            interval=one.interval,
        )
    return message


class AdminSubscriptions:
    """Serve operators what concerns subscriptions."""

    _resources: Resources

    async def ListSubscriptions(
        self, request: admin_pb2.ListSubscriptionsRequest, context: Context
    ) -> admin_pb2.ListSubscriptionsResponse:
        """List subscriptions with their running periods."""
        size = page_size(request.page_size)
        wire_id, last = from_token(request.page_token, start=FIRST)
        pool = self._resources.pools.billing
        if request.tenant:
            await need_tenant(pool, request.tenant)
        async with transaction(pool) as conn:
            try:
                found = await list_subscriptions(
                    conn,
                    after=(wire_id, last),
                    count_max=size + 1,
                    only=request.tenant or None,
                    state=_state(request.state),
                    now=await ledger_now(conn),
                )
            except ValueError:
                raise InvalidFieldError("page_token", "is not one that this listing gave") from None
        token = to_token(found[size - 1].tenant, found[size - 1].subscription_id) if len(found) > size else ""
        return admin_pb2.ListSubscriptionsResponse(
            subscriptions=map(_subscription, found[:size]), next_page_token=token
        )

    async def CreateSubscription(
        self, request: admin_pb2.CreateSubscriptionRequest, context: Context
    ) -> admin_pb2.CreateSubscriptionResponse:
        """Subscribe a tenant."""
        asked = _asked(request)

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.CreateSubscriptionResponse:
            await changes.create_subscription(conn, tenant_id, request.tenant, asked, act)
            return admin_pb2.CreateSubscriptionResponse(subscription=await _newest(conn, request.tenant, act.now))

        return await self._once(request, admin_pb2.CreateSubscriptionResponse, work, context)

    async def ChangeSubscription(
        self, request: admin_pb2.ChangeSubscriptionRequest, context: Context
    ) -> admin_pb2.ChangeSubscriptionResponse:
        """Move a subscription to another plan, number of seats, anchor or time zone."""
        asked = changes.ChangeAsked(
            plan=request.plan,
            quantity=_quantity(request.quantity) if request.HasField("quantity") else None,
            anchor=_anchor(request.anchor),
            time_zone=_time_zone(request.time_zone),
            at=_when(request),
            from_plan=request.from_plan,
        )
        if asked == changes.ChangeAsked(at=asked.at, from_plan=asked.from_plan):
            remedy = "give a plan, a quantity, an anchor or a time zone"
            raise InvalidFieldError("plan", "is missing", reason="FIELD_REQUIRED", remedy=remedy)

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.ChangeSubscriptionResponse:
            await changes.change_subscription(conn, tenant_id, asked, act=act)
            return admin_pb2.ChangeSubscriptionResponse(subscription=await _newest(conn, request.tenant, act.now))

        return await self._once(request, admin_pb2.ChangeSubscriptionResponse, work, context)

    async def ActivateSubscription(
        self, request: admin_pb2.ActivateSubscriptionRequest, context: Context
    ) -> admin_pb2.ActivateSubscriptionResponse:
        """End a trial."""

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.ActivateSubscriptionResponse:
            await changes.activate_subscription(conn, tenant_id, act=act)
            return admin_pb2.ActivateSubscriptionResponse(subscription=await _newest(conn, request.tenant, act.now))

        return await self._once(request, admin_pb2.ActivateSubscriptionResponse, work, context)

    async def PauseSubscription(
        self, request: admin_pb2.PauseSubscriptionRequest, context: Context
    ) -> admin_pb2.PauseSubscriptionResponse:
        """Pause a subscription."""
        when = _when(request)

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.PauseSubscriptionResponse:
            await changes.pause_subscription(conn, tenant_id, at=when, act=act)
            return admin_pb2.PauseSubscriptionResponse(subscription=await _newest(conn, request.tenant, act.now))

        return await self._once(request, admin_pb2.PauseSubscriptionResponse, work, context)

    async def ResumeSubscription(
        self, request: admin_pb2.ResumeSubscriptionRequest, context: Context
    ) -> admin_pb2.ResumeSubscriptionResponse:
        """End a pause, or take back a cancellation that is still to come."""

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.ResumeSubscriptionResponse:
            await changes.resume_subscription(conn, tenant_id, act=act)
            return admin_pb2.ResumeSubscriptionResponse(subscription=await _newest(conn, request.tenant, act.now))

        return await self._once(request, admin_pb2.ResumeSubscriptionResponse, work, context)

    async def CancelSubscription(
        self, request: admin_pb2.CancelSubscriptionRequest, context: Context
    ) -> admin_pb2.CancelSubscriptionResponse:
        """End a subscription."""
        when = _when(request)

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.CancelSubscriptionResponse:
            await changes.cancel_subscription(conn, tenant_id, at=when, act=act)
            return admin_pb2.CancelSubscriptionResponse(subscription=await _newest(conn, request.tenant, act.now))

        return await self._once(request, admin_pb2.CancelSubscriptionResponse, work, context)

    async def UnscheduleSubscription(
        self, request: admin_pb2.UnscheduleSubscriptionRequest, context: Context
    ) -> admin_pb2.UnscheduleSubscriptionResponse:
        """Take back a change that is to come."""
        if not request.HasField("at_time"):
            remedy = "say for when it is scheduled"
            raise InvalidFieldError("at_time", "is missing", reason="FIELD_REQUIRED", remedy=remedy)
        instant = _instant("at_time", request.at_time)

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.UnscheduleSubscriptionResponse:
            await take_back(conn, tenant_id, instant, act=act)
            return admin_pb2.UnscheduleSubscriptionResponse(subscription=await _newest(conn, request.tenant, act.now))

        return await self._once(request, admin_pb2.UnscheduleSubscriptionResponse, work, context)

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
            raise _out_of_range("periods", request.periods, f"0 to {PERIODS_MAX}")

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.AddCouponResponse:
            coupon_id = await add_coupon_to(conn, tenant_id, asked, act, new_id=uuid.uuid4)
            return admin_pb2.AddCouponResponse(coupon_id=str(coupon_id))

        return await self._once(request, admin_pb2.AddCouponResponse, work, context)

    async def CreateGrant(
        self, request: admin_pb2.CreateGrantRequest, context: Context
    ) -> admin_pb2.CreateGrantResponse:
        """Grant prepaid units or credit."""
        if request.currency and request.currency not in CURRENCY_DIGITS:
            raise InvalidFieldError("currency", "is not a currency", value=request.currency, bound="ISO 4217 codes")
        if bool(request.meter) == bool(request.currency):
            raise InvalidFieldError("meter", "or currency, one of them, must be given")
        if request.priority > PRIORITY_MAX:
            raise _out_of_range("priority", request.priority, f"0 to {PRIORITY_MAX}")
        asked = GrantAsked(
            name=_label(request.name) or ("Granted units" if request.meter else "Prepaid credit"),
            meter=request.meter,
            currency=request.currency,
            amount=_units("amount", request.amount),
            priority=request.priority,
            expires_at=_instant("expires_at", request.expires_at) if request.HasField("expires_at") else None,
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
        for entry in entries:
            answer.entries.add(
                grant_id=str(entry["grant_id"]),
                at=timestamp(entry["at"]),
                kind=entry["kind"],
                amount=entry["amount"],
                balance=entry["balance"],
            )
        return answer

    async def _once(
        self,
        request: OfTenant,
        answer_type: type[Answer],
        work: Callable[[Connection, UUID, Act], Awaitable[Answer]],
        context: Context,
    ) -> Answer:
        pool = self._resources.pools.billing
        tenant_id = await need_tenant(pool, request.tenant)

        async def acted() -> Answer:
            return await work(conn, tenant_id, await act_of(conn, request, context))

        async with transaction(pool) as conn:
            return await answer_once(conn, request, answer_type, acted)


async def _newest(conn: Connection, tenant: str, now: datetime) -> admin_pb2.Subscription:
    found = await list_subscriptions(conn, after=("", FIRST[1]), count_max=1_000, only=tenant, now=now)
    if not found:
        raise UnknownNameError("subscription", tenant)
    return _subscription(max(found, key=lambda view: view.started_at))


def _asked(request: admin_pb2.CreateSubscriptionRequest) -> changes.SubscriptionAsked:
    if not request.plan:
        raise InvalidFieldError("plan", "is missing", reason="FIELD_REQUIRED", remedy="name a plan")
    if request.trial_days > TRIAL_DAYS_MAX:
        raise _out_of_range("trial_days", request.trial_days, f"0 to {TRIAL_DAYS_MAX}")
    return changes.SubscriptionAsked(
        plan=request.plan,
        start=_instant("start", request.start) if request.HasField("start") else None,
        anchor=_anchor(request.anchor),
        time_zone=_time_zone(request.time_zone),
        currency=request.currency,
        quantity=_quantity(request.quantity) if request.HasField("quantity") else 1,
        trial_days=request.trial_days if request.HasField("trial_days") else None,
    )


def _state(name: str) -> str | None:
    if name and name not in STATES:
        raise InvalidFieldError("state", "is not known", value=ascii(name[:32]), bound=", ".join(STATES))
    return name or None


def _when(
    request: admin_pb2.ChangeSubscriptionRequest
    | admin_pb2.PauseSubscriptionRequest
    | admin_pb2.CancelSubscriptionRequest,
) -> str | datetime:
    if not request.HasField("at_time"):
        return request.at or changes.NOW
    if request.at:
        raise InvalidFieldError("at", "stands beside at_time", value=ascii(request.at[:32]), remedy="give one of them")
    return _instant("at_time", request.at_time)


def _time_zone(name: str) -> str:
    if name and not is_time_zone(name):
        raise InvalidFieldError("time_zone", "is not a time zone", value=ascii(name[:64]), bound="IANA names")
    return name


def _anchor(text: str) -> str:
    if text in _ANCHOR_WORDS or (_DATE.fullmatch(text) and _is_date(text)):
        return text
    raise InvalidFieldError(
        "anchor", "is not known", value=ascii(text[:32]), bound="start, calendar or a date like 2026-01-31"
    )


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _out_of_range(field: str, value: object, bound: str) -> InvalidFieldError:
    return InvalidFieldError(field, "is out of range", reason="FIELD_OUT_OF_RANGE", value=value, bound=bound)


def _quantity(quantity: int) -> int:
    if not 0 <= quantity <= QUANTITY_MAX:
        raise _out_of_range("quantity", quantity, f"0 to {QUANTITY_MAX}")
    return quantity


def _units(field: str, units: int, *, least: int = 1) -> int:
    if not least <= units <= UNITS_MAX:
        raise _out_of_range(field, units, f"{least} to {UNITS_MAX}")
    return units


def _percent(text: str) -> Decimal:
    try:
        percent = parse_decimal(text)
    except ValueError:
        percent = Decimal(0)
    if not 0 < percent <= _PERCENT_MAX:
        raise _out_of_range("percent", ascii(text[:40]), "a decimal above 0, up to 100")
    return percent


def _label(text: str, *, required: bool = False) -> str:
    if (required and not text) or len(text) > _NAME_CHARS_MAX or not text.isprintable():
        raise InvalidFieldError("name", "is no name", value=ascii(text[:64]), bound="1 to 128 printable characters")
    return text


def _instant(field: str, message: timestamp_pb2.Timestamp) -> datetime:
    try:
        return from_us(message.ToMicroseconds())
    except (OverflowError, ValueError):
        raise _out_of_range(field, message.seconds, "years 1 to 9999") from None
