"""Databases that are really set back, and ledgers that serve what is in them."""

from __future__ import annotations

import contextlib
import secrets
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import asyncpg
import grpc.aio
from limits_support import Serving
from platform_support import Platform
from redis.asyncio import Redis
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc
from tollkeeper_cli.stack import Servers
from tollkeeper_ledger.app import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tollkeeper_ledger.config import Settings


_TRIES_MAX = 12
"""Postgres itself waits 5 s for others to go."""


class History:
    """A database, a backup of it, and the way back."""

    def __init__(self, server_url: str, url: str) -> None:
        self._server_url = server_url
        self._name = url.partition("?")[0].rpartition("/")[2]

    async def back_up(self) -> None:
        """Copy the database as it is. Nobody may be connected; of killed processes Postgres hears in a while."""
        for _ in range(_TRIES_MAX):
            with contextlib.suppress(asyncpg.ObjectInUseError):
                return await self._run(f"CREATE DATABASE {self._name}_backup TEMPLATE {self._name}")
        raise TimeoutError(f"somebody is connected to {self._name}")

    async def set_back(self) -> None:
        """Put the copy in the database's place, whoever is connected."""
        await self._run(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false")
        await self._run(f"DROP DATABASE {self._name} WITH (FORCE)")
        await self._run(f"CREATE DATABASE {self._name} TEMPLATE {self._name}_backup")

    async def _run(self, statement: str) -> None:
        conn = await asyncpg.connect(self._server_url)
        try:
            await conn.execute(statement)
        finally:
            await conn.close()


@contextmanager
def running_platform(directory: Path, database_url: str, redis_url: str) -> Iterator[Platform]:
    """Run a platform of real processes on servers of others, in a directory of its own below this one."""
    servers = Servers(database_url=database_url, redis_url=redis_url)
    platform = Platform(directory / secrets.token_hex(2), servers=servers)
    try:
        platform.start()
        yield platform
    finally:
        platform.stop()


@asynccontextmanager
async def serving_on(settings: Settings) -> AsyncIterator[Serving]:
    """Serve a ledger on what is in the database."""
    async with (
        running(settings) as ledger,
        grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel,
    ):
        yield Serving(ledger=ledger, channel=channel)


async def flush(settings: Settings) -> None:
    """Lose everything that Redis has."""
    client = Redis.from_url(settings.redis_url)
    await client.flushall()
    await client.function_flush()
    await client.aclose()


async def state_of(channel: grpc.aio.Channel) -> admin_pb2.GetLedgerStateResponse:
    """Ask where the ledger stands."""
    return await admin_pb2_grpc.AdminServiceStub(channel).GetLedgerState(admin_pb2.GetLedgerStateRequest())


async def confirm(channel: grpc.aio.Channel) -> admin_pb2.ConfirmRestoreResponse:
    """Let issuing go on."""
    return await admin_pb2_grpc.AdminServiceStub(channel).ConfirmRestore(
        admin_pb2.ConfirmRestoreRequest(request_id=secrets.token_hex(8), note="backup of noon")
    )
