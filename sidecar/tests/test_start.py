"""What a start loads before its data plane serves."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from .test_app import environment  # noqa: TID252 - test folders are not packages on the path

if TYPE_CHECKING:
    from pathlib import Path

OWN = {
    "tollkeeper_sidecar",
    *(f"tollkeeper_sidecar.{name}" for name in ("_native", "app", "config", "native", "values")),
}
HEAVY = {
    "asyncio", "concurrent", "dataclasses", "inspect", "logging", "pathlib", "selectors", "socket", "ssl", "subprocess",
    "threading", "tomllib", "typing",
}  # fmt: skip
STANDARD_MAX = 60
"""Modules of the standard library at most, small ones below others counted; one of HEAVY brings as many alone."""

LOOK = """
import json, sys
before = set(sys.modules)
from tollkeeper_sidecar import app, native
start = native.start
def look(settings):
    plane = start(settings)
    print(json.dumps(sorted(set(sys.modules) - before)), flush=True)
    plane.stop()
    raise SystemExit(7)
native.start = look
app.main()
"""


def test_next_to_nothing_is_loaded_before_the_data_plane_serves(tmp_path: Path) -> None:
    """In the moment in which calls are taken a process has loaded settings, the native module and little else.

    No library at all, so no gRPC, Redis, messages or logs, and of the standard library neither asyncio nor what it
    needs: all of that comes beside the data plane.
    """
    command = [sys.executable, "-c", LOOK]
    ran = subprocess.run(command, env=environment(tmp_path), stdout=subprocess.PIPE, check=False)  # noqa: S603 - our own words
    assert ran.returncode == 7
    loaded = set(json.loads(ran.stdout))
    standard = {name for name in loaded if name.partition(".")[0] in sys.stdlib_module_names}
    assert loaded - standard == OWN
    assert standard & HEAVY == set()
    assert len(standard) <= STANDARD_MAX
