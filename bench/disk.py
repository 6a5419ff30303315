"""What the disk alone gives: bytes written and synced in groups, in a file beside the usage log."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FILE_BYTES = 32 << 20
_BLOCK_BYTES = 1 << 20


@contextmanager
def written_file(directory: Path) -> Iterator[int]:
    """Give a file whose every byte was written before, so that a sync writes nothing but what was written since."""
    with tempfile.TemporaryFile(dir=directory) as opened:
        file = opened.fileno()
        for at in range(0, _FILE_BYTES, _BLOCK_BYTES):
            os.pwrite(file, bytes(_BLOCK_BYTES), at)
        os.fsync(file)
        yield file


def commit_groups(file: int, *, count: int, group_bytes: int) -> float:
    """Write and sync so many groups, one after the other; gives the seconds."""
    group, places = bytes(group_bytes), _FILE_BYTES // group_bytes
    began = time.perf_counter()
    for number in range(count):
        os.pwrite(file, group, number % places * group_bytes)
        os.fdatasync(file)
    return time.perf_counter() - began


def commit_paced(file: int, *, count: int, per_s: int, record_bytes: int) -> list[float]:
    """Write and sync records as they come due, all that are due in one group; gives each one's milliseconds."""
    taken: list[float] = []
    began, at = time.perf_counter(), 0
    while len(taken) < count:
        first = len(taken)
        ahead_s = began + first / per_s - time.perf_counter()
        if ahead_s > 0:
            time.sleep(ahead_s)
        due = min(count, int((time.perf_counter() - began) * per_s) + 1)
        group = bytes(record_bytes * (due - first))
        at = at + len(group) if at + 2 * len(group) <= _FILE_BYTES else 0
        os.pwrite(file, group, at)
        os.fdatasync(file)
        now = time.perf_counter()
        taken.extend((now - began - number / per_s) * 1e3 for number in range(first, due))
    return taken
