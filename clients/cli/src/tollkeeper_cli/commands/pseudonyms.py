"""`tenant forget-pseudonyms`: destroy what could tell who is meant by a tenant's pseudonyms."""

from __future__ import annotations

from typing import Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc

from tollkeeper_cli.commands.common import NoteOption, new_request_id, targets_of
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to
from tollkeeper_cli.errors import UsageError


def forget_pseudonyms(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(help="The tenant's id.")],
    *,
    note: NoteOption = "",
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Destroy the key of a tenant's pseudonyms for good. Usage, chain and invoices stay; values are counted anew."""
    if not note:
        raise UsageError("why? Give --note TEXT for the audit log")
    if not yes:
        typer.confirm(
            f"Nobody will be able to say who is meant by the stored pseudonyms of {tenant!r}, and users that come again"
            " are counted as new ones. Destroy the key?",
            abort=True,
        )
    request = admin_pb2.ForgetPseudonymsRequest(request_id=new_request_id(), tenant=tenant, note=note)
    targets = targets_of(context)
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        version = admin_pb2_grpc.AdminServiceStub(channel).ForgetPseudonyms(request, timeout=CALL_TIMEOUT_S).version
    if not version:
        typer.echo(f"tenant {tenant} has no key of pseudonyms")
        return
    typer.echo(
        f"the key of {tenant}'s pseudonyms is destroyed; later ones begin with p{version}.\n"
        "backups of Postgres and its write-ahead log still hold the key: let them expire, or remove them"
    )
