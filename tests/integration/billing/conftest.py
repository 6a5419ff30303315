"""Give every test of billing a database of its own: runs look at all tenants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from billing_bench import open_billing_bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from billing_bench import BillingBench


@pytest.fixture
def own_database_url(new_database: Callable[[], str]) -> str:
    """Give this test a database of its own."""
    return new_database()


@pytest_asyncio.fixture
async def bench(own_database_url: str) -> AsyncIterator[BillingBench]:
    """Give a bench on a database of its own."""
    async with open_billing_bench(own_database_url) as opened:
        yield opened
