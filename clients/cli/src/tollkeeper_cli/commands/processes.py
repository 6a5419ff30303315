"""`up`, `sidecar` and `ledger`: run the processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tollkeeper_cli.commands import ledger_state
from tollkeeper_cli.connection import DATA_DIRECTORY
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.stack import Addresses, Stack, addresses_from, owned_directory, servers_from

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_CHECK_INTERVAL_S = 0.5

DataDirectoryOption = Annotated[
    Path, typer.Option("--data-dir", envvar="TOLLKEEPER_DATA_DIR", help="Where servers keep data, logs and sockets.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("up")(up)
    app.command("sidecar")(sidecar)
    group = typer.Typer(no_args_is_help=True, help="The central ledger.")
    group.command("serve")(ledger_serve)
    group.command("jobs")(ledger_jobs)
    group.command("kafka")(ledger_kafka)
    group.command("migrate")(ledger_migrate)
    group.command("archive-month")(ledger_archive)
    group.command("restore-month")(ledger_restore)
    group.command("rebuild-rollups")(ledger_rebuild)
    ledger_state.register(group)
    app.add_typer(group, name="ledger")


def up(*, data_dir: DataDirectoryOption = DATA_DIRECTORY) -> None:
    """Run ledger and sidecar until Ctrl-C, with embedded Postgres and Valkey unless URLs are set. Keeps its data."""
    console = Console(highlight=False)
    servers = servers_from(os.environ)
    if bool(servers.database_url) != bool(servers.redis_url):
        raise UsageError("set both TOLLKEEPER_DATABASE_URL and TOLLKEEPER_REDIS_URL, or neither for embedded servers")
    with owned_directory(data_dir, fresh=False) as directory, ended_by_signals():
        stack = Stack(directory, addresses=addresses_from(os.environ), servers=servers, say=console.print)
        try:
            show_addresses(console, stack.start(), directory)
            stay_up(stack)
        except KeyboardInterrupt:
            console.print("\nstopping")
        finally:
            stack.stop()


def sidecar() -> None:
    """Become the sidecar, configured by TOLLKEEPER_* variables."""
    _become("tollkeeper_sidecar")


def ledger_serve() -> None:
    """Become the ledger, configured by TOLLKEEPER_* variables."""
    _become("tollkeeper_ledger", "serve")


def ledger_jobs() -> None:
    """Become the runner of what is done by the clock; any number may run."""
    _become("tollkeeper_ledger", "jobs")


def ledger_kafka() -> None:
    """Become a reader of usage from topics of a Kafka cluster; any number may run."""
    _become("tollkeeper_ledger.kafka")


def ledger_migrate() -> None:
    """Bring the database's schema up to date."""
    _become("tollkeeper_ledger", "migrate")


def ledger_rebuild(
    *, check: Annotated[bool, typer.Option("--check", help="Only compare; exit code 1 on a difference.")] = False
) -> None:
    """Compare all rollups with their records, and make those anew that differ."""
    _become("tollkeeper_ledger", "rebuild-rollups", *(["--check"] if check else []))


Month = Annotated[str, typer.Argument(help="YYYY-MM, UTC.")]


def ledger_archive(month: Month) -> None:
    """Take a month's raw records out of Postgres, into a file; `ledger jobs` does so by itself."""
    _become("tollkeeper_ledger", "archive-month", "--month", month)


def ledger_restore(month: Month) -> None:
    """Put the raw records of an archived month into Postgres again."""
    _become("tollkeeper_ledger", "restore-month", "--month", month)


def stay_up(stack: Stack) -> None:
    """Return never; raise ProcessError when a process has died, KeyboardInterrupt at Ctrl-C."""
    while True:
        stack.check()
        time.sleep(_CHECK_INTERVAL_S)


def show_addresses(console: Console, addresses: Addresses, directory: Path) -> None:
    """Print where everything is."""
    for name, place in (
        ("sidecar", f"{addresses.sidecar_listen}  unix:{addresses.sidecar_socket}"),
        ("sidecar health", f"http://{addresses.sidecar_http}/health"),
        ("ledger", addresses.ledger_listen),
        ("ledger health", f"http://{addresses.ledger_http}/health"),
        ("logs and data", str(directory)),
    ):
        console.print(f"{name:<16}{place}", markup=False, soft_wrap=True)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into what Ctrl-C does, so that everything is taken down in order."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _become(module: str, *arguments: str) -> None:
    """Replace this process by a Python module's."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - no shell is the point
