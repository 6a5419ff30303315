"""Do idempotent work on a connection again when Postgres broke a tie or the connection was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import asyncpg

from tollkeeper_ledger.domain.errors import LedgerError
from tollkeeper_ledger.store.faults import ROW_FAULTS, TIES
from tollkeeper_ledger.store.pool import connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tollkeeper_ledger.store.pool import Connection, Pool

ATTEMPTS_MAX = 5
RETRY_AFTER_MS = 500

_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    # A database that is just being put in another's place.
    asyncpg.InvalidCatalogNameError,
    OSError,
)

REFUSALS = (
    *ROW_FAULTS,
    asyncpg.ProgramLimitExceededError,
    asyncpg.RaiseError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
)
"""What no further attempt mends: the database, or the way to it, can't take a value."""

Answer = TypeVar("Answer")


async def attempted(pool: Pool, work: Callable[[Connection], Awaitable[Answer]]) -> Answer:
    """Await `work` on a connection, anew on another one up to five times in all.

    A lost connection may have committed, so `work` must find out what it did before. Raises LedgerError
    LEDGER_UNREACHABLE when no attempt got through.
    """
    problem: Exception | None = None
    for _ in range(ATTEMPTS_MAX):
        try:
            async with connection(pool) as conn:
                return await work(conn)
        except (*TIES, *_LOST) as error:
            problem = error
    raise LedgerError(
        "the ledger's database can't be reached", reason="LEDGER_UNREACHABLE", retry_after_ms=RETRY_AFTER_MS
    ) from problem
