"""`coupon`: what comes off tenants' next invoices."""

from __future__ import annotations

from typing import Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc

from tollkeeper_cli.commands.common import (
    NoteOption,
    OutputOption,
    TenantOption,
    new_request_id,
    pages,
    require_tenant,
    targets_of,
)
from tollkeeper_cli.commands.subscriptions import coupon
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.output import Cell, Output, show

_COLUMNS = ("tenant", "name", "percent", "amount_minor", "invoices_left", "state", "added_at", "removed_at",
            "coupon_id")  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands."""
    words = "What comes off tenants' next invoices."
    group = typer.Typer(no_args_is_help=True, help=words)
    for name, command in (("add", coupon), ("list", coupons), ("remove", remove)):
        group.command(name)(command)
    app.add_typer(group, name="coupon", help=words)


def coupons(
    context: typer.Context,
    tenant: TenantOption = "",
    *,
    past: Annotated[bool, typer.Option("--past", help="Also those that are used up or taken back.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List coupons, newest first, of one tenant or of all."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = admin_pb2_grpc.AdminServiceStub(channel).ListCoupons
        request = admin_pb2.ListCouponsRequest(tenant=tenant, with_past=past)
        found = [one for page in pages(call, request) for one in page.coupons]
    rows: list[dict[str, Cell]] = [
        {
            "tenant": one.tenant,
            "name": one.name,
            "percent": one.percent,
            "amount_minor": one.amount_minor or None,
            "invoices_left": one.periods_left if one.HasField("periods_left") else None,
            "state": one.state,
            "added_at": to_text(one.added_at),
            "removed_at": to_text(one.removed_at) if one.HasField("removed_at") else "",
            "coupon_id": one.coupon_id,
        }
        for one in found
    ]
    show(rows, _COLUMNS, output, title="Coupons")


def remove(
    context: typer.Context,
    coupon_id: Annotated[str, typer.Argument(help="Its id; `tollkeeper coupon list` has them.")],
    tenant: TenantOption = "",
    note: NoteOption = "",
) -> None:
    """Take a coupon back from a tenant: invoices whose periods are not closed yet don't have it."""
    request = admin_pb2.RemoveCouponRequest(
        request_id=new_request_id(), tenant=require_tenant(tenant), coupon_id=coupon_id, note=note
    )
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        admin_pb2_grpc.AdminServiceStub(channel).RemoveCoupon(request, timeout=CALL_TIMEOUT_S)
