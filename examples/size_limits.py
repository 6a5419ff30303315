# ruff: noqa: INP001 - a program, not a package
"""Replay the example trace against a catalogue's limits offline, and print what would be denied.

    .venv/bin/python examples/size_limits.py [CATALOGUE] [LAG_SECONDS]

LAG_SECONDS is ledger time that a request takes beside generating: at 120 times real time 50 ms are 6 s, in which its
reservation stays held.

An obvious model, to choose amounts with: one process, exact windows and buckets, no leases. A reservation holds its
output cap until it is settled; what it gives back counts in the window that it was taken from.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from tollkeeper_cli.replay.formats import Format, ReadOptions, read_requests, stop_at_malformed
from tollkeeper_cli.replay.model import MICROSECONDS
from tollkeeper_cli.replay.pace import merged

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tollkeeper_cli.replay.model import ReplayRequest

HERE = Path(__file__).parent
TRACES = {name: HERE / "data" / f"AzureLLMInferenceTrace_{name}.csv.gz" for name in ("code", "conv")}
UNIT_US = {"minute": 60 * MICROSECONDS, "hour": 3_600 * MICROSECONDS, "day": 86_400 * MICROSECONDS}


@dataclass(slots=True)
class Window:
    """Counts units per span of time."""

    name: str
    meter: str
    amount: int
    span_us: int
    used: Counter[int] = field(default_factory=Counter)

    def has(self, request: ReplayRequest, units: int) -> bool:
        """Tell whether the units are there."""
        return self.used[request.at_us // self.span_us] + units <= self.amount

    def take(self, request: ReplayRequest, units: int) -> None:
        """Take them, or give back with a negative number."""
        self.used[request.at_us // self.span_us] += units


@dataclass(slots=True)
class Bucket:
    """Refills a level per key."""

    name: str
    meter: str
    amount: int
    interval_us: int
    burst: int
    key: list[str]
    levels: dict[tuple[str, ...], tuple[float, int]] = field(default_factory=dict)

    def has(self, request: ReplayRequest, units: int) -> bool:
        """Tell whether the tokens are there."""
        return self._level(request) >= units

    def take(self, request: ReplayRequest, units: int) -> None:
        """Take them."""
        if units > 0:
            self.levels[self._key(request)] = (self._level(request) - units, request.at_us)

    def _level(self, request: ReplayRequest) -> float:
        level, at_us = self.levels.get(self._key(request), (float(self.burst), request.at_us))
        return min(self.burst, level + (request.at_us - at_us) * self.amount / self.interval_us)

    def _key(self, request: ReplayRequest) -> tuple[str, ...]:
        return tuple(request.attributes.get(name, "") for name in self.key)


def limits_of(catalogue: Mapping[str, Any]) -> dict[str, list[Window | Bucket]]:
    """Return each tenant's limits."""
    plans = {plan["name"]: plan for plan in catalogue["plans"]}
    return {
        tenant["id"]: [_limit(rule) for rule in plans[tenant["plan"]].get("limits", [])]
        for tenant in catalogue["tenants"]
    }


def _limit(rule: Mapping[str, Any]) -> Window | Bucket:
    """Build the model of one limit."""
    name, meter, amount = rule["name"], rule["meter"], rule["amount"]
    if rule["kind"] == "window":
        return Window(name, meter, amount, rule["window"]["count"] * UNIT_US[rule["window"]["unit"]])
    interval_us = rule["refill"]["count"] * UNIT_US[rule["refill"]["unit"]]
    return Bucket(name, meter, amount, interval_us, rule["burst"], rule.get("key", []))


def trace(paths: Mapping[str, Path]) -> list[ReplayRequest]:
    """Read the trace as the demo does."""
    return merged(
        *(
            read_requests(path, Format.AZURE_LLM, ReadOptions(tenant=tenant), on_malformed=stop_at_malformed)
            for tenant, path in paths.items()
        )
    )


def simulate(
    requests: Iterable[ReplayRequest], limits: Mapping[str, list[Window | Bucket]], *, lag_us: int = 0
) -> Counter[str]:
    """Count requests by `tenant`, and denials by `tenant limit`."""
    counts: Counter[str] = Counter()
    order = itertools.count()
    ends: list[tuple[int, int, ReplayRequest]] = []
    for request in requests:
        while ends and ends[0][0] <= request.at_us:
            _settle(heapq.heappop(ends)[2], limits)
        counts[request.tenant] += 1
        matching = [(limit, request.reserve.get(limit.meter, 0)) for limit in limits[request.tenant]]
        denied = next((limit.name for limit, units in matching if not limit.has(request, units)), None)
        if denied is not None:
            counts[f"{request.tenant} {denied}"] += 1
            continue
        for limit, units in matching:
            limit.take(request, units)
        heapq.heappush(ends, (request.at_us + request.duration_us + lag_us, next(order), request))
    return counts


def _settle(request: ReplayRequest, limits: Mapping[str, list[Window | Bucket]]) -> None:
    """Give back what was reserved and not used."""
    for limit in limits[request.tenant]:
        limit.take(request, request.settle.get(limit.meter, 0) - request.reserve.get(limit.meter, 0))


def main() -> None:
    """Print denials per limit in numbers and percent."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "catalogues" / "llm.yaml"
    lag_us = int(sys.argv[2]) * MICROSECONDS if len(sys.argv) > 2 else 0  # noqa: PLR2004 - the second argument
    limits = limits_of(yaml.safe_load(path.read_text(encoding="utf-8")))
    counts = simulate(trace(TRACES), limits, lag_us=lag_us)
    requests = sum(counts[tenant] for tenant in TRACES)
    denied = sum(count for name, count in counts.items() if " " in name)
    rows = [(name, count, 100 * count / counts[name.partition(" ")[0]]) for name, count in sorted(counts.items())]
    rows.append(("denied of all", denied, 100 * denied / requests))
    sys.stdout.writelines(f"{name:<28}{count:>8,}{share:>8.2f} %\n" for name, count, share in rows)


if __name__ == "__main__":
    main()
