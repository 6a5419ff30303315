# ruff: noqa: SIM300 - expected first, then actual
"""Windows whose pools have to be told something are kept until it was said, whatever fails on the way."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
from tollkeeper_ledger.app import running
from tollkeeper_ledger.services.amounts import AmountFollower
from tollkeeper_ledger.store.limits import lock_windows
from tollkeeper_ledger.store.pool_functions import PoolFunctions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tollkeeper_ledger.config import Settings

WINDOWS_MAX = 10


@pytest.mark.parametrize("kind", ["untold", "gone"])
async def test_windows_stay_to_be_told_when_their_transaction_fails(
    ledger_settings: Settings, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Postgres refuses: nothing is forgotten, whether a pool is to be told or who waited for one that is gone.

    Once it takes the transaction, the same windows are told, and are forgotten then.
    """
    window_id = b"a window that no row has"
    is_broken = True
    refused, told = asyncio.Event(), asyncio.Event()

    async def lock(conn: Any, window_ids: Any) -> Any:
        if window_id in window_ids:
            (refused if is_broken else told).set()
            if is_broken:
                raise ConnectionError("the connection is lost")
        return await lock_windows(conn, window_ids)

    async with running(ledger_settings) as ledger:
        resources = ledger.resources
        functions = PoolFunctions(resources.redis, resources.log)
        take = functions.take_untold if kind == "untold" else functions.take_gone
        note = functions.tell_again if kind == "untold" else functions.note_gone
        follower = AmountFollower(resources.pools.ingest, resources.clock, functions, cast("Any", None), resources.log)
        monkeypatch.setattr("tollkeeper_ledger.services.amounts.lock_windows", lock)
        note([window_id])
        async with running_until(follower, refused):
            pass
        kept = take(WINDOWS_MAX)
        assert [window_id] == kept
        note(kept)
        is_broken = False
        # A follower that is stopped in the middle keeps them as well, so look before it is.
        async with running_until(follower, told):
            assert [] == take(WINDOWS_MAX)


@asynccontextmanager
async def running_until(follower: AmountFollower, seen: asyncio.Event) -> AsyncIterator[None]:
    """Run a follower until something is seen and the block is over."""
    follower.nudge()
    task = asyncio.create_task(follower.run())
    try:
        async with asyncio.timeout(60):
            await seen.wait()
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
