"""Run Postgres, Valkey, the ledger and a sidecar as one stack of child processes.

Owns a data directory: nobody else runs a stack there at the same time. Starts nothing again by itself: a process
that died is reported by `check`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tollkeeper_cli.embedded import EmbeddedPostgres, EmbeddedValkey, ProcessError, places
from tollkeeper_cli.embedded.process import Child, ChildSpec, end_leftover
from tollkeeper_cli.errors import FoundProblemsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

ADDRESSES_FILE = "stack.json"
# Unix sockets make a poor :authority; the servers accept this one.
CHANNEL_OPTIONS = (("grpc.default_authority", "localhost"),)

_LEDGER_START_TIMEOUT_S = 60.0
_SIDECAR_START_TIMEOUT_S = 60.0
_SIDECAR_STOP_TIMEOUT_S = 15.0
_LEDGER_STOP_TIMEOUT_S = 10.0
_HEALTH_TIMEOUT_S = 2.0
_MIGRATE_TIMEOUT_S = 120.0
# Six processes and their load share this machine: a round trip to Redis may take longer than a network's 5 ms.
_EMBEDDED_REDIS_BUDGET_MS = "250"
# The usage log takes its room when it is made: enough for a million records, little for a laptop.
_EMBEDDED_USAGE_LOG_BYTES = str(256 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a stack listens."""

    ledger_listen: str = "127.0.0.1:8611"
    ledger_http: str = "127.0.0.1:8612"
    sidecar_listen: str = "127.0.0.1:8601"
    sidecar_http: str = "127.0.0.1:8602"
    sidecar_socket: str = ""

    @property
    def sidecar_target(self) -> str:
        """Return the gRPC target of the sidecar's Unix socket."""
        return f"unix:{self.sidecar_socket}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Servers that run elsewhere; empty = embedded ones."""

    database_url: str = ""
    redis_url: str = ""

    @property
    def is_embedded(self) -> bool:
        """Tell whether the stack starts its own servers."""
        return not self.database_url


class Stack:
    """Four processes that belong together.

    `start` brings them up in order and returns when each is healthy; `stop` takes them down in reverse, so that the
    sidecar can still ship what it holds. The scaled clock of a fresh database begins at `clock_start` (RFC 3339).
    The `kill_*` and `start_*` pairs are for fault tests.
    """

    def __init__(
        self,
        directory: Path,
        *,
        addresses: Addresses | None = None,
        servers: Servers | None = None,
        clock_start: str = "",
        say: Callable[[str], None] = lambda _message: None,
    ) -> None:
        self.directory = directory.resolve()
        self._servers = servers or Servers()
        self._clock_start = clock_start
        self._say = say
        self._wanted = addresses or Addresses()
        self._addresses: Addresses | None = None
        self._postgres = EmbeddedPostgres(self.directory / "postgres")
        self._valkey = EmbeddedValkey(self.directory / "valkey")
        self._ledger: Child | None = None
        self._sidecar: Child | None = None

    @property
    def addresses(self) -> Addresses:
        """Return where the stack listens. Raises ProcessError before start."""
        if self._addresses is None:
            raise ProcessError("the stack was not started")
        return self._addresses

    def start(self) -> Addresses:
        """Bring everything up and return the addresses. On failure everything is taken down again."""
        try:
            self._end_leftovers()
            self._start_servers()
            self._addresses = self._choose_addresses()
            self._migrate()
            self.start_ledger()
            self.start_sidecar()
        except BaseException:
            self.stop()
            raise
        (self.directory / ADDRESSES_FILE).write_text(json.dumps(asdict(self._addresses), indent=2))
        return self._addresses

    def stop(self) -> None:
        """Take everything down, the sidecar first: it ships and returns what it holds."""
        (self.directory / ADDRESSES_FILE).unlink(missing_ok=True)
        if self._sidecar is not None and not self._sidecar.stop(timeout_s=_SIDECAR_STOP_TIMEOUT_S):
            self._say("the sidecar did not end in time and was killed; its log keeps what was not shipped")
        if self._ledger is not None and not self._ledger.stop(timeout_s=_LEDGER_STOP_TIMEOUT_S):
            self._say("the ledger did not end in time and was killed")
        if self._servers.is_embedded:
            self._valkey.stop()
            self._postgres.stop()

    def check(self) -> None:
        """Raise ProcessError when one of the processes has died; the message ends with its log."""
        for name, child in (("ledger", self._ledger), ("sidecar", self._sidecar)):
            if child is not None and not child.is_running:
                raise ProcessError(f"the {name} has died\n{child.log_tail()}")
        is_up = self._postgres.is_running and (self._servers.redis_url or self._valkey.is_running)
        if self._servers.is_embedded and not is_up:
            raise ProcessError(f"an embedded server has died; its log is in {self.directory}")

    def start_ledger(self) -> None:
        """Start the ledger and wait until it serves."""
        self._ledger = Child(self._python("ledger", "tollkeeper_ledger", "serve"))
        self._ledger.start()
        target = self.addresses.ledger_listen
        self._ledger.wait_until(lambda: is_serving(target), timeout_s=_LEDGER_START_TIMEOUT_S)

    def start_sidecar(self) -> None:
        """Start the sidecar and wait until it serves."""
        self._sidecar = Child(self._python("sidecar", "tollkeeper_sidecar"))
        self._sidecar.start()
        target = self.addresses.sidecar_target
        self._sidecar.wait_until(lambda: is_serving(target), timeout_s=_SIDECAR_START_TIMEOUT_S)

    def kill_postgres(self) -> None:
        """Kill Postgres as a crash would; `start_postgres` recovers what was committed."""
        self._postgres.kill()

    def start_postgres(self) -> None:
        """Start Postgres and wait until it serves."""
        self._postgres.start()

    def kill_valkey(self) -> None:
        """Kill Valkey as a crash would; `start_valkey` starts an empty one."""
        self._valkey.kill()

    def start_valkey(self) -> None:
        """Start Valkey and wait until it answers."""
        self._valkey.start()

    def kill_ledger(self) -> None:
        """Kill the ledger as a crash would."""
        if self._ledger is not None:
            self._ledger.kill()

    def kill_sidecar(self) -> None:
        """Kill the sidecar as a crash would."""
        if self._sidecar is not None:
            self._sidecar.kill()

    def environment(self) -> dict[str, str]:
        """Return the settings of the stack's processes."""
        addresses = self.addresses
        settings = {
            "DATABASE_URL": self._servers.database_url or self._postgres.url,
            "REDIS_URL": self._servers.redis_url or self._valkey.url,
            "LEDGER_LISTEN": addresses.ledger_listen,
            "LEDGER_HTTP": addresses.ledger_http,
            "LEDGER_ADDRESS": addresses.ledger_listen,
            "SIDECAR_LISTEN": addresses.sidecar_listen,
            "SIDECAR_HTTP": addresses.sidecar_http,
            "SIDECAR_SOCKET": addresses.sidecar_socket,
            "USAGE_LOG_DIR": str(self.directory / "usage-log"),
            "AUDIT_DIR": str(self.directory / "audit"),
        }
        if self._servers.is_embedded:
            settings["EMBEDDED"] = "1"
            settings["REDIS_BUDGET_MS"] = os.environ.get("TOLLKEEPER_REDIS_BUDGET_MS", _EMBEDDED_REDIS_BUDGET_MS)
            settings["USAGE_LOG_BYTES"] = os.environ.get("TOLLKEEPER_USAGE_LOG_BYTES", _EMBEDDED_USAGE_LOG_BYTES)
        return {f"TOLLKEEPER_{name}": value for name, value in settings.items()}

    def _end_leftovers(self) -> None:
        """End what a killed predecessor left in this directory."""
        for name in ("sidecar", "ledger"):
            if end_leftover(self._pid_path(name)):
                self._say(f"ended a {name} that an earlier run had left")

    def _start_servers(self) -> None:
        """Start the embedded servers, unless others are given."""
        if self._servers.is_embedded:
            self._postgres.start()
            if not self._servers.redis_url:
                self._valkey.start()

    def _migrate(self) -> None:
        """Bring the database's schema up to date; a fresh one's clock starts where it should."""
        clock = {"TOLLKEEPER_CLOCK_START": self._clock_start} if self._clock_start else {}
        finished = subprocess.run(
            [sys.executable, "-m", "tollkeeper_ledger", "migrate"],
            check=False,
            capture_output=True,
            text=True,
            timeout=_MIGRATE_TIMEOUT_S,
            env={**os.environ, **self.environment(), **clock},
        )
        (self.directory / "migrate.log").write_text(finished.stdout + finished.stderr)
        if finished.returncode != 0:
            raise ProcessError(f"the ledger's migrations failed\n{finished.stdout}{finished.stderr}")

    def _choose_addresses(self) -> Addresses:
        """Take the wanted ports, or free ones in place of those that are taken."""
        wanted = self._wanted
        with ExitStack() as probes:  # Each stays open until all are chosen: nobody gets a port twice.
            chosen = {
                name: self._choose_port(name, getattr(wanted, name), probes)
                for name in ("ledger_listen", "ledger_http", "sidecar_listen", "sidecar_http")
            }
        place = places.socket_directory(self.directory)
        return Addresses(**chosen, sidecar_socket=wanted.sidecar_socket or str(place / "sidecar.sock"))

    def _choose_port(self, name: str, wanted: str, probes: ExitStack) -> str:
        """Return the wanted address when it is free, else a free port of the same host."""
        host, _, port = wanted.rpartition(":")
        if is_free(host, int(port)):
            return wanted
        probe = probes.enter_context(socket.socket())
        probe.bind((host, 0))
        free = f"{host}:{probe.getsockname()[1]}"
        if port != "0":
            self._say(f"{wanted} is taken: {name.replace('_', ' ')} uses {free}")
        return free

    def _python(self, name: str, *module: str) -> ChildSpec:
        """Describe a Python module's process."""
        return ChildSpec(
            name=name,
            argv=[sys.executable, "-m", *module],
            log_path=self.directory / f"{name}.log",
            pid_path=self._pid_path(name),
            environment=self.environment(),
        )

    def _pid_path(self, name: str) -> Path:
        return self.directory / f"{name}.pid.json"


@contextmanager
def owned_directory(directory: Path, *, fresh: bool) -> Iterator[Path]:
    """Own a data directory until the end of the block; with `fresh`, empty it first.

    Raises FoundProblemsError when another process owns it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a+") as lock:
        _take(lock, directory)
        if fresh:
            _empty(directory)
        yield directory.resolve()


def running_addresses(directory: Path) -> Addresses | None:
    """Return the addresses of the stack that runs in a directory, if one does."""
    try:
        return Addresses(**json.loads((directory / ADDRESSES_FILE).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def servers_from(environment: Mapping[str, str]) -> Servers:
    """Read which servers to use from the environment."""
    return Servers(
        database_url=environment.get("TOLLKEEPER_DATABASE_URL", ""),
        redis_url=environment.get("TOLLKEEPER_REDIS_URL", ""),
    )


def addresses_from(environment: Mapping[str, str]) -> Addresses:
    """Read where to listen from the environment."""
    default = Addresses()
    return Addresses(
        **{name: environment.get(f"TOLLKEEPER_{name.upper()}", value) for name, value in asdict(default).items()}
    )


def is_serving(target: str) -> bool:
    """Tell whether a gRPC server at HOST:PORT or unix:PATH answers its health check with SERVING."""
    if not _accepts(target):  # A channel that nobody answers costs a hundred times as much.
        return False
    with grpc.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_S
            )
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _accepts(target: str) -> bool:
    """Tell whether somebody takes connections there."""
    scheme, _, path = target.partition(":")
    try:
        if scheme == "unix":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_HEALTH_TIMEOUT_S)
                probe.connect(path)
        else:
            host, _, port = target.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=_HEALTH_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def is_free(host: str, port: int) -> bool:
    """Tell whether a TCP port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return port != 0


def _take(lock: IO[str], directory: Path) -> None:
    """Lock the directory, and write down who has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        raise FoundProblemsError(
            f"{directory} is in use by process {owner}: stop it, or choose another --data-dir"
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()


def _empty(directory: Path) -> None:
    """Remove everything in a data directory but its lock, after ending what still runs there."""
    for pid_path in directory.glob("*.pid.json"):
        end_leftover(pid_path)
    for name in ("postgres", "valkey"):
        places.remove_home(directory / name)
    places.remove_stand_in(directory)
    for path in directory.iterdir():
        if path.name == "lock":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
