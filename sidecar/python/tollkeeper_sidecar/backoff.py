"""How long to wait before connecting again."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random


@dataclass(slots=True)
class Backoff:
    """Doubles from `first_s` to `most_s`; each wait is drawn from half to one and a half of it."""

    first_s: float = 0.05
    most_s: float = 1.0
    random: Random = field(default_factory=Random)
    _next_s: float = field(init=False, default=0.0)

    def reset(self) -> None:
        """Begin anew after a success."""
        self._next_s = 0.0

    def next_s(self) -> float:
        """Return the next wait in seconds."""
        self._next_s = min(self.most_s, max(self.first_s, self._next_s * 2))
        return self._next_s * self.random.uniform(0.5, 1.5)
