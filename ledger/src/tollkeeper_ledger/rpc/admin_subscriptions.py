# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""AdminService's part about subscriptions."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import admin_pb2

from tollkeeper_ledger.domain.catalogue.reader import is_time_zone
from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.domain.features import value_text
from tollkeeper_ledger.rpc.acting import timestamp
from tollkeeper_ledger.rpc.admin_reductions import AdminReductions
from tollkeeper_ledger.rpc.fields import instant_of, out_of_range
from tollkeeper_ledger.rpc.paging import from_token, page_size, to_token
from tollkeeper_ledger.services import subscription_changes as changes
from tollkeeper_ledger.services.subscription_dates import take_back
from tollkeeper_ledger.services.subscriptions import FIRST, list_subscriptions
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    import grpc.aio

    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.services.subscriptions import SubscriptionView
    from tollkeeper_ledger.store.pool import Connection

    Context = grpc.aio.ServicerContext[Any, Any]


QUANTITY_MAX = 1_000_000
TRIAL_DAYS_MAX = 1_000
STATES = ("trialing", "active", "past_due", "paused", "cancelled")
_ANCHOR_WORDS = ("", "start", "calendar")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


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
        features=[admin_pb2.Feature(name=name, value=value_text(value)) for name, value in view.features.items()],
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


class AdminSubscriptions(AdminReductions):
    """Serve operators what concerns subscriptions."""

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
        instant = instant_of("at_time", request.at_time)

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> admin_pb2.UnscheduleSubscriptionResponse:
            await take_back(conn, tenant_id, instant, act=act)
            return admin_pb2.UnscheduleSubscriptionResponse(subscription=await _newest(conn, request.tenant, act.now))

        return await self._once(request, admin_pb2.UnscheduleSubscriptionResponse, work, context)


async def _newest(conn: Connection, tenant: str, now: datetime) -> admin_pb2.Subscription:
    found = await list_subscriptions(conn, after=("", FIRST[1]), count_max=1_000, only=tenant, now=now)
    if not found:
        raise UnknownNameError("subscription", tenant)
    return _subscription(max(found, key=lambda view: view.started_at))


def _asked(request: admin_pb2.CreateSubscriptionRequest) -> changes.SubscriptionAsked:
    if not request.plan:
        raise InvalidFieldError("plan", "is missing", reason="FIELD_REQUIRED", remedy="name a plan")
    if request.trial_days > TRIAL_DAYS_MAX:
        raise out_of_range("trial_days", request.trial_days, f"0 to {TRIAL_DAYS_MAX}")
    return changes.SubscriptionAsked(
        plan=request.plan,
        start=instant_of("start", request.start) if request.HasField("start") else None,
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
    return instant_of("at_time", request.at_time)


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


def _quantity(quantity: int) -> int:
    if not 0 <= quantity <= QUANTITY_MAX:
        raise out_of_range("quantity", quantity, f"0 to {QUANTITY_MAX}")
    return quantity
