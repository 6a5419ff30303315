"""`rate`: price worked cases, without any server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import Annotated, Any

import typer

from tollkeeper_cli.commands.common import OutputOption  # noqa: TC001 - typer reads it
from tollkeeper_cli.errors import FoundProblemsError, UsageError
from tollkeeper_cli.output import Output, Row, show

_REPORTED_ONLY = "divergence"
"""Cases of this group show where others price differently; they are not required to agree."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rate")(rate)


def rate(
    *,
    cases: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="JSON file with a list `cases`.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Price worked cases and compare them with what they expect. Exit code 1 where one differs."""
    rows = _rated(cases)
    if output is Output.JSON:
        answers = {row["id"]: row.get("answer", {"error": row.get("error")}) for row in rows}
        sys.stdout.write(json.dumps(answers, indent=2, ensure_ascii=False) + "\n")
    else:
        shown: list[Row] = [
            {"id": row["id"], "group": row["group"], "answer": _answer_text(row), "verdict": _verdict(row)}
            for row in rows
        ]
        show(shown, ("id", "group", "answer", "verdict"), output)
    wrong = [row["id"] for row in rows if _is_wrong(row)]
    if wrong:
        raise FoundProblemsError(f"{len(wrong)} of {len(rows)} cases are wrong: {', '.join(wrong)}")


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
