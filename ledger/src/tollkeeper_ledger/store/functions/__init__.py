"""Brings the Redis functions of pools and token buckets (`*.lua`) to a server."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Final

from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from redis.asyncio import Redis

FUNCTION_LIBRARY_VERSION: Final = "6"
"""The version that `tollkeeper.lua` says of itself; raise both with every change of behaviour."""


_PARTS: Final = ("tollkeeper.lua", "buckets.lua")
"""The library's files in order: later ones use what earlier ones define."""


def source() -> str:
    """Read the library's Lua source, its files in one."""
    return "\n".join(files(__name__).joinpath(name).read_text(encoding="utf-8") for name in _PARTS)


async def load(client: Redis) -> bool:
    """Load the library where another version, or none, is loaded; tell whether it was.

    Idempotent, and harmless beside other ledgers that do the same.
    Raises redis.exceptions.RedisError where the server can't be reached or refuses the library.
    """
    if await _loaded_version(client) == FUNCTION_LIBRARY_VERSION:
        return False
    await client.execute_command("FUNCTION LOAD", "REPLACE", source())  # type: ignore[no-untyped-call]
    return True


async def _loaded_version(client: Redis) -> str | None:
    try:
        answer = await client.execute_command("FCALL", "tollkeeper_version", 0)  # type: ignore[no-untyped-call]
    except ResponseError as error:
        if is_missing(error):
            return None
        raise
    version = answer[1]
    return version.decode() if isinstance(version, bytes) else str(version)


def is_missing(error: object) -> bool:
    """Tell whether a reply says that the server has no such function; nothing was carried out then."""
    return isinstance(error, ResponseError) and "function not found" in str(error).lower()
