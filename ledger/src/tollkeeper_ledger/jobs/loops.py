"""Do something again and again without ever dying of one failure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger


async def every(interval_s: float, work: Callable[[], Awaitable[object]], *, log: FilteringBoundLogger) -> None:
    """Await `work`, wait `interval_s`, and begin anew until cancelled. A failure is logged and the loop goes on."""
    name = getattr(work, "__qualname__", repr(work))
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - a loop's top: the next turn may succeed
            log.warning("job failed", job=name, error=str(error), kind=type(error).__name__)
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # A client library turned the cancellation into a failure of its own; without this the loop never ends.
            raise asyncio.CancelledError
        await asyncio.sleep(interval_s)
