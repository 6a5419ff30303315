"""The ledger starts on real servers and says so."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc.aio
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tollkeeper_ledger.app import running
from tollkeeper_ledger.store.listener import Listener
from tollkeeper_ledger.store.pool import connection, open_pool, tenant_transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tollkeeper_ledger.config import Settings
    from tollkeeper_ledger.store.pool import Connection, Pool


async def test_a_started_ledger_answers_health_on_both_protocols(ledger_settings: Settings) -> None:
    """A started ledger is SERVING over gRPC and 200 over HTTP."""
    async with running(ledger_settings) as ledger:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reader, writer = await asyncio.open_connection("127.0.0.1", ledger.http_port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: ledger\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()


async def test_a_session_that_postgres_ended_is_a_lost_connection_at_any_moment(ledger_settings: Settings) -> None:
    """What the driver calls an internal error is an error of the connection; the pool goes on with a new one."""
    async with running(ledger_settings):
        pool = await open_pool(ledger_settings.database_url, role="tollkeeper_ingest", size=1)
        try:
            with pytest.raises(asyncpg.ConnectionDoesNotExistError):
                async with connection(pool):
                    raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")
            async with connection(pool) as conn:
                assert await conn.fetchval("SELECT 1") == 1
        finally:
            pool.terminate()


class Breaking:
    """A pool whose driver meets a session that ended while it gives a connection back."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """Take a connection."""
        async with self._pool.acquire() as conn:
            yield conn
        raise asyncpg.InternalClientError("PoolConnectionHolder.release() called on a free connection holder")


async def test_a_session_that_ends_while_it_is_given_back_is_a_lost_connection(ledger_settings: Settings) -> None:
    """Whoever tries again after a lost connection tries again after that, too."""
    async with running(ledger_settings):
        pool = await open_pool(ledger_settings.database_url, role="tollkeeper_ingest", size=1)
        broken: Any = Breaking(pool)
        try:
            with pytest.raises(asyncpg.ConnectionDoesNotExistError):
                async with connection(broken) as conn:
                    assert await conn.fetchval("SELECT 1") == 1
        finally:
            pool.terminate()


@pytest.mark.parametrize("error", [asyncpg.InternalClientError("cannot switch to state 11"), OSError("gone")], ids=type)
async def test_a_listener_comes_back_whatever_the_driver_calls_it(
    ledger_settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Postgres may die between two messages of LISTEN: the process lives on and hears again."""
    heard, connected = asyncio.Queue[str](), asyncio.Queue[None]()
    listener = Listener(ledger_settings.database_url, role="tollkeeper_ingest", log=structlog.get_logger())
    listener.on("told", heard.put_nowait)
    listener.on_connected(lambda: connected.put_nowait(None))
    real, failures = asyncpg.Connection.add_listener, list[Exception]()

    async def add_listener(conn: Any, *arguments: Any) -> None:
        if failures:
            raise failures.pop()
        await real(conn, *arguments)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", add_listener)
    async with running(ledger_settings) as ledger, asyncio.TaskGroup() as group:
        failures[:] = [error, error]
        task = group.create_task(listener.run())
        async with asyncio.timeout(30):
            await connected.get()
            async with connection(ledger.resources.pools.ingest) as conn:
                await conn.execute("SELECT pg_notify('told', 'news')")
            assert await heard.get() == "news"
        assert failures == []
        task.cancel()


async def test_a_transaction_that_reads_for_a_tenant_changes_and_leaves_nothing(ledger_settings: Settings) -> None:
    """It sees as that tenant and refuses to write; ended well or badly, it leaves the connection to nobody's tenant."""
    tenant_id = uuid.uuid4()

    async def cancelled(_: Connection) -> None:
        raise asyncio.CancelledError

    async def written(conn: Connection) -> None:
        await conn.execute("CREATE TEMPORARY TABLE written (at integer)")

    async def fail(pool: Pool, within: Callable[[Connection], Awaitable[None]]) -> None:
        async with tenant_transaction(pool, tenant_id, readonly=True) as conn:
            await within(conn)

    async with running(ledger_settings):
        pool = await open_pool(ledger_settings.database_url, role="tollkeeper_reader", size=1)
        try:
            async with tenant_transaction(pool, tenant_id, readonly=True) as conn:
                assert await conn.fetchval("SELECT current_tenant()") == tenant_id
                assert conn.is_in_transaction()
            for failure, within in (
                (asyncpg.ReadOnlySQLTransactionError, written),
                (asyncio.CancelledError, cancelled),
            ):
                with pytest.raises(failure):
                    await fail(pool, within)
                async with connection(pool) as conn:
                    assert not conn.is_in_transaction()
                    assert await conn.fetchval("SELECT current_tenant()") is None
        finally:
            pool.terminate()
