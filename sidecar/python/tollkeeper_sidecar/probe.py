"""Measure a sidecar with the native client.

    python -m tollkeeper_sidecar.probe paced TARGET TENANT METER CHECKS RATE
    python -m tollkeeper_sidecar.probe burst TARGET TENANT METER SECONDS

Prints one JSON object, as `_native.pyi` describes it. Takes units of the tenant's limits; records no usage.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tollkeeper_sidecar.native import measure_burst, measure_checks

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    kind, target, tenant, meter, *numbers = arguments
    measure = measure_checks if kind == "paced" else measure_burst
    sys.stdout.write(measure(target, tenant, meter, *map(int, numbers)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
