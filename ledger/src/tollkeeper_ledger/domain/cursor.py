"""Find or open the window of an identity. Pure: the cursor's row is locked by the caller.

A cursor knows the two newest windows, because a holder may lease the next one before the present one has ended. Windows
of one identity never overlap: after a change of the rule the new window begins where the old one ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.windows import Span

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Place:
    """A window's name and span."""

    window_id: bytes
    span: Span


@dataclass(slots=True)
class Cursor:
    """What is known of an identity's windows. Nothing at or before `floor_us` is ever opened again."""

    newer: Place
    older: Place | None = None
    floor_us: int = 0
    generation_n: int = 0
    changed: bool = False

    def find(self, at_us: int) -> Place | None:
        """Give the known window that holds `at_us`."""
        if self.newer.span.holds(at_us):
            return self.newer
        if self.older is not None and self.older.span.holds(at_us):
            return self.older
        return None

    def replace(self, window_id: bytes, by: bytes) -> Place:
        """Put another window in the place of a known one, with the same span: the next round, or the next timeline.

        Raises ValueError where `window_id` is not one of the two that are known.
        """
        self.changed = True
        if self.newer.window_id == window_id:
            self.newer = Place(window_id=by, span=self.newer.span)
            return self.newer
        if self.older is not None and self.older.window_id == window_id:
            self.older = Place(window_id=by, span=self.older.span)
            return self.older
        raise ValueError(f"window {window_id.hex()} is not one of this identity's newest two")

    def open(self, at_us: int, span: Span, name: Callable[[Span], bytes]) -> Place | None:
        """Open the window `span`, which holds `at_us`, cut where known windows begin or end.

        Gives None where that time is over for good, or lies before both windows that are known.
        """
        known = [place for place in (self.older, self.newer) if place is not None]
        start_us, end_us = max(span.start_us, self.floor_us), span.end_us
        for place in known:
            if place.span.end_us <= at_us:
                start_us = max(start_us, place.span.end_us)
            else:
                end_us = min(end_us, place.span.start_us)
        if at_us < self.floor_us or (len(known) == 2 and at_us < known[0].span.start_us):  # noqa: PLR2004 - both
            return None
        cut = Span(start_us, end_us)
        opened = Place(window_id=name(cut), span=cut)
        places = sorted([*known, opened], key=lambda place: place.span.start_us)
        for dropped in places[:-2]:
            self.floor_us = max(self.floor_us, dropped.span.end_us)
        self.older, self.newer = places[-2], places[-1]
        self.changed = True
        return opened
