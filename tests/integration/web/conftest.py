"""Give tests of HTTP a ledger of their module's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest_asyncio
from http_support import METERED
from tollkeeper_ledger.app import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tollkeeper_ledger.config import Settings


@pytest_asyncio.fixture
async def http(ledger_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of a ledger with meters and tenants."""
    async with running(ledger_settings) as ledger:
        base = f"http://127.0.0.1:{ledger.http_port}"
        async with httpx.AsyncClient(base_url=base, timeout=60) as client:
            applied = await client.post("/v1/catalogue:apply", json={"request_id": "metered", "yaml": METERED})
            assert applied.status_code == 200, applied.text
            yield client
