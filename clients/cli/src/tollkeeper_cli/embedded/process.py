"""Start, watch and end one child process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from tollkeeper_cli.embedded import launch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_POLL_INTERVAL_S = 0.01
_LOG_TAIL_LINES = 15
_KILL_TIMEOUT_S = 10.0
_KEEP = -1


class ProcessError(RuntimeError):
    """A child did not start, died, or would not end. The message ends with the tail of its log."""


@dataclass(frozen=True, slots=True)
class Account:
    """The user that a child runs as."""

    uid: int = _KEEP
    gid: int = _KEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to run and how to end it."""

    name: str
    argv: Sequence[str]
    log_path: Path
    pid_path: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    stop_signal: signal.Signals = signal.SIGTERM


class Child:
    """One child process that dies with this one.

    Start it from a thread that lives as long as the child should: Linux ties the child to the thread.
    A terminal's Ctrl-C doesn't reach it, because it has a session of its own.
    """

    def __init__(self, spec: ChildSpec) -> None:
        self._spec = spec
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return the process id. Raises ProcessError before start."""
        if self._popen is None:
            raise ProcessError(f"{self._spec.name} was not started")
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Tell whether the process is there."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Return the code with which the process ended, minus the signal's number where one did; None while it runs."""
        return None if self._popen is None else self._popen.poll()

    def start(self) -> None:
        """Start the process, after ending a leftover that an earlier run recorded in the same place."""
        spec = self._spec
        end_leftover(spec.pid_path)
        spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        spec.pid_path.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-I",
            "-S",
            launch.__file__,
            str(os.getpid()),
            str(int(spec.stop_signal)),
            str(spec.account.uid),
            str(spec.account.gid),
            *spec.argv,
        ]
        with spec.log_path.open("ab") as log:
            self._popen = subprocess.Popen(  # noqa: S603 - our own argument list
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **spec.environment},
                start_new_session=True,
            )
        _record(spec.pid_path, self._popen.pid)

    def wait_until(self, ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Return once `ready` does; raise ProcessError when the process ends first or time runs out."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.is_running:
                code = None if self._popen is None else self._popen.returncode
                raise ProcessError(f"{self._spec.name} ended with code {code} while starting\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ProcessError(f"{self._spec.name} was not ready after {timeout_s:g} s\n{self.log_tail()}")
            time.sleep(_POLL_INTERVAL_S)

    def stop(self, *, timeout_s: float, by: signal.Signals | None = None) -> bool:
        """End the process in order; kill it and everything below it after the time given.

        `by` is the signal that asks it to end; none = the one that ends it in order. Returns whether it ended by
        itself. Does nothing when it isn't running.
        """
        if self._popen is None:
            return True
        in_order = True
        if self._popen.poll() is None:
            self._popen.send_signal(by or self._spec.stop_signal)
            try:
                self._popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                in_order = False
                self.kill()
        self._spec.pid_path.unlink(missing_ok=True)
        return in_order

    def kill(self) -> None:
        """Kill the process and everything below it, as `kill -9` would, and wait until all are gone."""
        if self._popen is None:
            return
        _kill_tree(self._popen.pid)
        self._popen.wait()

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        try:
            lines = self._spec.log_path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join([f"--- {self._spec.log_path} ---", *lines[-_LOG_TAIL_LINES:]])


def end_leftover(pid_path: Path, *, timeout_s: float = 10.0) -> bool:
    """End the process that an earlier run recorded, if it is still that process. Return whether there was one."""
    try:
        recorded = json.loads(pid_path.read_text())
        process = psutil.Process(int(recorded["pid"]))
        same = abs(process.create_time() - float(recorded["created"])) < 1.0
    except (FileNotFoundError, ValueError, KeyError, TypeError, psutil.Error):
        pid_path.unlink(missing_ok=True)
        return False
    if same and not _is_gone(process):
        process.terminate()
        if not _wait_gone([process], timeout_s=timeout_s):
            _kill_tree(process.pid)
    pid_path.unlink(missing_ok=True)
    return same


def _record(pid_path: Path, pid: int) -> None:
    """Write down which process runs, so that a later run can tell it from a stranger with the same number."""
    try:
        created = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return
    pid_path.write_text(json.dumps({"pid": pid, "created": created}))


def _kill_tree(pid: int) -> None:
    """Kill a process, then what it had started."""
    try:
        top = psutil.Process(pid)
        below = top.children(recursive=True)
        top.kill()
    except psutil.NoSuchProcess:
        return
    for process in below:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    _wait_gone([top, *below], timeout_s=_KILL_TIMEOUT_S)


def _is_gone(process: psutil.Process) -> bool:
    """Tell whether a process runs no more; one that only waits to be reaped doesn't."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _wait_gone(processes: Sequence[psutil.Process], *, timeout_s: float) -> bool:
    """Wait until every process is gone; return whether that came true in time."""
    deadline = time.monotonic() + timeout_s
    while not all(_is_gone(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_INTERVAL_S)
    return True
