"""Measure a sidecar with the native client.

    python -m tollkeeper_sidecar.probe paced TARGET TENANT METER CHECKS RATE
    python -m tollkeeper_sidecar.probe burst TARGET TENANT METER SECONDS
    python -m tollkeeper_sidecar.probe load < PLAN.json

Prints one JSON value: of `paced` and `load` as `_native.pyi` describes it, of `burst` the checks answered on one full
stream, those denied, and checks a second. Takes units of the tenant's limits; records no usage.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from tollkeeper_sidecar.native import measure_checks, measure_load

if TYPE_CHECKING:
    from collections.abc import Sequence

_IN_FLIGHT = 1_024


def measure_burst(target: str, tenant: str, meter: str, seconds: int) -> str:
    """Keep one pipelined stream full for so many seconds and return the counts as JSON."""
    flow = {"target": target, "tenant": tenant, "meter": meter, "in_flight": _IN_FLIGHT}
    (loaded,) = json.loads(measure_load(json.dumps({"flows": [flow], "seconds": seconds})))
    decisions: dict[str, int] = loaded["decisions"]
    checks = sum(decisions.values())
    denied = checks - decisions.get("ALLOWED", 0)
    return json.dumps({"checks": checks, "denied": denied, "checks_per_second": checks // seconds})


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    kind, *rest = arguments
    if kind == "load":
        found = measure_load(sys.stdin.read())
    else:
        target, tenant, meter, *numbers = rest
        measure = measure_checks if kind == "paced" else measure_burst
        found = measure(target, tenant, meter, *map(int, numbers))
    sys.stdout.write(found + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
