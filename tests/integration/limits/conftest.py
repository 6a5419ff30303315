"""A ledger with this folder's catalogue, served in the test's own process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc.aio
import pytest_asyncio
from limits_support import Serving, apply_catalogue
from tollkeeper_ledger.app import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tollkeeper_ledger.config import Settings


@pytest_asyncio.fixture
async def serving(ledger_settings: Settings) -> AsyncIterator[Serving]:
    """Serve a ledger that has the catalogue."""
    async with (
        running(ledger_settings) as ledger,
        grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel,
    ):
        await apply_catalogue(channel)
        yield Serving(ledger=ledger, channel=channel)
