"""Time a replay: by a clock that runs, or by one that steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tollkeeper_cli.replay.model import MICROSECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tollkeeper_cli.replay.model import ReplayRequest

SetClock = Callable[[int], Awaitable[None]]
"""Sets ledger time, in microseconds, and returns when every sidecar has it."""

_HOUR_US = 3_600 * MICROSECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningPace:
    """A clock that runs `speed` times as fast as real time, from `start_us` at `started_s`."""

    start_us: int
    speed: int
    started_s: float = field(default_factory=time.monotonic)
    monotonic: Callable[[], float] = time.monotonic

    def now_us(self) -> int:
        """Return the time that the clock shows."""
        return self.start_us + round((self.monotonic() - self.started_s) * self.speed * MICROSECONDS)

    async def reach(self, at_us: int) -> int:
        """Wait until the clock shows this time; return how late it is, in real microseconds."""
        wait_us = (at_us - self.now_us()) // self.speed
        if wait_us > 0:
            await asyncio.sleep(wait_us / MICROSECONDS)
            return 0
        return -wait_us


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppingPace:
    """A clock that stands still until it is set to the next thing's time."""

    set_clock: SetClock


def shift_to_present(first_us: int, now_us: int) -> int:
    """Return how many microseconds to move a recording by so that its clock needn't go back: whole hours, or 0."""
    return 0 if first_us >= now_us else -((first_us - now_us) // _HOUR_US) * _HOUR_US


def merged(*recordings: Iterable[ReplayRequest]) -> list[ReplayRequest]:
    """Return the requests of several recordings in order of arrival, those of one moment in the order given."""

    def everything() -> Iterator[ReplayRequest]:
        for recording in recordings:
            yield from recording

    return sorted(everything(), key=lambda request: request.at_us)
