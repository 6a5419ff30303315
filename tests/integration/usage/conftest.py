"""Give tests of usage a database of their module's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio
from usage_bench import open_bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from usage_bench import Bench


@pytest_asyncio.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    """Give a bench on this module's database."""
    async with open_bench(database_url) as opened:
        yield opened
