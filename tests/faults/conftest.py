"""What the fault tests share."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import asyncpg
import pytest
from platform_support import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tollkeeper_cli.embedded import EmbeddedPostgres


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Give a way to put a line of figures into the run's output, whether the test passes or not."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}")  # noqa: T201 - the run's output is where figures belong

    return line


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    """Run a platform of its own: its processes get killed."""
    platform = Platform(tmp_path / "platform")
    try:
        platform.start()
        yield platform
    finally:
        platform.stop()


@pytest.fixture
def new_empty_database(postgres: EmbeddedPostgres) -> str:
    """Give the URL of a database with nothing in it."""
    name = f"empty_{secrets.token_hex(4)}"
    asyncio.run(_create(postgres.url, name))
    head, _, query = postgres.url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}?{query}"


async def _create(url: str, name: str) -> None:
    conn = await asyncpg.connect(url)
    try:
        await conn.execute(f"CREATE DATABASE {name}")
    finally:
        await conn.close()
