"""Pools that are lost one after the other."""

from __future__ import annotations

from tollkeeper_ledger.domain.window_state import Ask, Generation, PoolFault
from tollkeeper_ledger.services.openings import PAUSE_S, Openings

WINDOW = b"w" * 16


class Own:
    """A process's own time, set by the test."""

    now_s = 100.0

    def __call__(self) -> float:
        """Tell it."""
        return self.now_s


def ask(fault: PoolFault | None = PoolFault.NO_POOL, *, seen: int = 7) -> Ask:
    """Give an ask of somebody who met this fault at that generation."""
    return Ask(holder=b"h" * 16, request_seq=1, need=1, want=1, generation_seen=seen, fault=fault)


def test_a_pool_opened_for_a_lost_one_is_not_followed_by_another_at_once() -> None:
    """Its loss opens none before the pause is over, whoever tells of it; another window's does."""
    own = Own()
    openings = Openings(own)
    openings.note(WINDOW)
    own.now_s += PAUSE_S - 0.001
    assert openings.are_paused(WINDOW, Generation(7), ask())
    assert openings.are_paused(WINDOW, Generation(7, lost=True), ask(None, seen=0))
    assert not openings.are_paused(b"x" * 16, Generation(7), ask())
    own.now_s += 0.001
    assert not openings.are_paused(WINDOW, Generation(7), ask())


def test_a_pool_that_nobody_misses_is_served_from() -> None:
    """Asks that tell of no loss, of an older one, or of a Redis that is away are answered as ever."""
    openings = Openings(Own())
    openings.note(WINDOW)
    assert not openings.are_paused(WINDOW, Generation(7), ask(None))
    assert not openings.are_paused(WINDOW, Generation(7), ask(seen=6))
    assert not openings.are_paused(WINDOW, Generation(7), ask(PoolFault.UNREACHABLE))
    assert not openings.are_paused(WINDOW, None, ask(None, seen=0))


def test_what_is_past_is_forgotten() -> None:
    """Memory holds the windows of one pause, however many lose their pools."""
    own = Own()
    openings = Openings(own)
    for number in range(1_000):
        own.now_s += 1
        openings.note(number.to_bytes(16, "big"))
    assert len(openings._opened) <= PAUSE_S + 1
