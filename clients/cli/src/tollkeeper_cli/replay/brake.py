"""Slow a replay down where the machine can't keep up, so that what is replayed behaves as in life.

At 120 times real time a check that takes 100 ms holds its reservation for 12 s, and a minute has 500 ms in which leases
must arrive: on a busy machine that would measure the machine, not the limits.

A queue that once stands makes all later calls wait, so it must not come to be: the recording says how many requests are
next, and how many a second this machine can take is learned from how long they took.
"""

from __future__ import annotations

from bisect import bisect_left
from statistics import median
from typing import TYPE_CHECKING

from tollkeeper_cli.replay.model import MICROSECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERVAL_S = 0.15
_SLOW_S = 0.03
# As long as a call waits at most: who is asked later than that is denied for the machine's sake.
_STALLED_S = 0.1
_LATE_US = 100_000
_FRACTION_MIN = 60
# Everything is asked for the first time at once: connections, code, windows, leases.
_COLD_PER_S = 40.0
_INTERVALS_COLD = 30
_LEAST_PER_S = 20.0
_GROWTH, _GROWTH_KNOWN = 1.2, 1.02
_AFTER_SLOW = 0.7
_INTERVALS_OF_A_QUEUE = 3
_STEP = 1.1


class Brake:
    """Decides the speed from what comes next and how long reservations took in the last interval. Pure.

    `arrivals_us`: when the recording's requests arrive, ascending. Looks as far ahead as half a second at full speed.
    """

    def __init__(self, speed: int, arrivals_us: Sequence[int]) -> None:
        self._full = speed
        self._slowest = max(1, speed // _FRACTION_MIN)
        self._arrivals_us = arrivals_us
        self._ahead_us = speed * MICROSECONDS // 2
        self._per_s = _COLD_PER_S
        # Beyond this the machine was slow once: it is gone to slowly.
        self._known_per_s = float("inf")
        self._intervals = self._since_slow = 0
        self.speed = self._slowest
        """The speed that was decided last."""

    @property
    def is_on(self) -> bool:
        """Tell whether the replay is slower than it should be, its beginning apart."""
        return self._intervals > _INTERVALS_COLD and self.speed < self._full

    def decide(self, taken_s: Sequence[float], late_us: int, *, now_us: int) -> int | None:
        """Return the new speed, or nothing where it stays; `now_us` is the recording's time.

        Requests a second become a fifth more after each interval that was not slow, a fiftieth where that many were
        too many before, and less than were answered after one that was. While calls stall hardly any are sent.
        """
        self._intervals += 1
        self._since_slow += 1
        typical_s = median(taken_s) if taken_s else 0.0
        is_stalled = typical_s > _STALLED_S
        if is_stalled or typical_s > _SLOW_S or late_us > _LATE_US:
            if self._since_slow > _INTERVALS_OF_A_QUEUE:
                self._learn(len(taken_s) / INTERVAL_S)
        elif self.speed < self._full:
            self._per_s *= _GROWTH if self._per_s < self._known_per_s else _GROWTH_KNOWN
        return self._set(self._slowest if is_stalled else self._affordable(now_us))

    def _learn(self, answered_per_s: float) -> None:
        """Take less than was too much. Where few were answered because few came, something else took the machine."""
        self._since_slow = 0
        self._known_per_s = max(_LEAST_PER_S, self._per_s * _AFTER_SLOW)
        self._per_s = max(_LEAST_PER_S, min(self._known_per_s, max(self._per_s / 2, answered_per_s * _AFTER_SLOW)))

    def _affordable(self, now_us: int) -> int:
        """Return the speed at which what comes next is as many requests a second as the machine can take."""
        first = bisect_left(self._arrivals_us, now_us)
        count = bisect_left(self._arrivals_us, now_us + self._ahead_us) - first
        if not count:
            return self._full
        return max(self._slowest, min(self._full, int(self._per_s * self._ahead_us / (count * MICROSECONDS))))

    def _set(self, speed: int) -> int | None:
        """Take a speed, but for a small step up or down: each costs the ledger a change of its clock."""
        is_small = self.speed / _STEP < speed < self.speed * _STEP
        if speed == self.speed or (is_small and speed not in (self._full, self._slowest)):
            return None
        self.speed = speed
        return speed
