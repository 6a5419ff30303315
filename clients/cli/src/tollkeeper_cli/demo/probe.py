"""Measure from a process of its own what a check costs a caller in Python, at a steady pace.

    python -m tollkeeper_cli.demo.probe TARGET SECONDS RATE

Prints one JSON object. Uses the tenant `probe`, whose usage is not recorded.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import TYPE_CHECKING

from tollkeeper_client import Client, Detail

if TYPE_CHECKING:
    from collections.abc import Sequence

PROBE_TENANT = "probe"
PROBE_METER = "requests"
_COSTS = {PROBE_METER: 1}
_WARM_UP_CALLS = 200
_CALL_TIMEOUT_S = 5.0
_SPIN_S = 100e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class PacedResult:
    """Latencies of checks sent at a steady pace, counted from when each was due."""

    checks: int
    denied: int
    p50_us: int
    p99_us: int
    max_us: int
    late: int
    """Checks that were sent after the next one was due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstResult:
    """Checks answered as fast as the native client can ask, on one pipelined stream."""

    checks: int
    denied: int
    checks_per_second: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured after the replay."""

    paced: PacedResult
    """Unary checks of the native client."""
    python: PacedResult
    """Unary checks of the Python client."""
    burst: BurstResult


def measure_paced(target: str, *, seconds: float, rate: int) -> PacedResult:
    """Send unary checks with the Python client at a fixed rate and measure each from the moment it was due.

    A slow answer makes the following checks late, and their wait counts: nothing is omitted because the client waited.
    """
    with Client(target, timeout_s=_CALL_TIMEOUT_S) as client:
        for _ in range(_WARM_UP_CALLS):
            client.check(PROBE_TENANT, _COSTS, detail=Detail.NONE)
        count = round(seconds * rate)
        taken_us: list[int] = []
        denied = late = 0
        _quiet()
        start_s = time.perf_counter()
        for number in range(count):
            due_s = start_s + number / rate
            _wait_until(due_s)
            late += time.perf_counter() - due_s > 1 / rate
            decision = client.check(PROBE_TENANT, _COSTS, detail=Detail.NONE)
            taken_us.append(round((time.perf_counter() - due_s) * 1_000_000))
            denied += not decision.allowed
    cuts = quantiles(taken_us, n=100, method="inclusive")
    return PacedResult(
        checks=count,
        denied=denied,
        p50_us=round(cuts[49]),
        p99_us=round(cuts[98]),
        max_us=max(taken_us),
        late=late,
    )


def _wait_until(due_s: float) -> None:
    """Wait to the microsecond: sleep, then spin, for a sleep alone wakes up late."""
    while (left_s := due_s - time.perf_counter()) > _SPIN_S:
        time.sleep(left_s - _SPIN_S)
    while time.perf_counter() < due_s:
        pass


def _quiet() -> None:
    """Keep the collector from pausing the measurement."""
    gc.collect()
    gc.freeze()
    gc.disable()


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    target, seconds, rate = arguments
    result = measure_paced(target, seconds=float(seconds), rate=int(rate))
    sys.stdout.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
