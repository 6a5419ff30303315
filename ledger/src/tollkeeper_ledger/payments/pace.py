"""Keep a process's requests to the provider below what it takes, and slow down when it says that they were too many.

Source: additive increase, multiplicative decrease (Chiu and Jain, 1989).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SLOWED_AT_MOST_EVERY_S = 1.0
"""One burst of refusals slows down once."""
WAIT_S_MAX = 30.0
"""Nobody waits longer than this because another request was refused; below a job's lease."""

_SLOWEST = 20
_STEPS_BACK = 100


@dataclass(slots=True)
class Pace:
    """When requests may leave: evenly, `per_s_max` of them a second at most. Times are seconds of one steady clock."""

    per_s_max: float
    per_s: float
    next_at: float = 0.0
    slowed_at: float = float("-inf")

    @classmethod
    def of(cls, per_s_max: float) -> Pace:
        """Give a pace at its fastest."""
        return cls(per_s_max=per_s_max, per_s=per_s_max)

    def leave_at(self, now: float) -> float:
        """Take the next place and give when it is."""
        at = max(now, self.next_at)
        self.next_at = at + 1 / self.per_s
        return at

    def was_taken(self) -> None:
        """Note an answer that was no refusal: a hundred of them make up for the slowest pace."""
        self.per_s = min(self.per_s_max, self.per_s + self.per_s_max / _STEPS_BACK)

    def was_too_many(self, now: float, *, wait_s: float = 0.0) -> None:
        """Note a refusal: half as fast from here on, and no place is given for `wait_s`.

        It is never less than a twentieth of the fastest.
        """
        if now - self.slowed_at >= SLOWED_AT_MOST_EVERY_S:
            self.per_s = max(self.per_s / 2, self.per_s_max / _SLOWEST)
            self.slowed_at = now
        self.next_at = max(self.next_at, now + min(wait_s, WAIT_S_MAX))


@dataclass(slots=True)
class Gate:
    """Lets requests out at a pace, in the order in which they came."""

    pace: Pace
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def wait(self) -> None:
        """Wait until the next request may leave."""
        now = self.now()
        at = self.pace.leave_at(now)
        if at > now:
            await self.sleep(at - now)
