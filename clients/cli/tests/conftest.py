"""Fixtures for tests of commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tollkeeper_cli.main import main

sys.path.insert(0, str(Path(__file__).parent))

from fake_servers import FakeLedger, FakeQuota, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def ledger() -> FakeLedger:
    """Give a ledger that remembers."""
    return FakeLedger()


@pytest.fixture
def quota() -> FakeQuota:
    """Give a sidecar that remembers."""
    return FakeQuota()


@pytest.fixture
def tollkeeper(
    ledger: FakeLedger, quota: FakeQuota, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., int]]:
    """Run commands against the fakes, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ("TENANT", "LEDGER_ADDRESS", "SIDECAR_SOCKET", "SIDECAR_LISTEN"):
        monkeypatch.delenv(f"TOLLKEEPER_{name}", raising=False)
    with serving(ledger, quota) as address:
        yield lambda *words: main(["--ledger", address, "--sidecar", address, *words])
