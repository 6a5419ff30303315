"""The command `tollkeeper`: wires the commands and turns errors into exit codes.

Exit codes: 0 done, 1 denied or found problems, 2 wrong usage, 3 a server doesn't answer.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from tollkeeper_cli.aliases import with_our_words
from tollkeeper_cli.commands import (
    alerts,
    cache,
    catalogue,
    coupons,
    demo,
    grants,
    invoices,
    listings,
    money_views,
    overage,
    payments,
    processes,
    quota,
    rate,
    replay,
    subscriptions,
    usage,
    violations,
    webhooks,
)
from tollkeeper_cli.connection import find_targets
from tollkeeper_cli.embedded import ProcessError
from tollkeeper_cli.errors import CommandError

_HELP = (
    "Runs, operates and demonstrates Tollkeeper: quotas and metering beside a service, with a billing ledger behind."
)


def build_app() -> typer.Typer:
    """Build the application with every command."""
    app = typer.Typer(
        no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=_HELP
    )
    app.callback()(_choose_servers)
    modules = (
        processes, demo, replay, catalogue, quota, cache,
        rate, usage, listings, subscriptions, coupons, grants, invoices, money_views, overage, payments,
        alerts, violations, webhooks,
    )  # fmt: skip
    for module in modules:
        module.register(app)
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    errors = Console(stderr=True, highlight=False)
    try:
        words = with_our_words(sys.argv[1:] if arguments is None else arguments)
        build_app()(args=words, prog_name="tollkeeper")
    except SystemExit as end:  # the framework's way to say that the command is over
        return end.code if isinstance(end.code, int) else 0
    except CommandError as error:
        errors.print(f"error: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    except ProcessError as error:
        errors.print(f"error: {error}", markup=False, soft_wrap=True)
        return 1
    return 0


def _choose_servers(
    context: typer.Context,
    *,
    ledger: Annotated[str, typer.Option(help="Address of the ledger. Default: TOLLKEEPER_LEDGER_ADDRESS.")] = "",
    sidecar: Annotated[str, typer.Option(help="Address of the sidecar, also unix:PATH.")] = "",
    actor: Annotated[str, typer.Option(help="Who acts, for the audit log. Default: TOLLKEEPER_ACTOR.")] = "",
) -> None:
    """Remember which servers to talk to."""
    context.obj = find_targets(os.environ, ledger=ledger, sidecar=sidecar, actor=actor)
