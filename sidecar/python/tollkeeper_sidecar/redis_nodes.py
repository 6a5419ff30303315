"""Where a key lives: one server, or the primaries of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable


class Node(NamedTuple):
    """One server and how to connect to it."""

    name: str
    make: Callable[[], AbstractConnection]


def _connection_options(url: str) -> tuple[bool, type[AbstractConnection], dict[str, Any]]:
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    is_cluster = query.pop("cluster", ["false"])[0] == "true"
    options: dict[str, Any] = dict(parse_url(urlunsplit(parts._replace(query=urlencode(query, doseq=True)))))
    kind: type[AbstractConnection] = options.pop("connection_class", Connection)
    # Reads wait for as long as the server is silent: silence is judged by the links. Nothing is retried.
    options |= {"socket_timeout": None, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
    return is_cluster, kind, options


def _node(kind: type[AbstractConnection], options: dict[str, Any]) -> Node:
    name = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return Node(str(name), lambda: kind(**options))


class SingleServer:
    """One server holds every key."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def nodes(self) -> list[Node]:
        """Return every server that holds keys."""
        return [self._node]

    async def node_of(self, key: str) -> Node:  # noqa: ARG002 - the same for every key
        """Return the server that holds a key."""
        return self._node

    def forget(self) -> None:
        """There is nothing to look up again."""

    async def close(self) -> None:
        """Nothing is held."""


class ClusterServers:
    """The primaries of a cluster; the slot map is read at first use and after a redirection."""

    def __init__(self, kind: type[AbstractConnection], options: dict[str, Any]) -> None:
        self._kind, self._options = kind, options
        self._cluster: RedisCluster | None = None
        self._stale = True

    async def nodes(self) -> list[Node]:
        """Return every primary. Raises redis.exceptions.RedisError where no node answers."""
        return [self._to_node(primary) for primary in (await self._map()).get_primaries()]

    async def node_of(self, key: str) -> Node:
        """Return the primary of a key's slot. Raises redis.exceptions.RedisError where no node answers."""
        cluster = await self._map()
        found = cluster.get_node_from_key(key)
        if found is None:
            raise RedisError(f"the slot of {key!r} has no primary")
        return self._to_node(found)

    def forget(self) -> None:
        """Read the slot map again before the next use."""
        self._stale = True

    async def close(self) -> None:
        """Close the connections that read the slot map."""
        if self._cluster is not None:
            await self._cluster.aclose()

    async def _map(self) -> RedisCluster:
        if self._cluster is None or self._stale:
            await self.close()
            credentials = {name: self._options[name] for name in ("username", "password") if name in self._options}
            self._cluster = RedisCluster(
                host=self._options.get("host", "localhost"),
                port=self._options.get("port", 6379),
                ssl=issubclass(self._kind, SSLConnection),
                retry=Retry(NoBackoff(), 0),
                socket_timeout=1,
                **credentials,
            )
            await self._cluster.initialize()
            self._stale = False
        return self._cluster

    def _to_node(self, node: ClusterNode) -> Node:
        return _node(self._kind, self._options | {"host": node.host, "port": node.port})


def servers(url: str) -> SingleServer | ClusterServers:
    """Read a Redis URL; `?cluster=true` names any node of a cluster."""
    is_cluster, kind, options = _connection_options(url)
    return ClusterServers(kind, options) if is_cluster else SingleServer(_node(kind, options))
