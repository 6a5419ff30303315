"""Become another program that dies with its parent.

Runs as a script under `python -I -S`, so it imports only the standard library and never this package:

    launch.py PARENT_PID DEATH_SIGNAL UID GID PROGRAM ARGUMENT...

A UID of -1 keeps the present user. The order matters: the kernel forgets the death signal when credentials change.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_NO_CHANGE = -1


def _drop_privileges(uid: int, gid: int) -> None:
    """Give up the present user for good."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _die_with_parent(parent_pid: int, death_signal: int) -> None:
    """Ask the kernel for a signal when the parent ends; does nothing where the kernel can't."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:  # it ended before the request was in force
        sys.exit(1)


def main(arguments: list[str]) -> None:
    """Replace this process by the program."""
    parent_pid, death_signal, uid, gid = (int(argument) for argument in arguments[:4])
    if uid != _NO_CHANGE:
        _drop_privileges(uid, gid)
    _die_with_parent(parent_pid, death_signal)
    os.execv(arguments[4], arguments[4:])  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main(sys.argv[1:])
