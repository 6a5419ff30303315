"""Run benches and write the report: `python -m bench [NAME ...] [--quick] [--out FILE]`."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cases import CASES
from bench.frame import TRIES, Effort, run_interleaved
from bench.machine import machine_facts, missing_tools
from bench.report import report_of, table_of, write_report
from bench.stage import running_stage

if TYPE_CHECKING:
    from collections.abc import Sequence

REPORT = Path(__file__).parent / "report.json"


async def run(names: Sequence[str], effort: Effort, directory: Path, *, stolen_max: float) -> dict[str, Any]:
    """Run these benches, all where none is named, on processes of their own, and give the report."""
    machine = machine_facts()
    async with AsyncExitStack() as opened:
        stage = await opened.enter_async_context(running_stage(directory))
        benches = {}
        for name in names or CASES:
            _say(f"preparing {name}")
            benches[name] = await opened.enter_async_context(CASES[name](stage, effort))
        outcomes = await run_interleaved(benches, repeats=effort.repeats, say=_say, stolen_max=stolen_max)
    found = dict(zip(benches, outcomes, strict=True))
    return report_of(found, machine=machine, missing=missing_tools(), is_quick=effort.is_quick, repeats=effort.repeats)


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Read the command line, run, write and print."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*CASES, []], help="which benches; none = all")
    parser.add_argument("--quick", action="store_true", help="one short repeat, to try that everything runs")
    parser.add_argument(
        "--stolen-max",
        type=float,
        default=100.0,
        metavar="PERCENT",
        help=f"take a turn again, {TRIES} times at most, in which others on this hardware took more of the cores",
    )
    parser.add_argument("--out", type=Path, default=REPORT, help="where the report goes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tollkeeper-bench-") as directory:
        report = asyncio.run(
            run(given.names, Effort(is_quick=given.quick), Path(directory), stolen_max=given.stolen_max)
        )
    write_report(report, given.out)
    _say(table_of(report))


if __name__ == "__main__":
    main()
