"""The embedded servers against real processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from tollkeeper_cli.embedded import EmbeddedPostgres, EmbeddedValkey, ProcessError, places
from tollkeeper_cli.embedded.process import Child, ChildSpec, end_leftover

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLD = "import signal, sys; print('up', flush=True); signal.pause()"


def query(postgres: EmbeddedPostgres, sql: str) -> str:
    """Run one statement through a driver that is no part of the command."""
    program = (
        "import asyncio, sys, asyncpg\n"
        "async def run():\n"
        "    connection = await asyncpg.connect(sys.argv[1])\n"
        "    print(await connection.fetchval(sys.argv[2]))\n"
        "    await connection.close()\n"
        "asyncio.run(run())\n"
    )
    command = [sys.executable, "-c", program, postgres.url, sql]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


def is_gone(pid: int) -> bool:
    """Tell whether a process runs no more."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a directory that the unprivileged server account can enter."""
    path = tmp_path_factory.mktemp("embedded")
    for parent in (path, *path.parents[:-2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    yield path
    places.remove_home(path / "postgres")


@pytest.fixture(scope="module")
def postgres(directory: Path) -> Iterator[EmbeddedPostgres]:
    """Give a running server."""
    server = EmbeddedPostgres(directory / "postgres")
    server.start()
    yield server
    server.stop()


def test_postgres_is_durable(postgres: EmbeddedPostgres) -> None:
    """What is committed is on disk: none of the switches that trade durability for speed is off."""
    assert [query(postgres, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")] == [
        "on",
        "on",
        "on",
    ]


def test_postgres_survives_kill(postgres: EmbeddedPostgres) -> None:
    """A committed row is there after the server was killed with its backends and started again, twice in a row."""
    query(postgres, "CREATE TABLE kept (number int)")
    query(postgres, "INSERT INTO kept VALUES (7) RETURNING number")
    for _ in range(2):
        postgres.kill()
        assert not postgres.is_running
        postgres.start()
        assert query(postgres, "SELECT sum(number) FROM kept") == "7"


def test_postgres_takes_over_from_a_killed_owner(directory: Path) -> None:
    """A server whose owner was killed without warning dies too, and the next owner finds the data."""
    place = directory / "orphan"
    program = (
        "import sys, time, pathlib\n"
        "from tollkeeper_cli.embedded import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(pathlib.Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); sys.stdin.read()\n"
    )
    owner = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", program, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    owner.stdin.close()
    server = EmbeddedPostgres(place)
    server.start()
    try:
        assert is_gone(pid)
        assert query(server, "SELECT 1") == "1"
    finally:
        server.remove()


def test_postgres_refuses_another_version(directory: Path) -> None:
    """A cluster of another major version is named and refused, not touched."""
    server = EmbeddedPostgres(directory / "old")
    home = places.server_home(directory / "old", places.server_account())
    (home / "data").mkdir()
    (home / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(ProcessError, match="made by Postgres 12"):
        server.start()
    assert (home / "data" / "PG_VERSION").read_text() == "12\n"


def test_postgres_where_its_account_cannot_go(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a directory that only its owner may enter, and at a path too long for a socket, the server runs too."""
    monkeypatch.setattr(places, "is_reachable_by_others", lambda _path: False)
    place = directory / ("deep" * 25) / "postgres"
    server = EmbeddedPostgres(place)
    server.start()
    try:
        assert query(server, "SELECT 1") == "1"
    finally:
        server.remove()
    assert not places._stand_in_path(place.resolve()).exists()


def test_data_never_outlives_its_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started again the data is there; after its directory was removed by hand, a new one of that name is empty."""
    monkeypatch.setattr(places, "is_reachable_by_others", lambda _path: False)
    place = directory / "run" / ("deep" * 25) / "postgres"
    account = places.server_account()
    home = places.server_home(place, account)
    (home / "data").mkdir()
    assert (places.server_home(place, account) / "data").is_dir()
    shutil.rmtree(directory / "run")
    try:
        assert not (places.server_home(place, account) / "data").exists()
    finally:
        places.remove_home(place)


def test_stand_in_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that others may enter, laid in the stand-in's place, is not used."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    wanted = tmp_path / ("long" * 30)
    places._stand_in_path(wanted).mkdir(mode=0o777)
    places._stand_in_path(wanted).chmod(0o777)
    with pytest.raises(ProcessError, match="not a private directory"):
        places.socket_directory(wanted)


def test_valkey_starts_empty_and_never_evicts(directory: Path) -> None:
    """A restarted server holds nothing, and a full one refuses instead of dropping a pool."""
    server = EmbeddedValkey(directory / "valkey")
    path = server.start().removeprefix("unix://")

    def ask(command: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(command + b"\r\n")
            return connection.recv(1_000)

    try:
        assert b"noeviction" in ask(b"CONFIG GET maxmemory-policy")
        assert ask(b"SET a 1") == b"+OK\r\n"
        server.kill()
        server.start()
        assert ask(b"DBSIZE") == b":0\r\n"
    finally:
        server.remove()


def test_sockets_are_private(postgres: EmbeddedPostgres) -> None:
    """The directory of the socket lets nobody but its owner in."""
    home = Path(postgres.url.partition("host=")[2])
    assert home.stat().st_mode & 0o077 == 0


def spec(tmp_path: Path, program: str) -> ChildSpec:
    """Describe a Python child."""
    return ChildSpec(
        name="child",
        argv=[sys.executable, "-c", program],
        log_path=tmp_path / "child.log",
        pid_path=tmp_path / "child.json",
    )


def test_child_that_dies_while_starting_is_reported_with_its_log(tmp_path: Path) -> None:
    """The error names the exit code and shows what the child said."""
    child = Child(spec(tmp_path, "raise SystemExit('no such setting')"))
    child.start()
    with pytest.raises(ProcessError, match=r"ended with code 1(.|\n)*no such setting"):
        child.wait_until(lambda: False, timeout_s=30)


def test_child_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    """Stop ends a child that doesn't listen, and says that it had to."""
    child = Child(spec(tmp_path, "import signal; signal.signal(15, signal.SIG_IGN);" + HOLD))
    child.start()
    child.wait_until(lambda: "up" in (tmp_path / "child.log").read_text(), timeout_s=30)
    assert not child.stop(timeout_s=0.05)
    assert not child.is_running


def test_leftover_is_told_from_a_stranger(tmp_path: Path) -> None:
    """Only the recorded process itself is ended, never another one that got its number."""
    child = Child(spec(tmp_path, HOLD))
    child.start()
    child.wait_until(lambda: "up" in (tmp_path / "child.log").read_text(), timeout_s=30)
    recorded = (tmp_path / "child.json").read_text()
    (tmp_path / "child.json").write_text(f'{{"pid": {os.getpid()}, "created": 1.0}}')
    assert not end_leftover(tmp_path / "child.json")
    (tmp_path / "child.json").write_text(recorded)
    assert end_leftover(tmp_path / "child.json")
    assert child.stop(timeout_s=5)
    assert -child._popen.returncode == signal.SIGTERM  # type: ignore[union-attr]
