"""`demo`: the whole path on real input, from one check to one invoice."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tollkeeper_cli.commands.processes import DataDirectoryOption, ended_by_signals, stay_up
from tollkeeper_cli.connection import DATA_DIRECTORY, micros_text
from tollkeeper_cli.demo.journey import JourneyOptions, read_trace, travel
from tollkeeper_cli.demo.summary import print_summary
from tollkeeper_cli.embedded import ProcessError
from tollkeeper_cli.errors import CommandError, FoundProblemsError, UsageError
from tollkeeper_cli.replay.session import Speed
from tollkeeper_cli.stack import Stack, addresses_from, owned_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_cli.demo.summary import Summary
    from tollkeeper_cli.replay.model import ReplayRequest

_EXAMPLES = Path("examples")
# The clock of a fresh stack starts so much before the trace: it runs at real speed until the replay begins.
_CLOCK_LEAD_US = 900_000_000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="End after the summary instead of staying up.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the summary there as JSON as well.")] = None,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="Replay without limits.")] = False,
    speed: Annotated[
        Speed, typer.Option(help="Times real time, slower while the machine is too busy; max steps the clock.")
    ] = Speed.FASTER,
    keep: Annotated[bool, typer.Option("--keep", help="Go on with the data of the run before.")] = False,
    examples: Annotated[Path, typer.Option(help="The folder with catalogues and data.")] = _EXAMPLES,
    data_dir: DataDirectoryOption = DATA_DIRECTORY,
) -> None:
    """Start everything, replay a real hour of an LLM platform, bill it, and say what came of it.

    Starts fresh each time: what an earlier run left in the data directory is removed, unless --keep is given.
    Exits 1 when anything was lost, stored twice, or billed differently from what was admitted.
    """
    if not (examples / "data").is_dir():
        raise UsageError(f"{examples / 'data'} is missing: run from the project's folder, or give --examples")
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise UsageError(f"{json_file.resolve().parent} is no folder: --json can't write there")
    console = Console(highlight=False)
    options = JourneyOptions(
        examples=examples,
        speed=speed,
        unlimited=unlimited,
        fresh=not keep,
        run_name=f"replay-{secrets.token_hex(4)}" if keep else "replay",
    )
    with owned_directory(data_dir, fresh=not keep) as directory, ended_by_signals():
        trace = read_trace(options)
        stack = Stack(
            directory,
            addresses=addresses_from(os.environ),
            clock_start=micros_text(trace[0].at_us - _CLOCK_LEAD_US),
            say=console.print,
        )
        try:
            console.print("starting Postgres, Valkey, ledger and sidecar")
            stack.start()
            summary = _travel(stack, trace, options, console)
            _report(summary, json_file, console)
            if once:
                if summary.problems:
                    raise FoundProblemsError(f"{len(summary.problems)} problems were found")
                return
            console.print("staying up until Ctrl-C; try `tollkeeper quota get-all --tenant conv` in another terminal")
            stay_up(stack)
        finally:
            console.print("stopping")
            stack.stop()


def _travel(stack: Stack, trace: Sequence[ReplayRequest], options: JourneyOptions, console: Console) -> Summary:
    """Go the journey; take a single error out of the group that it comes in."""
    try:
        return asyncio.run(travel(stack, trace, options, console))
    except* (CommandError, ProcessError) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _report(summary: Summary, json_file: Path | None, console: Console) -> None:
    """Print the summary, and write it."""
    print_summary(console, summary)
    if json_file is not None:
        json_file.write_text(json.dumps(summary.to_json(), indent=2) + "\n", encoding="utf-8")
        console.print(f"wrote {json_file}", markup=False, soft_wrap=True)
