"""The only importer of the native module. Loaded before the data plane serves: it imports nothing else."""

from __future__ import annotations

from tollkeeper_sidecar._native import DataPlane as NativeDataPlane
from tollkeeper_sidecar._native import measure_checks, measure_load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tollkeeper_sidecar.plane import DataPlane

__all__ = ["measure_checks", "measure_load", "start"]


def start(config_json: str) -> DataPlane:
    """Start the native data plane and return once its listeners are bound.

    Raises ValueError for a bad configuration, OSError where an address or the usage log can't be opened.
    """
    return NativeDataPlane.start(config_json)
