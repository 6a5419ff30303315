"""Let others run while a long list is worked through."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

ITEMS_PER_TURN = 100

Item = TypeVar("Item")


async def in_turns(items: Iterable[Item], *, each: int = ITEMS_PER_TURN) -> AsyncIterator[Item]:
    """Give the items in their order, and the event loop a turn after every so many.

    Heartbeats must leave every 40 ms, whatever else the process does: denials count while one came within 100 ms.
    """
    for index, item in enumerate(items):
        if index % each == each - 1:
            await asyncio.sleep(0)
        yield item


def far_apart(items: Sequence[Item], *, at_once: int) -> list[Item]:
    """Order items so that any `at_once` in a row lie as far apart as they can: neighbours would wait for each other."""
    stride = -(-len(items) // at_once)
    return [item for first in range(stride) for item in items[first::stride]]
