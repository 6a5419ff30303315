"""Two real Valkey servers, one the replica of the other, and the ways in which they lose acknowledged writes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ports import free_port
from redis import Redis
from redis.exceptions import RedisError
from tcp_proxy import PARTITION, Proxy
from tollkeeper_cli.embedded.process import Child, ChildSpec
from tollkeeper_cli.embedded.valkey import valkey_program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_WAIT_S = 60.0
_SETTINGS = {
    "bind": "127.0.0.1",
    "save": "",
    "appendonly": "no",
    "maxmemory": "256mb",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": "0",
    "repl-diskless-load": "swapdb",
    "repl-timeout": "3600",  # a replica that is cut off stays where it was until a test says otherwise
}


def until(ready: Callable[[], bool], what: str, *, timeout_s: float = _WAIT_S) -> float:
    """Wait for a condition and return how many seconds that took; an AssertionError names what didn't come."""
    started_s = time.monotonic()
    while not ready():
        assert time.monotonic() - started_s < timeout_s, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.005)
    return time.monotonic() - started_s


class RedisServer:
    """One Valkey without persistence on a TCP port of its own."""

    def __init__(self, directory: Path, name: str) -> None:
        self.port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        settings = [argument for key, value in _SETTINGS.items() for argument in (f"--{key}", value)]
        self._child = Child(
            ChildSpec(
                name=name,
                argv=[str(valkey_program()), "--port", str(self.port), "--dir", str(directory), *settings],
                log_path=directory / f"{name}.log",
                pid_path=directory / f"{name}.pid.json",
            )
        )
        self.client = Redis(port=self.port, decode_responses=True, socket_timeout=30)

    def start(self) -> None:
        """Start it, empty."""
        self._child.start()
        self._child.wait_until(self._answers, timeout_s=_WAIT_S)

    def kill(self) -> None:
        """Kill it as a crash would: everything is gone."""
        self._child.kill()
        self.client.close()

    def stop(self) -> None:
        """Stop it."""
        self.client.close()
        self._child.stop(timeout_s=30)

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._child.pid

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO as text."""
        found: dict[str, object] = self.client.info(section)
        return {name: str(value) for name, value in found.items()}

    def calls(self, command: str = "fcall") -> int:
        """Return how often clients called a command since the start."""
        found: dict[str, dict[str, int]] = self.client.info("commandstats")
        return found.get(f"cmdstat_{command}", {}).get("calls", 0)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except (RedisError, OSError):
            return False


class RedisPair:
    """A master and its replica; the replica hears the master through a line that can be cut."""

    def __init__(self, directory: Path) -> None:
        self.first, self.second = RedisServer(directory, "first"), RedisServer(directory, "second")
        self._line = Proxy(self.first.port)

    def start(self) -> None:
        """Start both, and wait until the second follows the first."""
        self.first.start()
        self.second.start()
        self._line.__enter__()
        self.follow()

    def stop(self) -> None:
        """Stop both."""
        self.second.stop()
        self.first.stop()
        self._line.__exit__()

    def follow(self) -> None:
        """Make the first the master and the second its replica, in sync."""
        self._line.heal()
        self.first.client.replicaof("NO", "ONE")
        self.second.client.replicaof("127.0.0.1", str(self._line.port))
        until(self._in_sync, "the replica to be in sync")

    def cut_replica_off(self) -> None:
        """Let the replica hear nothing any more: from now on what the master acknowledges exists once."""
        self._line.use(PARTITION)

    def promote_second(self) -> None:
        """Make the cut-off replica a master of its own; the old master goes on, unaware."""
        self.second.client.replicaof("NO", "ONE")

    def demote_and_promote_first(self) -> tuple[str, str]:
        """Make the first a replica of the stale second, wait until it has copied it, and make it master again.

        Returns its run ids before and after: they are the same.
        """
        before = self.first.info("server")["run_id"]
        self.promote_second()
        self.first.client.replicaof("127.0.0.1", str(self.second.port))
        until(lambda: self.first.info("replication")["master_link_status"] == "up", "the old master to copy the stale")
        self.first.client.replicaof("NO", "ONE")
        return before, self.first.info("server")["run_id"]

    def _in_sync(self) -> bool:
        master, replica = self.first.info("replication"), self.second.info("replication")
        up = replica.get("master_link_status") == "up"
        return up and replica.get("slave_repl_offset") == master.get("master_repl_offset")
