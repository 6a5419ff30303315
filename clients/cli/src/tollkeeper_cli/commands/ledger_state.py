"""`ledger state`, `confirm-restore`, `confirm-clock`, `mark-safe`: what stops issuing, and what a restore keeps."""

from __future__ import annotations

from typing import Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc, producers_pb2

from tollkeeper_cli.commands.common import NoteOption, OutputOption, moment, new_request_id, targets_of
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.errors import FoundProblemsError
from tollkeeper_cli.output import Cell, Output, show

_BRIEF = ("timeline", "restored_at", "frozen_before", "learning_until", "clock_held_at", "clock_jump_s")
_COLUMNS = ("installation_id", *_BRIEF)


def register(group: typer.Typer) -> None:
    """Add the commands to the group `ledger`."""
    group.command("state")(state)
    group.command("confirm-restore")(confirm_restore)
    group.command("confirm-clock")(confirm_clock)
    group.command("mark-safe")(mark_safe)


def state(context: typer.Context, *, output: OutputOption = Output.TABLE) -> None:
    """Show whether issuing is stopped. Exits 1 while it is."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        found = admin_pb2_grpc.AdminServiceStub(channel).GetLedgerState(
            admin_pb2.GetLedgerStateRequest(), timeout=CALL_TIMEOUT_S
        )
    row: dict[str, Cell] = {
        "installation_id": found.installation_id,
        "timeline": found.timeline,
        "restored_at": to_text(found.restored_at),
        "frozen_before": to_text(found.frozen_before),
        "learning_until": to_text(found.learning_until),
        "clock_held_at": to_text(found.clock_held_at),
        "clock_jump_s": found.clock_jump_s,
    }
    show([row], _COLUMNS, output, title="Ledger", brief=_BRIEF)
    if found.HasField("frozen_before"):
        learning = ""
        if found.HasField("learning_until"):
            learning = f"\nuntil {row['learning_until']} sidecars say what they have of limits that learn"
        raise FoundProblemsError(
            f"Postgres was set back at {row['restored_at']}: windows that began before {row['frozen_before']} are not"
            " issued from\n`tollkeeper ledger confirm-restore` lets them be issued from what Postgres knows to be left;"
            " `tollkeeper quota reset` gives single ones their full amount"
            f"\nlimits with `after_restore: learn` need neither{learning}"
        )
    if found.HasField("clock_held_at"):
        raise FoundProblemsError(
            f"Postgres' clock jumped {found.clock_jump_s:,} s forward: no window is opened\n"
            "set the clock right, or accept its time with `tollkeeper ledger confirm-clock`"
        )


def confirm_restore(context: typer.Context, *, note: NoteOption = "", output: OutputOption = Output.TABLE) -> None:
    """Let windows that were open at a restore be issued from again, from what Postgres knows to be left.

    Units issued after the backup, which Postgres has forgotten, may then be issued a second time.
    """
    targets = targets_of(context)
    request = admin_pb2.ConfirmRestoreRequest(request_id=new_request_id(), note=note)
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).ConfirmRestore(request, timeout=CALL_TIMEOUT_S)
    row: dict[str, Cell] = {"timeline": answer.timeline, "was_frozen": answer.was_frozen}
    show([row], tuple(row), output)


def confirm_clock(context: typer.Context, *, note: NoteOption = "", output: OutputOption = Output.TABLE) -> None:
    """Accept ledger time after a forward jump of Postgres' clock: windows are opened again."""
    targets = targets_of(context)
    request = admin_pb2.ConfirmClockRequest(request_id=new_request_id(), note=note)
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).ConfirmClock(request, timeout=CALL_TIMEOUT_S)
    row: dict[str, Cell] = {"now": to_text(answer.now), "was_held": answer.was_held}
    show([row], tuple(row), output)


def mark_safe(
    context: typer.Context,
    *,
    at: Annotated[str, typer.Option("--at", help="When the backup was begun, RFC 3339; else now.")] = "",
    note: NoteOption = "",
) -> None:
    """Say, when a backup of Postgres is complete, that it is: sidecars may drop what it has from their usage logs.

    For backup tooling. Without it what is 24 h old counts as safe.
    """
    targets = targets_of(context)
    request = producers_pb2.MarkSafeRequest(request_id=new_request_id(), note=note)
    if at:
        request.at.CopyFrom(moment(at, what="--at"))
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).MarkSafe(request, timeout=CALL_TIMEOUT_S)
    typer.echo(f"safe before {to_text(answer.safe_before)}")
