"""Traces of the simulator, made by its own program."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trace_redis import Line

LINES_MAX: Final = 200
"""A trace is replayed up to here: a few schedules ask tens of thousands of times."""

_SIDECAR = Path(__file__).resolve().parents[2] / "sidecar"
_PROGRAM = _SIDECAR / "target" / "debug" / "quota-sim"


def build_simulator() -> None:
    """Bring the program up to date."""
    subprocess.run(["cargo", "build", "--quiet", "--locked", "-p", "quota-sim"], cwd=_SIDECAR, check=True)


def make_traces(seeds: Iterable[int]) -> dict[str, list[Line]]:
    """Give the traces of seeds, by name."""
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        return dict(workers.map(_one, seeds))


def _one(seed: int) -> tuple[str, list[Line]]:
    made = subprocess.run([_PROGRAM, "trace", "--seed", str(seed)], check=True, capture_output=True)
    return f"seed-{seed}", [json.loads(line) for line in made.stdout.splitlines()[:LINES_MAX]]
