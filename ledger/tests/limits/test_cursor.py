"""An identity's windows never overlap, and no window is ever opened a second time."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.cursor import Cursor, Place
from tollkeeper_ledger.domain.windows import Span


def aligned(at_us: int, length_us: int) -> Span:
    """Give the window of this length that holds an instant."""
    return Span(at_us // length_us * length_us, at_us // length_us * length_us + length_us)


@given(
    asks=st.lists(st.tuples(st.integers(0, 500), st.sampled_from([7, 10, 60])), min_size=1, max_size=40),
)
def test_whatever_is_asked_in_whatever_order_windows_never_overlap(asks: list[tuple[int, int]]) -> None:
    """Asks jump back and forth and the rule's length changes: each instant is ever held by one window only."""
    names = itertools.count()
    first_at, first_length = asks[0]
    cursor = Cursor(newer=Place(b"first", aligned(first_at, first_length)))
    opened = [cursor.newer]
    for at_us, length_us in asks:
        place = cursor.find(at_us)
        if place is None:
            place = cursor.open(at_us, aligned(at_us, length_us), lambda _: str(next(names)).encode())
            if place is not None:
                opened.append(place)
        if place is not None:
            assert place.span.holds(at_us)
    spans = sorted((place.span.start_us, place.span.end_us) for place in opened)
    for (_, end_us), (start_us, _) in itertools.pairwise(spans):
        assert end_us <= start_us
    assert len({place.window_id for place in opened}) == len(opened)


def test_after_a_change_of_length_the_new_window_begins_where_the_old_ends() -> None:
    """Length changes at the next turn; the amount of the old window is not given again for the same time."""
    cursor = Cursor(newer=Place(b"hour", Span(0, 3600)))
    assert cursor.find(1000) == Place(b"hour", Span(0, 3600))
    assert cursor.open(4000, Span(0, 86_400), lambda _: b"day") == Place(b"day", Span(3600, 86_400))


def test_a_window_that_was_dropped_is_over_for_good() -> None:
    """Two windows are kept; what lies before them can't be opened again."""
    cursor = Cursor(newer=Place(b"a", Span(0, 10)))
    cursor.open(15, Span(10, 20), lambda _: b"b")
    cursor.open(25, Span(20, 30), lambda _: b"c")
    assert cursor.floor_us == 10
    assert cursor.find(5) is None
    assert cursor.open(5, Span(0, 10), lambda _: b"again") is None
