"""Send calls and time them: from this process, or by h2load where it is installed."""

from __future__ import annotations

import asyncio
import re
import shutil
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
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


async def paced(call: Callable[[int], Awaitable[object]], *, count: int, per_s: int) -> list[float]:
    """Begin `count` calls at this rate whatever the earlier ones do; gives each one's milliseconds since it was due.

    So a slow answer is not hidden by calls that were never made.
    """
    taken: list[float] = []
    began = time.perf_counter()

    async def work(number: int, due: float) -> None:
        await call(number)
        taken.append((time.perf_counter() - due) * 1e3)

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            due = began + number / per_s
            ahead_s = due - time.perf_counter()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            tasks.create_task(work(number, due))
    return taken


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
