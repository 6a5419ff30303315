"""Open no pool after pool while nobody agrees which Redis is the primary."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.window_state import PoolFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from tollkeeper_ledger.domain.window_state import Ask, Generation

PAUSE_S = 3.0
"""A pool that was opened here for a lost one is followed by no other one for so long: the ledger leases meanwhile."""


class Openings:
    """Remember which windows' pools this replica opened a moment ago for lost ones.

    In a failover the ledger and sidecars speak to different servers for a second or two. Each sidecar that misses a
    pool would have the next one opened where it can't see it either, and every one of them strands what it was given.
    """

    def __init__(self, own_time_s: Callable[[], float]) -> None:
        self._own_time_s = own_time_s
        self._opened: OrderedDict[bytes, float] = OrderedDict()

    def note(self, window_id: bytes) -> None:
        """Note that a pool of this window is opened now in place of a lost one. Forgets those that are past."""
        now_s = self._own_time_s()
        self._opened[window_id] = now_s
        self._opened.move_to_end(window_id)
        while self._opened and next(iter(self._opened.values())) + PAUSE_S <= now_s:
            self._opened.popitem(last=False)

    def are_paused(self, window_id: bytes, newest: Generation | None, ask: Ask) -> bool:
        """Tell whether an answer to this ask should be a lease, because its pool was opened just now and is lost."""
        if newest is None:
            return False
        is_told = ask.fault not in (None, PoolFault.UNREACHABLE) and ask.generation_seen == newest.number
        if not (newest.lost or is_told):
            return False
        opened_s = self._opened.get(window_id)
        return opened_s is not None and self._own_time_s() < opened_s + PAUSE_S
