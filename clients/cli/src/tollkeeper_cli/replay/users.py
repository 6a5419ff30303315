"""Give requests users: few ask often, many ask seldom."""

from __future__ import annotations

import itertools
import random
from bisect import bisect_left


class ZipfUsers:
    """Draws users so that the k-th most active asks in proportion to 1 / k^exponent.

    The same seed gives the same users in the same order.
    """

    def __init__(self, *, seed: str, count: int, exponent: float = 1.1) -> None:
        if count < 1:
            raise ValueError(f"count is {count}, at least 1 user is needed")
        weights = [1.0 / rank**exponent for rank in range(1, count + 1)]
        total = sum(weights)
        self._shares = [share / total for share in itertools.accumulate(weights)]
        self._random = random.Random(seed)  # noqa: S311 - a workload, not a secret
        self._width = len(str(count))

    def draw(self) -> str:
        """Return the next user, for example `user-007`."""
        rank = min(bisect_left(self._shares, self._random.random()), len(self._shares) - 1) + 1
        return f"user-{rank:0{self._width}d}"
