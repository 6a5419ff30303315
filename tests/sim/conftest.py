"""Traces of the simulator for all tests here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from trace_source import build_simulator, make_traces

if TYPE_CHECKING:
    from trace_redis import Line

TRACES = 1_000
"""So many schedules are replayed, each with faults of its own."""


@pytest.fixture(scope="session")
def traces() -> dict[str, list[Line]]:
    """Give the traces of the first seeds, by name."""
    build_simulator()
    return make_traces(TRACES)
