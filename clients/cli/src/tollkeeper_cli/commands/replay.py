"""`replay`: send a recording through a running sidecar."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tollkeeper_cli.commands.common import OutputOption, targets_of
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.ledger_calls import ledger_at
from tollkeeper_cli.output import Cell, Output, show
from tollkeeper_cli.replay.formats import Format, ReadOptions, TenantField, read_requests, stop_at_malformed
from tollkeeper_cli.replay.pace import merged
from tollkeeper_cli.replay.session import Speed, plan_timing, shifted
from tollkeeper_cli.replay.session import replay as replay_requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from tollkeeper_cli.connection import Targets
    from tollkeeper_cli.replay.model import MalformedLine, ReplayRequest
    from tollkeeper_cli.replay.tally import Tally

_COLUMNS = ("tenant", "requests", "admitted", "denied", "units", "refunded", "denied_by")
_SHOW_INTERVAL_S = 0.1
_DENIAL_COLUMNS = ("tenant", "limit", "reason", "requests")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("replay")(replay)


def replay(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The recording, plain or gzip.")],
    *,
    form: Annotated[Format, typer.Option("--format", help="The recording's format.")],
    tenant: Annotated[str, typer.Option(envvar="TOLLKEEPER_TENANT", help="The tenant of every request.")] = "",
    tenant_field: Annotated[
        TenantField, typer.Option(help="combined: the field that names the tenant; path = its first segment.")
    ] = TenantField.HOST,
    speed: Annotated[Speed, typer.Option(help="Times real time; max steps the clock. Above 1: embedded only.")] = (
        Speed.REAL
    ),
    seed: Annotated[str, typer.Option(help="Seeds the users of formats that have none.")] = "tollkeeper",
    run: Annotated[str, typer.Option(help="First part of the request ids; the same ids are the same requests.")] = (
        "replay"
    ),
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first line that can't be read.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Send each request of a recording through the sidecar: reserve when it arrives, settle when it ends.

    combined: one request and its bytes per line of a web server's access log. A line that can't be read is reported
    with its number and skipped; with --strict it ends the command before anything is sent.
    """
    errors = Console(stderr=True, highlight=False)
    options = ReadOptions(tenant=tenant, tenant_field=tenant_field, seed=seed, id_prefix=run)
    skipped = 0

    def report(line: MalformedLine) -> None:
        nonlocal skipped
        skipped += 1
        errors.print(f"skipped {line}", markup=False, soft_wrap=True)

    requests = merged(read_requests(file, form, options, on_malformed=stop_at_malformed if strict else report))
    if not requests:
        raise UsageError(f"{file} has no requests")
    tally = asyncio.run(_run(targets_of(context), requests, speed, errors))
    show(tally_rows(tally), _COLUMNS, output, title="Replayed", brief=_COLUMNS[:4])
    if output is Output.TABLE and tally.denied:
        show(denial_rows(tally), _DENIAL_COLUMNS, output, title="Denied")
    if skipped:
        errors.print(f"{skipped} lines were skipped")


def progress_bar(console: Console) -> Progress:
    """Make the bar that a replay moves."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
    )


def seldom(show: Callable[[Tally], None]) -> Callable[[Tally], None]:
    """Pass counts on ten times a second, not at each of thousands."""
    shown_s = 0.0

    def moved(tally: Tally) -> None:
        nonlocal shown_s
        now_s = time.monotonic()
        if now_s - shown_s >= _SHOW_INTERVAL_S:
            shown_s = now_s
            show(tally)

    return moved


def tally_rows(tally: Tally) -> list[dict[str, Cell]]:
    """Turn counts into rows, one per tenant."""
    return [
        {
            "tenant": name,
            "requests": counts.requests,
            "admitted": counts.admitted,
            "denied": counts.denied,
            "units": dict(sorted(counts.units.items())),
            "refunded": dict(sorted(counts.refunded.items())),
            "denied_by": {f"{limit}/{reason}": count for (limit, reason), count in sorted(counts.denials.items())},
        }
        for name, counts in sorted(tally.tenants.items())
    ]


def denial_rows(tally: Tally) -> list[dict[str, Cell]]:
    """Turn denials into rows, most first."""
    return [
        {"tenant": tenant, "limit": limit, "reason": reason, "requests": count}
        for (tenant, limit, reason), count in tally.denials().items()
    ]


async def _run(targets: Targets, requests: list[ReplayRequest], speed: Speed, errors: Console) -> Tally:
    """Replay with a progress bar."""
    async with ledger_at(targets.ledger) as ledger:
        timing = await plan_timing(ledger, requests[0].at_us, fresh=False)
        with progress_bar(errors) as bar:
            task = bar.add_task("replay", total=len(requests), note="")
            tally = await replay_requests(
                shifted(requests, timing.shift_us),
                ledger=ledger,
                sidecar=targets.sidecar,
                speed=speed,
                timing=timing,
                on_progress=seldom(lambda tally: bar.update(task, completed=tally.admitted + tally.denied)),
            )
            bar.update(task, completed=tally.admitted + tally.denied)
            return tally
