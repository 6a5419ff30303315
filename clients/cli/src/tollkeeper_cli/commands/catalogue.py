"""`apply` and `diff`: declare a catalogue."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc

from tollkeeper_cli.commands.common import OutputOption, new_request_id, targets_of
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Output, show

if TYPE_CHECKING:
    from collections.abc import Iterable

_COLUMNS = ("action", "kind", "name", "detail")

FileOption = Annotated[Path, typer.Option("-f", "--file", help="The catalogue as YAML; - reads standard input.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("apply")(apply)
    app.command("diff")(diff)


def apply(context: typer.Context, file: FileOption, output: OutputOption = Output.TABLE) -> None:
    """Declare a catalogue: all of it or nothing."""
    request = admin_pb2.ApplyCatalogueRequest(
        request_id=new_request_id(), yaml=read_catalogue(file), source_name=file.name
    )
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).ApplyCatalogue(request, timeout=CALL_TIMEOUT_S)
    _show(answer.changes, output, "Applied")


def diff(context: typer.Context, file: FileOption, output: OutputOption = Output.TABLE) -> None:
    """Show what `apply` would change. Changes nothing."""
    request = admin_pb2.DiffCatalogueRequest(yaml=read_catalogue(file), source_name=file.name)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).DiffCatalogue(request, timeout=CALL_TIMEOUT_S)
    _show(answer.changes, output, "Would change")


def read_catalogue(file: Path) -> str:
    """Read a catalogue's text."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {error}") from error


def _show(changes: Iterable[admin_pb2.CatalogueChange], output: Output, title: str) -> None:
    rows = [{column: getattr(change, column) for column in _COLUMNS} for change in changes]
    show(rows, _COLUMNS, output, title=title)
