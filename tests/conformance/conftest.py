"""One ledger and one sidecar with a clock that stands still, for comparisons with the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from platform_support import Platform

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Run Postgres, Valkey, a ledger and a sidecar."""
    platform = Platform(tmp_path_factory.mktemp("conformance"))
    try:
        platform.start()
        yield platform
    finally:
        platform.stop()
