"""Do a transaction again when Postgres had to break a tie between two."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from tollkeeper_ledger.store.faults import TIES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

ATTEMPTS_MAX = 5

Result = TypeVar("Result")


async def retried(attempt: Callable[[], Awaitable[Result]], *, log: FilteringBoundLogger) -> Result:
    """Await `attempt`, and anew up to five times in all after a deadlock or a serialization failure.

    `attempt` must be a whole transaction that keeps nothing from a failed one. Any other error passes at once.
    """
    for number in range(1, ATTEMPTS_MAX):
        try:
            return await attempt()
        except TIES as error:
            log.info("a transaction is tried again", attempt=number, error=str(error))
    return await attempt()
