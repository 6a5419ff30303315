"""A ledger with this folder's catalogue, served in the test's own process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc.aio
import pytest_asyncio
from limits_support import Sidecar, apply_catalogue
from tollkeeper_ledger.app import Running, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tollkeeper_ledger.config import Settings


@dataclass(frozen=True, slots=True)
class Serving:
    """A ledger and a way to it."""

    ledger: Running
    channel: grpc.aio.Channel

    def sidecar(self) -> Sidecar:
        """Give another holder."""
        return Sidecar(channel=self.channel, ledger=self.ledger)


@pytest_asyncio.fixture
async def serving(ledger_settings: Settings) -> AsyncIterator[Serving]:
    """Serve a ledger that has the catalogue."""
    async with (
        running(ledger_settings) as ledger,
        grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel,
    ):
        await apply_catalogue(channel)
        yield Serving(ledger=ledger, channel=channel)
