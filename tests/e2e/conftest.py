"""One platform of real processes for all end-to-end tests; each test uses limits of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from platform_support import Platform
from tollkeeper_cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from operator_support import Run

CATALOGUE = Path(__file__).parent / "catalogue.yaml"


@pytest.fixture(scope="package")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Run Postgres, Valkey, a ledger and a sidecar with the tests' catalogue."""
    platform = Platform(tmp_path_factory.mktemp("platform"))
    try:
        platform.start()
        asyncio.run(platform.apply(CATALOGUE.read_text()))
        yield platform
    finally:
        platform.stop()


@pytest.fixture(scope="package")
def more_sidecars(platform: Platform) -> list[str]:
    """Run two more sidecars and give their targets."""
    return [platform.add_sidecar("second"), platform.add_sidecar("third")]


@pytest.fixture
def run(platform: Platform, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a runner of the command line: exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: str) -> tuple[int, str, str]:
        servers = ["--ledger", platform.stack.addresses.ledger_listen, "--sidecar", platform.target]
        capfd.readouterr()
        code = main([*servers, *words])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run
