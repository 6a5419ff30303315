"""`subscription`: who is on which plan, and what changes about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc

from tollkeeper_cli.commands.common import (
    OutputOption,
    TenantOption,
    in_force,
    moment,
    new_request_id,
    pages,
    require_tenant,
    targets_of,
)
from tollkeeper_cli.commands.migrate import migrate
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Cell, Output, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_COLUMNS = (
    "tenant", "plan", "plan_version", "state", "quantity", "period_start", "period_end", "ends_at", "started_at",
    "interval", "anchor", "time_zone", "features", "subscription_id",
)  # fmt: skip
_BRIEF = ("tenant", "plan", "plan_version", "state", "quantity", "period_start", "period_end", "ends_at")
_TIMES = ("period_start", "period_end", "ends_at", "started_at")


PlanOption = Annotated[str, typer.Option("--plan", help="The plan; its newest version.")]
WhenOption = Annotated[str, typer.Option("--at", help="When it is in force: now, period_end, or a time to come.")]
_UPCOMING = ("at_time", "plan", "plan_version", "state", "quantity", "interval", "anchor", "time_zone")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    words = "Who is on which plan, and what changes about it."
    group = typer.Typer(no_args_is_help=True, help=words)
    for name, command in (
        ("list", subscriptions),
        ("status", status),
        ("create", create),
        ("change", change),
        ("migrate", migrate),
        ("activate", activate),
        ("pause", pause),
        ("resume", resume),
        ("cancel", cancel),
        ("scheduled", scheduled),
        ("unschedule", unschedule),
        ("coupon", coupon),
    ):
        group.command(name)(command)
    app.add_typer(group, name="subscription", help=words)


def subscriptions(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    state: Annotated[str, typer.Option(help="trialing, active, past_due, paused or cancelled; without it, all.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List subscriptions, of one tenant or of all."""
    _show(_found(context, tenant, state), output)


def status(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """Show a tenant's subscriptions: plan, state, running period, end."""
    _show(_found(context, require_tenant(tenant)), output)


def _found(context: typer.Context, tenant: str, state: str = "") -> list[admin_pb2.Subscription]:
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = admin_pb2_grpc.AdminServiceStub(channel).ListSubscriptions
        request = admin_pb2.ListSubscriptionsRequest(tenant=tenant, state=state)
        return [one for page in pages(call, request) for one in page.subscriptions]


def _show(found: Iterable[admin_pb2.Subscription], output: Output) -> None:
    rows: list[dict[str, Cell]] = [
        {name: to_text(getattr(one, name)) if name in _TIMES else getattr(one, name) for name in _COLUMNS}
        | {"features": [f"{each.name}={each.value}" if each.value else each.name for each in one.features]}
        for one in found
    ]
    show(rows, _COLUMNS, output, title="Subscriptions", brief=_BRIEF)


def create(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    plan: PlanOption = "",
    start: Annotated[str, typer.Option(help="When it begins; without it, now.")] = "",
    anchor: Annotated[str, typer.Option(help="start, calendar, or a date: what periods are counted from.")] = "",
    time_zone: Annotated[str, typer.Option(help="IANA name; without it, the seller's.")] = "",
    currency: Annotated[str, typer.Option(help="ISO 4217 code; without it, the plan's first.")] = "",
    seats: Annotated[int, typer.Option(min=0, help="Seats.")] = 1,
    trial_days: Annotated[int | None, typer.Option(min=0, help="Days of trial; without it, the plan's.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Subscribe a tenant."""
    if not plan:
        raise UsageError("which plan? Give --plan NAME")
    request = admin_pb2.CreateSubscriptionRequest(
        request_id=new_request_id(),
        tenant=require_tenant(tenant),
        plan=plan,
        anchor=anchor,
        time_zone=time_zone,
        currency=currency,
        quantity=seats,
        trial_days=trial_days,
    )
    if start:
        request.start.CopyFrom(moment(start, what="--start"))
    _call(context, lambda stub: stub.CreateSubscription(request, timeout=CALL_TIMEOUT_S), output)


def change(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    plan: PlanOption = "",
    seats: Annotated[int | None, typer.Option(min=0, help="Seats.")] = None,
    anchor: Annotated[str, typer.Option(help="start, calendar, or a date: what periods are counted from.")] = "",
    time_zone: Annotated[str, typer.Option(help="IANA name: the zone of its periods.")] = "",
    at: WhenOption = "now",
    output: OutputOption = Output.TABLE,
) -> None:
    """Move a subscription to a plan's newest version and interval, another number of seats, anchor or time zone."""
    if not plan and seats is None and not anchor and not time_zone:
        raise UsageError("what changes? Give --plan NAME, --seats COUNT, --anchor DATE or --time-zone NAME")
    request = admin_pb2.ChangeSubscriptionRequest(
        request_id=new_request_id(),
        tenant=require_tenant(tenant),
        plan=plan,
        **in_force(at),
        quantity=seats,
        anchor=anchor,
        time_zone=time_zone,
    )
    _call(context, lambda stub: stub.ChangeSubscription(request, timeout=CALL_TIMEOUT_S), output)


def activate(context: typer.Context, *, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """End a trial now: fees and prices count from here on."""
    request = admin_pb2.ActivateSubscriptionRequest(request_id=new_request_id(), tenant=require_tenant(tenant))
    _call(context, lambda stub: stub.ActivateSubscription(request, timeout=CALL_TIMEOUT_S), output)


def pause(
    context: typer.Context, *, tenant: TenantOption = "", at: WhenOption = "now", output: OutputOption = Output.TABLE
) -> None:
    """Pause a subscription: no fees, and its checks are denied."""
    request = admin_pb2.PauseSubscriptionRequest(
        request_id=new_request_id(), tenant=require_tenant(tenant), **in_force(at)
    )
    _call(context, lambda stub: stub.PauseSubscription(request, timeout=CALL_TIMEOUT_S), output)


def resume(context: typer.Context, *, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """End a pause, or take back a cancellation that is still to come."""
    request = admin_pb2.ResumeSubscriptionRequest(request_id=new_request_id(), tenant=require_tenant(tenant))
    _call(context, lambda stub: stub.ResumeSubscription(request, timeout=CALL_TIMEOUT_S), output)


def cancel(
    context: typer.Context, *, tenant: TenantOption = "", at: WhenOption = "now", output: OutputOption = Output.TABLE
) -> None:
    """End a subscription now, or with the running period."""
    request = admin_pb2.CancelSubscriptionRequest(
        request_id=new_request_id(), tenant=require_tenant(tenant), **in_force(at)
    )
    _call(context, lambda stub: stub.CancelSubscription(request, timeout=CALL_TIMEOUT_S), output)


def scheduled(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """List what is to change about subscriptions, of one tenant or of all: what each will be from then on."""
    rows: list[dict[str, Cell]] = [
        {"tenant": one.tenant}
        | {name: to_text(change.at_time) if name == "at_time" else getattr(change, name) for name in _UPCOMING}
        for one in _found(context, tenant)
        for change in one.scheduled
    ]
    show(rows, ("tenant", *_UPCOMING), output, title="Changes to come")


def unschedule(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    at: Annotated[str, typer.Option(help="For when it is scheduled.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Take back what is to change at a time to come."""
    if not at:
        raise UsageError("which change? Give --at TIME; `tollkeeper subscription scheduled` lists them")
    request = admin_pb2.UnscheduleSubscriptionRequest(
        request_id=new_request_id(), tenant=require_tenant(tenant), at_time=moment(at, what="--at")
    )
    _call(context, lambda stub: stub.UnscheduleSubscription(request, timeout=CALL_TIMEOUT_S), output)


def coupon(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name on invoices.")],
    *,
    tenant: TenantOption = "",
    percent: Annotated[str, typer.Option(help="Percent off, decimal.")] = "",
    amount_minor: Annotated[int, typer.Option(min=0, help="Minor units off, for example cents.")] = 0,
    invoices: Annotated[int, typer.Option(min=0, help="Invoices that it is good for; 0 = every one.")] = 0,
) -> None:
    """Take a percentage or an amount off the next invoices, and print the coupon's id."""
    request = admin_pb2.AddCouponRequest(
        request_id=new_request_id(),
        tenant=require_tenant(tenant),
        name=name,
        percent=percent,
        amount_minor=amount_minor,
        periods=invoices,
    )
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).AddCoupon(request, timeout=CALL_TIMEOUT_S)
    typer.echo(answer.coupon_id)


def _call(
    context: typer.Context,
    call: Callable[
        [admin_pb2_grpc.AdminServiceStub],
        admin_pb2.CreateSubscriptionResponse
        | admin_pb2.ChangeSubscriptionResponse
        | admin_pb2.ActivateSubscriptionResponse
        | admin_pb2.PauseSubscriptionResponse
        | admin_pb2.ResumeSubscriptionResponse
        | admin_pb2.CancelSubscriptionResponse
        | admin_pb2.UnscheduleSubscriptionResponse,
    ],
    output: Output,
) -> None:
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = call(admin_pb2_grpc.AdminServiceStub(channel))
    _show([answer.subscription], output)
