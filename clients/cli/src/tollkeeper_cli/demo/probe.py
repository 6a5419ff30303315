"""Measure a sidecar from a process of its own: latency at a steady pace, and throughput.

    python -m tollkeeper_cli.demo.probe paced|burst TARGET SECONDS RATE

Prints one JSON object. Uses the tenant `probe`, whose usage is not recorded.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

import grpc
from tollkeeper.quota.v1 import quota_pb2
from tollkeeper_client import Client, Detail

from tollkeeper_cli.stack import CHANNEL_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROBE_TENANT = "probe"
_COSTS = {"requests": 1}
_STREAM_METHOD = "/tollkeeper.quota.v1.QuotaService/StreamQuota"
_WARM_UP_CALLS = 200
_CALL_TIMEOUT_S = 5.0
_SPIN_S = 100e-6
_STREAMS = 4
_IN_FLIGHT_PER_STREAM = 512


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
    """Checks answered as fast as this client can ask, on pipelined streams."""

    checks: int
    denied: int
    seconds: float
    checks_per_second: int
    streams: int


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
    return PacedResult(
        checks=count,
        denied=denied,
        p50_us=percentile(taken_us, 50),
        p99_us=percentile(taken_us, 99),
        max_us=max(taken_us),
        late=late,
    )


def measure_burst(target: str, *, seconds: float) -> BurstResult:
    """Keep several streams full for a while and count the answers."""
    start_s = time.perf_counter()
    stop_s = start_s + seconds
    counts: list[tuple[int, int]] = []
    with grpc.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        threads = [
            threading.Thread(target=lambda: counts.append(_fill_stream(channel, stop_s))) for _ in range(_STREAMS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if len(counts) != _STREAMS:
        raise RuntimeError(f"{_STREAMS - len(counts)} of {_STREAMS} streams broke")
    took_s = time.perf_counter() - start_s
    checks = sum(count for count, _ in counts)
    return BurstResult(
        checks=checks,
        denied=sum(denied for _, denied in counts),
        seconds=round(took_s, 3),
        checks_per_second=round(checks / took_s),
        streams=len(counts),
    )


def percentile(values: Sequence[int], percent: int) -> int:
    """Return the smallest value that at least so many percent of the values don't exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _fill_stream(channel: grpc.Channel, stop_s: float) -> tuple[int, int]:
    """Keep one stream's pipeline full until the time is up; return how many were answered and how many denied."""
    tickets: SimpleQueue[None] = SimpleQueue()
    for _ in range(_IN_FLIGHT_PER_STREAM):
        tickets.put(None)
    payload = quota_pb2.StreamQuotaRequest(tag=1, check=_check()).SerializeToString()

    def requests() -> Iterator[bytes]:
        while time.perf_counter() < stop_s:
            tickets.get()
            yield payload

    call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
        _STREAM_METHOD, request_serializer=None, response_deserializer=None
    )
    answered = denied = 0
    for raw in call(requests()):
        answer = quota_pb2.StreamQuotaResponse.FromString(raw)
        answered += 1
        denied += not answer.answer.decision.allowed
        tickets.put(None)
    return answered, denied


def _check() -> quota_pb2.CheckQuotaRequest:
    """Return the check that is sent over and over."""
    return quota_pb2.CheckQuotaRequest(
        tenant=PROBE_TENANT,
        costs=[quota_pb2.Cost(meter=meter, units=units) for meter, units in _COSTS.items()],
        mode=quota_pb2.CHECK_MODE_CONSUME,
        detail=quota_pb2.DETAIL_NONE,
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
    kind, target, seconds, rate = arguments
    result: PacedResult | BurstResult
    if kind == "paced":
        result = measure_paced(target, seconds=float(seconds), rate=int(rate))
    else:
        result = measure_burst(target, seconds=float(seconds))
    sys.stdout.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
