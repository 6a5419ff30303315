"""Compute in a thread while Postgres works."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Answer = TypeVar("Answer")
Found = TypeVar("Found")


async def beside(answer: Awaitable[Answer], compute: Callable[[], Found]) -> tuple[Answer, Found]:
    """Await Postgres' answer while a thread computes; give both.

    Raises what the answer raises; a thread that is still at work then is left to itself.
    """
    computing = asyncio.ensure_future(asyncio.to_thread(compute))
    try:
        answered = await answer
    except BaseException:
        computing.cancel()
        raise
    return answered, await computing
