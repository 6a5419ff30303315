"""The primaries of Redis: found again after a failover or a moved slot, given the functions, known when down."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tollkeeper_ledger.config import ConfigurationError
from tollkeeper_ledger.store.functions import load
from tollkeeper_ledger.store.redis_topology import locator_of

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.store.redis_topology import Layout, Locator, Server

ANSWER_SECONDS_MAX: Final = 0.25
"""A server that lets an answer wait this long counts as down."""

TRY_INTERVAL_S: Final = 1.0
_CONNECTIONS_MAX = 16
_OPTIONS: Final = {
    "decode_responses": True,
    "socket_connect_timeout": 1.0,
    "socket_timeout": 2.0,
    "protocol": 2,
}


@dataclass(slots=True)
class Primary:
    """A server that holds keys. Its client never retries: what to repeat is the protocol's decision."""

    name: str
    client: Redis
    is_up: bool = True
    """False from the first missing answer until the server was tried again and answered."""
    policy_checked: bool = False


class RedisServers:
    """Know who holds which keys, and who is down.

    A server that is down is tried each second and costs nobody else anything. Each primary gets the functions before
    it counts as up, also one that was promoted or whose functions were flushed; one that may evict keys never does.
    """

    def __init__(self, locator: Locator, log: FilteringBoundLogger) -> None:
        self._locator = locator
        self._log = log
        self._layout: Layout | None = None
        self._primaries: dict[str, Primary] = {}
        self._stale = asyncio.Event()

    def primaries(self) -> list[Primary]:
        """Give every primary of the last layout that was found."""
        return [self._primary(server) for server in self._layout.primaries] if self._layout else []

    def owner_of(self, key: str) -> Primary | None:
        """Give the primary of a key; None where nobody is known to hold it."""
        owner = self._layout.owner_of(key) if self._layout else None
        return None if owner is None else self._primary(owner)

    def at(self, host: str, port: int) -> Primary:
        """Give the server at an address that another one named."""
        return self._primary(self._locator.server_at(host, port))

    def serves(self, key: str) -> bool:
        """Tell whether a key's primary is known and not known to be down."""
        owner = self.owner_of(key)
        return owner is not None and owner.is_up

    @property
    def is_one(self) -> bool:
        """Whether one server holds every key, so that a call may name keys of several hash tags."""
        return self._layout is not None and not self._layout.slots

    def is_up(self) -> bool:
        """Tell whether every primary is known and up."""
        primaries = self.primaries()
        return bool(primaries) and all(primary.is_up for primary in primaries)

    def doubt(self, primary: Primary | None = None) -> None:
        """Have the layout looked up again now; a server that let an answer wait is down until it has answered."""
        if primary is not None:
            primary.is_up = False
        self._stale.set()

    async def start(self) -> None:
        """Find and prepare the primaries. Raises ConfigurationError where one may evict keys; none has to be there."""
        await self.refresh()
        for primary in self.primaries():
            try:
                await self._check_policy(primary)
            except (RedisError, OSError, TimeoutError) as error:
                self._log.warning("redis is not there yet", server=primary.name, error=str(error))
        await self._prepare_all()

    async def run(self) -> None:
        """Look again and try what is down each second, or at once after a sign of change, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(TRY_INTERVAL_S):
                    await self._stale.wait()
            except TimeoutError:
                pass
            self._stale.clear()
            try:
                await self.refresh()
                await self._prepare_all()
            except Exception as error:  # noqa: BLE001 - a loop's top: the next turn may succeed
                self._log.warning("redis can't be looked after", error=str(error), kind=type(error).__name__)
            # Signs may come with every answer: look-ups keep a distance.
            await asyncio.sleep(TRY_INTERVAL_S / 20 if self.is_up() else TRY_INTERVAL_S / 4)

    async def refresh(self) -> None:
        """Look up the layout. Where nobody can say, the last one stays and its servers count as down."""
        try:
            layout = await self._locator.locate()
        except RedisError as error:
            self._log.warning("nobody says where keys are in redis", error=str(error))
            for primary in self._primaries.values():
                primary.is_up = False
            return
        self._layout = layout
        names = {server.name for server in layout.primaries}
        for name in self._primaries.keys() - names:
            await self._primaries.pop(name).client.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        for primary in self._primaries.values():
            await primary.client.aclose()

    def _primary(self, server: Server) -> Primary:
        if server.name not in self._primaries:
            pool = ConnectionPool(
                connection_class=server.kind,
                max_connections=_CONNECTIONS_MAX,
                **{**server.options, "retry": Retry(NoBackoff(), 0)},
            )
            self._primaries[server.name] = Primary(server.name, Redis.from_pool(pool))
        return self._primaries[server.name]

    async def _prepare_all(self) -> None:
        await asyncio.gather(*(self._prepare(primary) for primary in self.primaries()))

    async def _prepare(self, primary: Primary) -> None:
        """Try a server, and bring the functions where they are missing."""
        was_up = primary.is_up
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await _require_master(primary)
                await self._check_policy(primary)
                await load(primary.client)
        except (RedisError, OSError, TimeoutError, ConfigurationError) as error:
            primary.is_up = False
            if was_up or isinstance(error, ConfigurationError):
                self._log.warning("redis is down", server=primary.name, error=str(error) or type(error).__name__)
            return
        primary.is_up = True
        if not was_up:
            self._log.info("redis is up", server=primary.name)

    async def _check_policy(self, primary: Primary) -> None:
        """Raise ConfigurationError where a full server would throw keys away: a bucket that is gone counts as full."""
        if primary.policy_checked:
            return
        async with asyncio.timeout(ANSWER_SECONDS_MAX * 4):
            memory: dict[str, Any] = await primary.client.info("memory")
        policy = memory.get("maxmemory_policy", "unknown")
        if policy != "noeviction":
            raise ConfigurationError(
                f"TOLLKEEPER_REDIS_URL: the server {primary.name} has maxmemory-policy {policy}; limits need"
                " noeviction: CONFIG SET maxmemory-policy noeviction, and the same in its configuration file"
            )
        primary.policy_checked = True


async def _require_master(primary: Primary) -> None:
    """Raise RedisError where the server was demoted: it answers, and takes nothing in."""
    role = (await primary.client.info("replication"))["role"]
    if role != "master":
        raise RedisError(f"the server is a {role} now")


def open_redis(url: str, log: FilteringBoundLogger) -> RedisServers:
    """Read TOLLKEEPER_REDIS_URL; connects at `start`. Raises ConfigurationError with the forms that it can have."""
    try:
        return RedisServers(locator_of(url, **_OPTIONS), log)
    except ValueError as error:
        raise ConfigurationError(f"TOLLKEEPER_REDIS_URL: {error}") from error
