"""A ledger with this folder's catalogue, served in the test's own process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from limits_support import Serving, apply_catalogue
from set_back_support import History, serving_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tollkeeper_cli.embedded import EmbeddedPostgres
    from tollkeeper_ledger.config import Settings


@pytest_asyncio.fixture
async def serving(ledger_settings: Settings) -> AsyncIterator[Serving]:
    """Serve a ledger that has the catalogue."""
    async with serving_on(ledger_settings) as served:
        await apply_catalogue(served.channel)
        yield served


@pytest.fixture
def settings(ledger_settings: Settings, new_database: Callable[[], str]) -> Settings:
    """Configure a ledger on a database of this test's own."""
    return ledger_settings.model_copy(update={"database_url": new_database()})


@pytest.fixture
def history(settings: Settings, postgres: EmbeddedPostgres) -> History:
    """Give the way back of this test's database."""
    return History(postgres.url, settings.database_url)
