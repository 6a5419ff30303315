"""Brings the Redis functions of pools and token buckets (`tollkeeper.lua`) to a server."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from redis.asyncio import Redis

FUNCTION_LIBRARY_VERSION: Final = "1"
"""The version that `tollkeeper.lua` says of itself; raise both with every change of behaviour."""


def source() -> str:
    """Read the library's Lua source."""
    return files(__name__).joinpath("tollkeeper.lua").read_text(encoding="utf-8")


async def load(client: Redis | RedisCluster) -> int:
    """Load the library where another version, or none, is loaded; answer on how many servers that was.

    Idempotent, and harmless beside other ledgers that do the same. On a cluster every primary gets it.
    Raises redis.exceptions.RedisError where a server can't be reached or refuses the library.
    """
    targets: list[dict[str, Any]] = [{}]
    if isinstance(client, RedisCluster):
        await client.initialize()
        targets = [{"target_nodes": node} for node in client.get_primaries()]
    loaded = 0
    for target in targets:
        if await _loaded_version(client, target) != FUNCTION_LIBRARY_VERSION:
            await client.execute_command("FUNCTION LOAD", "REPLACE", source(), **target)
            loaded += 1
    return loaded


async def _loaded_version(client: Redis | RedisCluster, target: dict[str, Any]) -> str | None:
    try:
        answer = await client.execute_command("FCALL", "tollkeeper_version", 0, **target)
    except ResponseError as error:
        if "function not found" in str(error).lower():
            return None
        raise
    version = answer[1]
    return version.decode() if isinstance(version, bytes) else str(version)
