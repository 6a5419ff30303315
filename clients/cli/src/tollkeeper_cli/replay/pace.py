"""Time a replay: by a clock that runs, or by one that steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_cli.replay.model import MICROSECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tollkeeper_cli.replay.model import ReplayRequest

SetClock = Callable[[int], Awaitable[None]]
"""Sets ledger time, in microseconds, and returns when every sidecar has it."""

# A sleeper looks again so often whether the clock's speed has changed.
_LONGEST_SLEEP_S = 0.1
_HOUR_US = 3_600 * MICROSECONDS


class RunningPace:
    """A clock that runs `speed` times as fast as real time, from `start_us` on. Its speed may change on the way."""

    def __init__(
        self,
        *,
        start_us: int,
        speed: int,
        started_s: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._start_us, self._speed = start_us, speed
        self._started_s = monotonic() if started_s is None else started_s

    def restart(self, *, start_us: int, speed: int, started_s: float) -> None:
        """Follow another setting of the clock, for those who wait already as well."""
        self._start_us, self._speed, self._started_s = start_us, speed, started_s

    def now_us(self) -> int:
        """Return the time that the clock shows."""
        return self._start_us + round((self._monotonic() - self._started_s) * self._speed * MICROSECONDS)

    async def reach(self, at_us: int) -> int:
        """Wait until the clock shows this time; return how late it is, in real microseconds."""
        waited = False
        while (wait_us := (at_us - self.now_us()) // self._speed) > 0:
            await asyncio.sleep(min(wait_us / MICROSECONDS, _LONGEST_SLEEP_S))
            waited = True
        return 0 if waited else -wait_us


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
