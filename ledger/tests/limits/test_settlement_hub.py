"""Outcomes of reservations are told again and again, whatever becomes of the database meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import structlog
from tollkeeper_ledger.services.settlements import SettlementHub
from tollkeeper_ledger.services.watch import Stream
from tollkeeper_ledger.store.listener import Listener
from tollkeeper_ledger.store.usage_attempts import ATTEMPTS_MAX


class NoDatabase:
    """A pool that gets no connection, and tells when it was asked for often enough to have gone on after a failure."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._asked = 0
        self.asked_again = asyncio.Event()

    def acquire(self) -> Any:
        """Fail as Postgres does."""
        self._asked += 1
        if self._asked > ATTEMPTS_MAX:
            self.asked_again.set()
        raise self._error


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InvalidCatalogNameError("it seems to have just been dropped or renamed"),
        asyncpg.TooManyConnectionsError("too many clients already"),
        asyncpg.ObjectNotInPrerequisiteStateError("is not currently accepting connections"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_database_that_is_away_ends_no_loop(error: Exception) -> None:
    """A database that is being put in another's place, is full, or takes nobody, is asked again in a moment."""
    log = structlog.get_logger()
    pool = NoDatabase(error)
    hub = SettlementHub(pool, Listener("postgres://", role="nobody", log=log), log)  # type: ignore[arg-type]
    hub.follow(Stream(), uuid4())
    running = asyncio.create_task(hub.run())
    waiting = asyncio.create_task(pool.asked_again.wait())
    await asyncio.wait({running, waiting}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    assert (waiting.done(), running.done()) == (True, False)
    running.cancel()
    waiting.cancel()
