"""Send calls and time them: from this process, by the native client, or by h2load where it is installed."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import struct
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

_DONE = re.compile(r"finished in ([0-9.]+)(s|ms|us)")
_SUCCEEDED = re.compile(r"requests: .* (\d+) succeeded, (\d+) failed")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_CONNECTIONS, _STREAMS = 8, 16
_TIMEOUT_S = 300


async def in_flight(call: Callable[[int], Awaitable[object]], *, count: int, at_once: int) -> list[float]:
    """Make `count` calls, so many at once; each is given its number. Gives every call's milliseconds."""
    numbers = iter(range(count))
    taken: list[float] = []

    async def work() -> None:
        for number in numbers:
            began = time.perf_counter()
            await call(number)
            taken.append((time.perf_counter() - began) * 1e3)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(work())
    return taken


@dataclass(frozen=True, slots=True)
class Called:
    """What came of calls."""

    wall_s: float
    latencies_ms: Sequence[float]


async def unary(target: str, method: str, message: bytes, *, calls: int, at_once: int = 0, per_s: int = 0) -> Called:
    """Have the native client make unary calls from a process of its own: so many at once, or begun at a pace.

    Latencies of paced calls count from when each was due, so a slow answer is not hidden by calls that were never made.
    Raises RuntimeError where a call fails or goes unanswered.
    """
    planned = {"target": target, "method": method, "message": base64.b64encode(message).decode(), "calls": calls}
    plan = {"calls": [planned | {"in_flight": at_once, "rate": per_s}], "seconds": _TIMEOUT_S}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tollkeeper_sidecar.probe", "load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(child.communicate(json.dumps(plan).encode()), _TIMEOUT_S)
    if child.returncode:
        raise RuntimeError(f"the native client ended with {child.returncode}")
    (told,) = json.loads(said)
    if told["errors"] or len(told["latencies_us"]) != calls:
        raise RuntimeError(f"{method}: of {calls} calls {len(told['latencies_us'])} were answered; {told['errors']}")
    return Called(wall_s=told["took_us"] / 1e6, latencies_ms=[us / 1e3 for us in told["latencies_us"]])


def has_h2load() -> bool:
    """Tell whether h2load and nghttpd are there."""
    return all(shutil.which(tool) is not None for tool in ("h2load", "nghttpd"))


def grpc_body(message: bytes, path: Path) -> Path:
    """Write a unary gRPC call's body."""
    path.write_bytes(struct.pack(">BI", 0, len(message)) + message)
    return path


async def h2load(url: str, *, count: int, body: Path) -> float:
    """POST a body so often over 8 connections of 16 streams; gives the seconds. Raises RuntimeError on failures."""
    words = [
        "-n", str(count), "-c", str(_CONNECTIONS), "-m", str(_STREAMS), "-d", str(body),
        "-H", "content-type: application/grpc", "-H", "te: trailers", url,
    ]  # fmt: skip
    child = await asyncio.create_subprocess_exec("h2load", *words, stdout=asyncio.subprocess.PIPE)
    said = (await asyncio.wait_for(child.communicate(), _TIMEOUT_S))[0].decode()
    return seconds_of(said, count=count)


def seconds_of(said: str, *, count: int) -> float:
    """Read what h2load says. Raises RuntimeError where not every request succeeded."""
    done, succeeded = _DONE.search(said), _SUCCEEDED.search(said)
    if done is None or succeeded is None or int(succeeded[1]) != count:
        raise RuntimeError(f"h2load: not all of {count} requests succeeded\n{said}")
    return float(done[1]) * _SECONDS[done[2]]
