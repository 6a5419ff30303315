"""A sidecar of a bench's own, started by its installed command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bench.stage import Stage

POLL_S = 0.0005


@dataclass(frozen=True, slots=True)
class OwnSidecar:
    """A folder for a sidecar's volume and socket, and the settings of whoever is started there."""

    folder: Path
    environment: Mapping[str, str]

    @property
    def target(self) -> str:
        """Give the gRPC target of its Unix socket."""
        return f"unix:{self._socket}"

    @property
    def log_folder(self) -> Path:
        """Give the directory of its usage log."""
        return self.folder / "log"

    @property
    def _socket(self) -> str:
        return self.environment["TOLLKEEPER_SIDECAR_SOCKET"]

    @contextmanager
    def serving(self, **settings: str) -> Iterator[psutil.Process]:
        """Execute the installed command; give the process once it takes connections; kill it at the end.

        Raises RuntimeError with its log where it ends before.
        """
        command = Path(sys.executable).with_name("tollkeeper-sidecar")
        said = self.folder / "sidecar.log"
        Path(self._socket).unlink(missing_ok=True)
        with said.open("ab") as log:
            own = {**os.environ, **self.environment, **settings}
            child = subprocess.Popen([command], env=own, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while not _is_taking_calls(self._socket):
                if child.poll() is not None:
                    raise RuntimeError(said.read_text())
                time.sleep(POLL_S)
            yield psutil.Process(child.pid)
        finally:
            child.kill()
            child.wait()


def own_sidecar(stage: Stage, name: str, *, log_bytes: int) -> OwnSidecar:
    """Give a sidecar of the stage's ledger and Redis, not started, with a folder that may be there already."""
    folder = stage.stack.directory / name
    folder.mkdir(exist_ok=True)
    own = {
        "TOLLKEEPER_USAGE_LOG_DIR": str(folder / "log"),
        "TOLLKEEPER_USAGE_LOG_BYTES": str(log_bytes),
        "TOLLKEEPER_SIDECAR_SOCKET": str(folder / "s.sock"),
        "TOLLKEEPER_SIDECAR_LISTEN": "off",
        "TOLLKEEPER_SIDECAR_HTTP": "off",
    }
    return OwnSidecar(folder, {**stage.stack.environment(), **own})


def _is_taking_calls(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0
