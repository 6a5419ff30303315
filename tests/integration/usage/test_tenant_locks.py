"""Appends share their tenants, closes take one alone, however many tenants an append has."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tollkeeper_ledger.store.tenant_locks import TENANTS_EACH_MAX, lock_tenant, share_tenants
from usage_bench import superuser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from tollkeeper_ledger.store.pool import Connection

pytestmark = pytest.mark.asyncio

MANY = TENANTS_EACH_MAX + 1


@asynccontextmanager
async def begun(url: str) -> AsyncIterator[Connection]:
    """Begin a transaction on a connection of its own."""
    async with superuser(url) as conn, conn.transaction():
        yield conn


async def begins_to_wait(url: str, conn: Connection, work: Awaitable[None]) -> asyncio.Future[None]:
    """Run what has to wait for a lock, and come back once it does."""
    waiter = conn.get_server_pid()
    running = asyncio.ensure_future(work)
    async with superuser(url) as watcher, asyncio.timeout(60):
        while not await watcher.fetchval("SELECT count(*) FROM pg_locks WHERE pid = $1 AND NOT granted", waiter):
            assert not running.done()
    return running


async def test_appends_of_thousands_of_tenants_have_room_for_their_locks(database_url: str) -> None:
    """Six appends at once, of 10,000 tenants each, on a Postgres with room for its default number of locks."""
    tenants = [uuid.uuid4() for _ in range(10_000)]
    async with AsyncExitStack() as opened:
        for _ in range(6):
            conn = await opened.enter_async_context(begun(database_url))
            await share_tenants(conn, tenants)
        found = await conn.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    assert found == 6 * 64


@pytest.mark.parametrize("count", [1, TENANTS_EACH_MAX, MANY])
async def test_a_close_waits_for_appends_of_its_tenant(database_url: str, count: int) -> None:
    """Whether an append has few tenants or many, a close of one of them begins when the append has ended."""
    tenants = [uuid.uuid4() for _ in range(count)]
    async with begun(database_url) as close:
        async with begun(database_url) as append:
            await share_tenants(append, tenants)
            closing = await begins_to_wait(database_url, close, lock_tenant(close, tenants[0]))
        await asyncio.wait_for(closing, 60)


@pytest.mark.parametrize("count", [1, TENANTS_EACH_MAX, MANY])
async def test_appends_wait_for_a_close_of_one_of_their_tenants(database_url: str, count: int) -> None:
    """Whether an append has few tenants or many, it begins when the close of one of them has ended."""
    tenants = [uuid.uuid4() for _ in range(count)]
    async with begun(database_url) as append:
        async with begun(database_url) as close:
            await lock_tenant(close, tenants[-1])
            appending = await begins_to_wait(database_url, append, share_tenants(append, tenants))
        await asyncio.wait_for(appending, 60)


async def test_a_close_holds_up_no_append_of_few_other_tenants(database_url: str) -> None:
    """Tenants of the same stripe, but the closed one, are appended while it closes; appends never wait for appends."""
    closed = uuid.uuid4()
    beside = [uuid.UUID(bytes=closed.bytes[:1] + uuid.uuid4().bytes[1:]) for _ in range(TENANTS_EACH_MAX)]
    many = [uuid.uuid4() for _ in range(MANY)]
    async with begun(database_url) as close, begun(database_url) as append:
        await lock_tenant(close, closed)
        await asyncio.wait_for(share_tenants(append, beside), 60)
    async with begun(database_url) as first, begun(database_url) as second, begun(database_url) as third:
        await share_tenants(first, many)
        await asyncio.wait_for(share_tenants(second, many), 60)
        await asyncio.wait_for(share_tenants(third, many[:2]), 60)
