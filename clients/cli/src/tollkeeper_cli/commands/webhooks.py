"""`webhook`: who is sent alerts, and what was sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc

from tollkeeper_cli.commands.common import (
    LIMIT_DEFAULT,
    AllOption,
    LimitOption,
    OutputOption,
    new_request_id,
    pages,
    targets_of,
    up_to,
)
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Cell, Output, show

if TYPE_CHECKING:
    from collections.abc import Mapping

_COLUMNS = ("webhook_id", "url", "tenant", "secrets", "queued", "dead")
_MESSAGE_COLUMNS = (
    "queued_at", "state", "tries", "status", "reply", "tenant", "url", "next_at", "message_id", "webhook_id",
    "alert_id",
)  # fmt: skip
_MESSAGE_BRIEF = ("queued_at", "state", "tries", "status", "reply", "tenant", "url", "message_id")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The receiver, as `webhook list` names it.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Who is sent alerts.")
    group.command("add")(add)
    group.command("list")(listing)
    group.command("rotate")(rotate)
    group.command("remove")(remove)
    group.command("messages")(messages)
    group.command("replay")(replay)
    app.add_typer(group, name="webhook")


def add(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to; https.")],
    *,
    tenant: Annotated[str, typer.Option("--tenant", help="Only this tenant's alerts.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Send alerts to a receiver from now on. Its secret is told here and never again."""
    request = admin_pb2.CreateWebhookRequest(request_id=new_request_id(), url=url, tenant=tenant)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        made = admin_pb2_grpc.AdminServiceStub(channel).CreateWebhook(request, timeout=CALL_TIMEOUT_S)
    show([{"webhook_id": made.webhook_id, "secret": made.secret}], ("webhook_id", "secret"), output, title="Webhook")


def listing(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List receivers with what waits for them and what was given up."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        found = stub.ListWebhooks(admin_pb2.ListWebhooksRequest(), timeout=CALL_TIMEOUT_S).webhooks
    rows: list[Mapping[str, Cell]] = [{name: getattr(one, name) for name in _COLUMNS} for one in found]
    show(rows, _COLUMNS, output, title="Webhooks")


def rotate(context: typer.Context, webhook: IdArgument, output: OutputOption = Output.TABLE) -> None:
    """Sign with another secret as well; the one before ends with the next rotation."""
    request = admin_pb2.RotateWebhookSecretRequest(request_id=new_request_id(), webhook_id=webhook)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        made = admin_pb2_grpc.AdminServiceStub(channel).RotateWebhookSecret(request, timeout=CALL_TIMEOUT_S)
    show([{"webhook_id": webhook, "secret": made.secret}], ("webhook_id", "secret"), output, title="Webhook")


def remove(context: typer.Context, webhook: IdArgument) -> None:
    """Send to a receiver no more."""
    request = admin_pb2.RemoveWebhookRequest(request_id=new_request_id(), webhook_id=webhook)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        admin_pb2_grpc.AdminServiceStub(channel).RemoveWebhook(request, timeout=CALL_TIMEOUT_S)
    typer.echo(f"removed: {webhook}")


def messages(
    context: typer.Context,
    *,
    state: Annotated[str, typer.Option(help="Only queued, sent or dead ones.")] = "",
    limit: LimitOption = LIMIT_DEFAULT,
    everything: AllOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List messages to receivers, newest first."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = admin_pb2_grpc.AdminServiceStub(channel).ListWebhookMessages
        every = (
            one for page in pages(call, admin_pb2.ListWebhookMessagesRequest(state=state)) for one in page.messages
        )
        found = up_to(every, limit, everything=everything)
    rows: list[Mapping[str, Cell]] = [
        {
            **{name: getattr(one, name) for name in _MESSAGE_COLUMNS},
            "queued_at": to_text(one.queued_at),
            "next_at": to_text(one.next_at) if one.HasField("next_at") else "",
        }
        for one in found
    ]
    show(rows, _MESSAGE_COLUMNS, output, title="Webhook messages", brief=_MESSAGE_BRIEF)


def replay(
    context: typer.Context,
    *,
    message: Annotated[str, typer.Option(help="One message that is no longer queued.")] = "",
    webhook: Annotated[str, typer.Option(help="All of this receiver that were given up.")] = "",
) -> None:
    """Send messages again, under the ids that they had."""
    if bool(message) == bool(webhook):
        raise UsageError("what is to be sent again? Give --message ID or --webhook ID")
    request = admin_pb2.ReplayWebhookMessagesRequest(
        request_id=new_request_id(), message_id=message, webhook_id=webhook
    )
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).ReplayWebhookMessages(request, timeout=CALL_TIMEOUT_S)
    typer.echo(f"queued again: {answer.messages}")
