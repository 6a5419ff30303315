"""Guess whether the ids of an append are free, by what appends met lately. Pure."""

from __future__ import annotations

from dataclasses import dataclass

RECORDS_MIN = 100
"""Records from which on a guess is worth the savepoint that it needs."""

PAUSE_MAX = 64
"""Appends at most that ask before the next guess."""


@dataclass(slots=True)
class Guesses:
    """Say of an append whether to claim its ids as if all were free. Any answer is right; a wrong one costs time.

    A producer that sends anew, or a caller that repeats its ids, makes a guess wrong. Each append that met a taken id
    makes the next ones ask, twice as many each time; one that rightly guessed makes an end of that.
    """

    _pause: int = 1
    """Appends that ask after the next taken id."""
    _asking: int = 0
    """Appends that still ask."""

    def all_free(self, count: int) -> bool:
        """Guess for an append of `count` records."""
        if count < RECORDS_MIN:
            return False
        if self._asking:
            self._asking -= 1
            return False
        return True

    def learn(self, *, guessed: bool, met_taken: bool) -> None:
        """Take in what an append met, and whether it had guessed that all ids were free."""
        if met_taken:
            self._asking = self._pause
            self._pause = min(2 * self._pause, PAUSE_MAX)
        elif guessed:
            self._pause = 1
