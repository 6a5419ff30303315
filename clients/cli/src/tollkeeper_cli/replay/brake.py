"""Slow a replay down where the machine can't keep up, so that what is replayed behaves as in life.

At 120 times real time a check that takes 100 ms holds its reservation for 12 s, and a minute has 500 ms in which leases
must arrive: on a busy machine that would measure the machine, not the limits.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERVAL_S = 0.25
_SLOW_S = 0.04
_QUICK_S = 0.015
# As long as a call waits at most: who is asked later than that is denied for the machine's sake.
_STALLED_S = 0.1
_LATE_US = 100_000
_INTERVALS_TO_RELEASE = 8
_INTERVALS_TO_WARM = 4
_FRACTION_MIN = 16
# Everything is asked for the first time at once: connections, code, windows, leases.
_FRACTION_COLD = 8


class Brake:
    """Decides the speed from how long reservations took in the last interval. Pure.

    Begins at an eighth and doubles it after each second that is not slow.
    """

    def __init__(self, speed: int) -> None:
        self._full = speed
        self.speed = max(1, speed // _FRACTION_COLD)
        """The speed that was decided last."""
        self._is_warm = self.speed == speed
        self._good_intervals = 0
        self._was_slow = False

    @property
    def is_on(self) -> bool:
        """Tell whether the replay is slower than it should be, its beginning apart."""
        return self._is_warm and self.speed < self._full

    def decide(self, taken_s: Sequence[float], late_us: int) -> int | None:
        """Return the new speed, or nothing where it stays.

        Halves it after two slow intervals in a row, down to a sixteenth, which one stall is enough for; doubles it
        after two quick seconds.
        """
        typical_s = median(taken_s) if taken_s else 0.0
        is_slow = typical_s > _SLOW_S or late_us > _LATE_US
        is_second, self._was_slow = is_slow and self._was_slow, is_slow
        is_good = not is_slow and (typical_s < _QUICK_S or not self._is_warm)
        self._good_intervals = self._good_intervals + 1 if is_good else 0
        slowest = max(1, self._full // _FRACTION_MIN)
        if typical_s > _STALLED_S:
            return self._set(slowest)
        if is_second:
            return self._set(max(slowest, self.speed // 2))
        if self._good_intervals >= (_INTERVALS_TO_RELEASE if self._is_warm else _INTERVALS_TO_WARM):
            return self._set(min(self._full, self.speed * 2))
        return None

    def _set(self, speed: int) -> int | None:
        if speed == self.speed:
            return None
        self.speed = speed
        self._is_warm = self._is_warm or speed == self._full
        self._good_intervals = 0
        self._was_slow = False
        return speed
