"""`rate`: price worked cases, without any server, or a closed month under other plans."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import Annotated, Any

import typer
from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc

from tollkeeper_cli.commands.common import OutputOption, targets_of
from tollkeeper_cli.connection import channel_to, to_text
from tollkeeper_cli.errors import FoundProblemsError, UsageError
from tollkeeper_cli.output import Output, Row, money, show

_MONTH_COLUMNS = (
    "tenant", "plan", "period_start", "period_end", "before", "after", "difference", "currency", "before_minor",
    "after_minor", "difference_minor",
)  # fmt: skip
_MONTH_BRIEF = _MONTH_COLUMNS[:7]
_MONTH_TIMEOUT_S = 3_600.0
_CASE_COLUMNS = ("id", "group", "answer", "verdict")
_STEPS = "steps"
"""What an answer consists of, one by one, where its author expects nothing."""
_REPORTED_ONLY = "divergence"
"""Cases of this group show where others price differently; they are not required to agree."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rate")(rate)


def rate(
    context: typer.Context,
    *,
    cases: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSON file with a list `cases`.")
    ] = None,
    what_if: Annotated[
        Path | None,
        typer.Option("--what-if", exists=True, dir_okay=False, help="Catalogue with plans under their present names."),
    ] = None,
    period: Annotated[str, typer.Option(help="With --what-if: the month, like 2026-10.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Price worked cases, or a closed month's real usage under other plans. Exit code 1 where a case is wrong."""
    if (cases is None) == (what_if is None):
        raise UsageError("what is to be priced? Give --cases FILE, or --what-if FILE with --period MONTH")
    if cases is not None:
        _rate_cases(cases, output)
    elif what_if is not None:
        _rate_month(context, what_if, period, output)


def _rate_cases(cases: Path, output: Output) -> None:
    rows = _rated(cases)
    named = [row["id"] for row in rows]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise UsageError(f"{cases}: several cases have one id: {', '.join(twice)}. Give each its own")
    if output is Output.JSON:
        answers = {row["id"]: row.get("answer", {"error": row.get("error")}) for row in rows}
        sys.stdout.write(json.dumps(answers, indent=2, ensure_ascii=False) + "\n")
    else:
        shown: list[Row] = []
        for row in rows:
            steps = row.get("answer", {}).pop(_STEPS, [])
            told = {"id": row["id"], "group": row["group"], "answer": _answer_text(row), "verdict": _verdict(row)}
            shown.append({**told, _STEPS: "; ".join(steps)})
            if output is Output.TABLE:
                shown += [{"answer": f"  {step}"} for step in steps]
        show(shown, (*_CASE_COLUMNS, _STEPS), output, brief=_CASE_COLUMNS)
    wrong = [row["id"] for row in rows if _is_wrong(row)]
    if wrong:
        raise FoundProblemsError(f"{len(wrong)} of {len(rows)} cases are wrong: {', '.join(wrong)}")


def _rate_month(context: typer.Context, plans: Path, period: str, output: Output) -> None:
    """Show each tenant's difference, and their sums per currency below a table."""
    if not period:
        raise UsageError("which month? Give --period, for example --period 2026-10")
    request = billing_pb2.SimulatePlansRequest(
        yaml=plans.read_text(encoding="utf-8"), source_name=plans.name, period=period
    )
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answers = list(billing_pb2_grpc.BillingServiceStub(channel).SimulatePlans(request, timeout=_MONTH_TIMEOUT_S))
    rows: list[Row] = [
        {
            "tenant": one.tenant,
            "plan": one.plan,
            "period_start": to_text(one.period_start),
            "period_end": to_text(one.period_end),
            "before": money(one.before_minor, one.currency),
            "after": money(one.after_minor, one.currency),
            "difference": money(one.after_minor - one.before_minor, one.currency),
            "currency": one.currency,
            "before_minor": one.before_minor,
            "after_minor": one.after_minor,
            "difference_minor": one.after_minor - one.before_minor,
        }
        for one in answers
    ]
    show(rows, _MONTH_COLUMNS, output, title=f"{period} under {plans.name}", brief=_MONTH_BRIEF)
    if output is Output.TABLE:
        for currency in sorted({one.currency for one in answers}):
            of_it = [one for one in answers if one.currency == currency]
            before, after = sum(one.before_minor for one in of_it), sum(one.after_minor for one in of_it)
            sums = [money(amount, currency) for amount in (before, after, after - before)]
            typer.echo(f"{len(of_it)} periods: {sums[0]} before, {sums[1]} after, difference {sums[2]}")


def _rated(cases: Path) -> list[dict[str, Any]]:
    with cases.open("rb") as stream:
        command = [sys.executable, "-m", "tollkeeper_ledger.rate_cases"]
        done = subprocess.run(command, stdin=stream, capture_output=True, check=False)  # noqa: S603 - own module
    if done.returncode:
        raise UsageError(f"{cases}: {done.stderr.decode().strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _is_wrong(row: dict[str, Any]) -> bool:
    return "error" in row or (bool(row["differences"]) and row["group"] != _REPORTED_ONLY)


def _answer_text(row: dict[str, Any]) -> str:
    parts = row.get("answer", {}).items()
    return "  ".join(f"{key} {' '.join(value) if isinstance(value, list) else value}" for key, value in parts)


def _verdict(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    if row["expected"] is None:
        return ""
    return "; ".join(row["differences"]) or "agrees"
