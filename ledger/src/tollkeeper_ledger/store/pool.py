"""Connections to Postgres: one pool per role, so that row-level security holds whatever the code does."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

import asyncpg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tollkeeper_ledger.config import Settings

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Row: TypeAlias = asyncpg.Record
"""One row of an answer: a mapping of column names."""

Warming: TypeAlias = "Callable[[Connection], Awaitable[None]]"
"""Has a new connection do what it will be asked for first, so that nobody waits for Postgres to prepare it."""

SEARCH_PATH = "tollkeeper, pg_temp"
_STATEMENTS_KEPT = 400
"""Statements that a connection keeps prepared: all that there are, so none drives another out."""


@dataclass(frozen=True, slots=True)
class Pools:
    """Hold the pools. Each connection of a pool acts as that role and nothing else."""

    ingest: Pool
    """All tenants, on the tables of limits, usage and changes. For sidecars' calls."""
    billing: Pool
    """All tenants, on catalogue, billing and audit. For periods, invoices and cross-tenant listings."""
    admin: Pool
    """One tenant per transaction, reads and writes: use `tenant_transaction`."""
    reader: Pool
    """One tenant per transaction, reads: use `tenant_transaction`."""


async def _prepare(conn: asyncpg.Connection[asyncpg.Record]) -> None:
    await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def _keep_session(_: object) -> None:
    """Do nothing when a connection goes back: no session state is ever set, so a round trip for it is saved.

    asyncpg itself rolls back a transaction that was left open. Settings are made with SET LOCAL only.
    """


async def open_pool(url: str, *, role: str, size: int, warm: Warming | None = None) -> Pool:
    """Open a pool whose connections act as `role` with the ledger's search path and UTC.

    With `warm` all connections are opened now and stay open, and each, also what replaces one that broke, does that
    before anybody gets it. What Postgres refuses of it is left out.
    """

    async def prepare(conn: asyncpg.Connection[asyncpg.Record]) -> None:
        await _prepare(conn)
        if warm is not None:
            with suppress(asyncpg.PostgresError):
                await warm(conn)

    settings = {
        "role": role,
        "search_path": SEARCH_PATH,
        "timezone": "UTC",
        "application_name": role,
        "jit": "off",
        "idle_in_transaction_session_timeout": "60000",
    }
    pool: Any = await asyncpg.create_pool(
        url,
        min_size=1 if warm is None else size,
        max_size=size,
        server_settings=settings,
        init=prepare,
        reset=_keep_session,
        command_timeout=60,
        # Statements stay prepared: to prepare those of a preview anew takes longer than the preview.
        statement_cache_size=_STATEMENTS_KEPT,
        max_cached_statement_lifetime=0,
    )
    opened: Pool = pool
    return opened


@asynccontextmanager
async def open_pools(settings: Settings, *, warm_billing: Warming | None = None) -> AsyncIterator[Pools]:
    """Open all pools and close them at the end; those of billing warm, where it is said how."""
    url = settings.database_url
    ingest, billing, admin, reader = await asyncio.gather(
        open_pool(url, role="tollkeeper_ingest", size=settings.pool_size_ingest),
        open_pool(url, role="tollkeeper_billing", size=settings.pool_size_billing, warm=warm_billing),
        open_pool(url, role="tollkeeper_admin", size=settings.pool_size_admin),
        open_pool(url, role="tollkeeper_reader", size=settings.pool_size_reader),
    )
    try:
        yield Pools(ingest=ingest, billing=billing, admin=admin, reader=reader)
    finally:
        for pool in (ingest, billing, admin, reader):
            pool.terminate()


@asynccontextmanager
async def connection(pool: Pool) -> AsyncIterator[Connection]:
    """Take a connection; one that broke is an error of the connection whatever moment it broke in.

    asyncpg answers with an internal error where Postgres ended the session between two messages of one exchange: of the
    caller's, or of taking the connection and giving it back.
    """
    try:
        async with pool.acquire() as conn:
            try:
                yield conn
            except asyncpg.InternalClientError:
                conn.terminate()
                raise
    except asyncpg.InternalClientError as error:
        raise asyncpg.ConnectionDoesNotExistError("the connection to Postgres broke") from error


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Connection]:
    """Begin a transaction on a connection of its own; committed at the end, rolled back by an exception.

    Raises:
        asyncpg.ConnectionDoesNotExistError: the connection broke. Whether a commit under way took effect is unknown.
    """
    async with connection(pool) as conn, conn.transaction():
        yield conn


@asynccontextmanager
async def tenant_transaction(pool: Pool, tenant_id: UUID, *, readonly: bool = False) -> AsyncIterator[Connection]:
    """Begin a transaction that sees and touches this tenant's rows only. Raises what `transaction` raises.

    One that only reads begins with one round trip, and has no transactions within.
    """
    if readonly:
        async with connection(pool) as conn:
            await conn.execute(f"BEGIN READ ONLY; SET LOCAL tollkeeper.tenant_id = '{UUID(int=tenant_id.int)}'")
            try:
                yield conn
            except BaseException:
                if not conn.is_closed():
                    await conn.execute("ROLLBACK")
                raise
            await conn.execute("COMMIT")
        return
    async with connection(pool) as conn, conn.transaction():
        await conn.execute("SELECT set_config('tollkeeper.tenant_id', $1, true)", str(tenant_id))
        yield conn
