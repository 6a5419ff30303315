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
_LATE_US = 100_000
_QUICK_INTERVALS_TO_RELEASE = 8
_FRACTION_MIN = 16


class Brake:
    """Decides the speed from how long reservations took in the last interval. Pure."""

    def __init__(self, speed: int) -> None:
        self._full = self._speed = speed
        self._quick_intervals = 0
        self._was_slow = False

    @property
    def is_on(self) -> bool:
        """Tell whether the replay is slower than it should be."""
        return self._speed < self._full

    def decide(self, taken_s: Sequence[float], late_us: int) -> int | None:
        """Return the new speed, or nothing where it stays.

        Halves it after two slow intervals in a row, down to a sixteenth; doubles it after two quick seconds.
        """
        typical_s = median(taken_s) if taken_s else 0.0
        is_slow = typical_s > _SLOW_S or late_us > _LATE_US
        is_second, self._was_slow = is_slow and self._was_slow, is_slow
        self._quick_intervals = self._quick_intervals + 1 if typical_s < _QUICK_S and not is_slow else 0
        if is_second and self._speed > max(1, self._full // _FRACTION_MIN):
            return self._set(max(1, self._speed // 2))
        if self.is_on and self._quick_intervals >= _QUICK_INTERVALS_TO_RELEASE:
            return self._set(min(self._full, self._speed * 2))
        return None

    def _set(self, speed: int) -> int:
        self._speed = speed
        self._quick_intervals = 0
        self._was_slow = False
        return speed
