"""Traces of the simulator, made by its own program."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trace_redis import Line

LINES_MAX: Final = 200
"""A trace is replayed up to here: a few schedules ask tens of thousands of times."""

_SIDECAR = Path(__file__).resolve().parents[2] / "sidecar"
_PROGRAM = _SIDECAR / "target" / "sim" / "quota-sim"
_BUILD = (
    "cargo",
    "build",
    "--quiet",
    "--locked",
    "--profile",
    "sim",
    "--package",
    "quota-sim",
    "--features",
    "mutants",
)


def build_simulator() -> None:
    """Bring the program up to date: the one that `make sim` runs, so that it is built once."""
    subprocess.run(_BUILD, cwd=_SIDECAR, check=True)


def make_traces(seeds: int) -> dict[str, list[Line]]:
    """Give the traces of the first so many seeds, by name."""
    with tempfile.TemporaryDirectory() as folder:
        words = ("trace", "--seeds", str(seeds), "--lines", str(LINES_MAX), "--out", folder)
        subprocess.run([_PROGRAM, *words], check=True)
        files = sorted(Path(folder).iterdir(), key=lambda path: int(path.name.removeprefix("seed-")))
        return {path.name: [json.loads(line) for line in path.read_bytes().splitlines()] for path in files}
