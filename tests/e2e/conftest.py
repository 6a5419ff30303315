"""One platform of real processes for all end-to-end tests; each test uses limits of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from platform_support import Platform

if TYPE_CHECKING:
    from collections.abc import Iterator

CATALOGUE = Path(__file__).parent / "catalogue.yaml"


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Run Postgres, Valkey, a ledger and a sidecar with the tests' catalogue."""
    platform = Platform(tmp_path_factory.mktemp("platform"))
    try:
        platform.start()
        asyncio.run(platform.apply(CATALOGUE.read_text()))
        yield platform
    finally:
        platform.stop()


@pytest.fixture(scope="session")
def more_sidecars(platform: Platform) -> list[str]:
    """Run two more sidecars and give their targets."""
    return [platform.add_sidecar("second"), platform.add_sidecar("third")]
