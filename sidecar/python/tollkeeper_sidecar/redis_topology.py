"""Say where a key lives: on one server, on the master that sentinels name, or on a primary of a cluster.

The sidecar and the ledger each have this file, equal to the letter (`tests/tidy`), because neither imports the other.
A look-up is read-only, so it may be repeated; nothing else is sent here.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMS: Final = (
    "use redis://HOST:PORT, rediss://HOST:PORT, unix://PATH, redis+sentinel://HOST:PORT,HOST:PORT/MASTER or"
    " redis+cluster://HOST:PORT,HOST:PORT (rediss+... with TLS)"
)
LOOKUP_TIMEOUT_S: Final = 0.5
ASKED_MAX: Final = 8
"""A look-up asks at most so many nodes at once."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server and how to connect to it; two with the same name are the same."""

    name: str
    kind: type[AbstractConnection] = field(compare=False)
    options: dict[str, Any] = field(compare=False, hash=False)

    def connection(self, **options: Any) -> AbstractConnection:
        """Make a connection that is not connected yet, and that never retries anything."""
        return self.kind(**{**self.options, "retry": Retry(NoBackoff(), 0), **options})


@dataclass(frozen=True, slots=True)
class Layout:
    """Who held which keys when it was looked up. Without `slots` the only primary holds all."""

    primaries: tuple[Server, ...]
    slots: tuple[tuple[int, int, Server], ...] = ()
    """First slot, last slot, owner; in order of slots."""

    def owner_of(self, key: str) -> Server | None:
        """Give the primary that holds a key; None where nobody has its slot."""
        if not self.slots:
            return self.primaries[0]
        slot = key_slot(key.encode())
        at = bisect_right(self.slots, slot, key=lambda span: span[0]) - 1
        if at < 0 or self.slots[at][1] < slot:
            return None
        return self.slots[at][2]


class Locator(ABC):
    """Looks up the layout."""

    is_fixed: bool = False
    """Whether the layout never changes."""

    def __init__(self, kind: type[AbstractConnection], options: dict[str, Any]) -> None:
        self._kind, self._options = kind, options

    @abstractmethod
    async def locate(self) -> Layout:
        """Look up who holds which keys. Raises redis.exceptions.RedisError where nobody can say."""

    def server_at(self, host: str, port: int) -> Server:
        """Give the server at an address, reached as the others are."""
        return Server(f"{host}:{port}", self._kind, {**self._options, "host": host, "port": port})


class OneServer(Locator):
    """One server holds every key."""

    is_fixed = True

    async def locate(self) -> Layout:
        """Give the server; nothing is asked."""
        if "path" in self._options:
            return Layout((Server(str(self._options["path"]), self._kind, self._options),))
        host, port = str(self._options.get("host", "localhost")), int(self._options.get("port", 6379))
        return Layout((self.server_at(host, port),))


class Sentinels(Locator):
    """The master of a name holds every key; of the sentinels that answer, the one with the newest view is believed."""

    def __init__(
        self,
        kind: type[AbstractConnection],
        options: dict[str, Any],
        *,
        sentinels: Sequence[Server],
        master: str,
    ) -> None:
        super().__init__(kind, options)
        self._sentinels, self._master = tuple(sentinels), master

    async def locate(self) -> Layout:
        """Ask every sentinel for the master. Raises RedisError where none knows it."""
        answers = await _ask_all(self._sentinels, "SENTINEL", "MASTER", self._master)
        views = [dict(zip(answer[::2], answer[1::2], strict=True)) for _, answer in answers]
        if not views:
            raise RedisError(f"no sentinel knows the master {self._master!r}")
        newest = max(views, key=lambda view: int(view["config-epoch"]))
        return Layout((self.server_at(newest["ip"], int(newest["port"])),))


class Cluster(Locator):
    """The primaries of a cluster; of the nodes that answer, the one with the newest view is believed."""

    def __init__(self, kind: type[AbstractConnection], options: dict[str, Any], *, seeds: Sequence[Server]) -> None:
        super().__init__(kind, options)
        self._seeds, self._known = tuple(seeds), tuple(seeds)

    async def locate(self) -> Layout:
        """Ask nodes who holds which slots. Raises RedisError where none answers."""
        views = await _ask_all(self._known[:ASKED_MAX], "CLUSTER", "NODES")
        if not views:
            views = await _ask_all(self._seeds[:ASKED_MAX], "CLUSTER", "NODES")
        # Who lost touch with the others, or was cut off, does not hear of newer epochs.
        nodes = max((_parse_nodes(server, text) for server, text in views), key=_newest_epoch, default=None)
        if nodes is None:
            raise RedisError("no node of the cluster answers")
        spans: list[tuple[int, int, Server]] = []
        owners: dict[str, Server] = {}
        for node in nodes:
            if node.spans:
                owner = owners.setdefault(f"{node.host}:{node.port}", self.server_at(node.host, node.port))
                spans += [(first, last, owner) for first, last in node.spans]
        if not spans:
            raise RedisError("no node of the cluster has slots")
        others = [self.server_at(node.host, node.port) for node in nodes if not node.spans]
        self._known = tuple({server.name: server for server in (*owners.values(), *others, *self._seeds)}.values())
        return Layout(tuple(owners.values()), tuple(sorted(spans, key=lambda span: span[0])))


@dataclass(frozen=True, slots=True)
class _Node:
    host: str
    port: int
    epoch: int
    spans: tuple[tuple[int, int], ...]


def _newest_epoch(nodes: Sequence[_Node]) -> int:
    return max((node.epoch for node in nodes), default=0)


def _parse_nodes(asked: Server, text: str) -> list[_Node]:
    """Read CLUSTER NODES: id address flags master ping pong epoch link slots..."""
    nodes = []
    for line in text.splitlines():
        _, address, flags, _, _, _, epoch, _, *slots = line.split()
        host, _, port = address.split("@")[0].rpartition(":")
        if "noaddr" in flags or "handshake" in flags:
            continue
        spans = [slot.partition("-") for slot in slots if not slot.startswith("[")] if "master" in flags else []
        nodes.append(
            _Node(
                # A node that was never met doesn't know its own address.
                host=host.strip("[]") or str(asked.options["host"]),
                port=int(port),
                epoch=int(epoch),
                spans=tuple((int(first), int(last or first)) for first, _, last in spans),
            )
        )
    return nodes


async def _ask_all(servers: Sequence[Server], *command: str) -> list[tuple[Server, Any]]:
    """Ask servers at once; give the answers that came in time, in the servers' order."""
    answers = await asyncio.gather(*(_ask(server, *command) for server in servers))
    return [(server, answer) for server, answer in zip(servers, answers, strict=True) if answer is not None]


async def _ask(server: Server, *command: str) -> Any:
    connection = server.connection(decode_responses=True, socket_timeout=LOOKUP_TIMEOUT_S, protocol=2)
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command(*command)
            return await connection.read_response()
    except (RedisError, OSError, TimeoutError):
        return None
    finally:
        with contextlib.suppress(RedisError, OSError):
            await connection.disconnect(nowait=True)


def locator_of(url: str, **options: Any) -> Locator:
    """Read a Redis URL; `options` go to every connection to a server of keys. Raises ValueError with the remedy."""
    parts = urlsplit(url)
    scheme, _, topology = parts.scheme.partition("+")
    if scheme not in {"redis", "rediss", "unix"} or topology not in {"", "sentinel", "cluster"}:
        raise ValueError(f"{parts.scheme or 'no'} scheme; {FORMS}")
    if not topology:
        kind, given = _connection_options(url)
        return OneServer(kind, {**given, **options})
    if scheme == "unix":
        raise ValueError(f"sentinels and clusters have no sockets; {FORMS}")
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    for_sentinels = {name.removeprefix("sentinel_"): query.pop(name) for name in list(query) if "sentinel_" in name}
    credentials, _, hosts = parts.netloc.rpartition("@")
    if not all(hosts.split(",")):
        raise ValueError(f"a host is missing; {FORMS}")
    path = unquote(parts.path.strip("/"))

    def given_for(host: str, credentials: str) -> tuple[type[AbstractConnection], dict[str, Any]]:
        return _connection_options(f"{scheme}://{credentials}{'@' * bool(credentials)}{host}?{urlencode(query)}")

    if topology == "cluster":
        if path:
            raise ValueError(f"a cluster has neither databases nor a master's name; {FORMS}")
        return _cluster([given_for(host, credentials) for host in hosts.split(",")], options)
    if not path:
        raise ValueError(f"the name of the master is missing; {FORMS}")
    sentinels = [
        _server(kind, {**given, **for_sentinels}, 26379) for kind, given in (given_for(h, "") for h in hosts.split(","))
    ]
    kind, given = given_for(hosts.split(",")[0], credentials)
    return Sentinels(kind, {**given, **options}, sentinels=sentinels, master=path)


def _cluster(given: Sequence[tuple[type[AbstractConnection], dict[str, Any]]], options: dict[str, Any]) -> Cluster:
    seeds = [_server(kind, {**own, **options}, 6379) for kind, own in given]
    kind, own = given[0]
    return Cluster(kind, {**own, **options}, seeds=seeds)


def _server(kind: type[AbstractConnection], options: dict[str, Any], port: int) -> Server:
    options = {"host": "localhost", "port": port, **options}
    return Server(f"{options['host']}:{options['port']}", kind, options)


def _connection_options(url: str) -> tuple[type[AbstractConnection], dict[str, Any]]:
    given: dict[str, Any] = dict(parse_url(url))
    kind: type[AbstractConnection] = given.pop("connection_class", Connection)
    return kind, given
