"""Waiting for what nobody announces: another process, a server, a table."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATIENCE_S = 60.0
POLL_S = 0.01


async def wait_until(
    true_now: Callable[[], Awaitable[object]],
    what: str = "a condition",
    *,
    seconds_max: float = PATIENCE_S,
    away: tuple[type[Exception], ...] = (),
) -> None:
    """Ask until the answer is true, pausing after each that is not.

    `away`: errors of a server that does not answer just now; they count as false. Raises TimeoutError, naming `what`,
    once `seconds_max` are over; an answer that is under way then is waited for, however slow the machine is.
    """
    ends_s = time.monotonic() + seconds_max
    while not await _answer(true_now, away):
        if time.monotonic() > ends_s:
            raise TimeoutError(f"waited {seconds_max:g} s for {what}")
        await asyncio.sleep(POLL_S)


async def _answer(true_now: Callable[[], Awaitable[object]], away: tuple[type[Exception], ...]) -> object:
    try:
        return await true_now()
    except away:
        return False
