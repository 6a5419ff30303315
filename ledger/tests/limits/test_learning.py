"""What the ledger takes to be out of a window after a restore, by what holders say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.issuing import Issuing, learning_until_us
from tollkeeper_ledger.domain.learning import Told, has_open_pool, learned_out
from tollkeeper_ledger.domain.windows import Span

SPAN = Span(1_000, 2_000)
WINDOW = bytes(16)

units = st.integers(0, 1_000)


@st.composite
def said(draw: st.DrawFn) -> Told:
    """Give what some holder may say of some source, true or not."""
    total = draw(units)
    return Told(
        timeline=2,
        window_id=draw(st.sampled_from([WINDOW, b"o" * 16])),
        start_us=SPAN.start_us,
        end_us=SPAN.end_us,
        holder=draw(st.sampled_from([b"a" * 16, b"b" * 16])),
        generation=draw(st.integers(0, 2)),
        units=draw(units),
        total=total,
        allotted=draw(units),
        unspent=draw(st.none() | st.integers(0, total)),
    )


@given(st.lists(said(), max_size=8))
def test_at_least_what_holders_have_is_out(told: list[Told]) -> None:
    """Whatever pools are said to have left: admitted <= limit + what silent holders have rests on this sum."""
    assert learned_out(told) >= sum(one.units for one in told)


@given(st.lists(said(), max_size=8), said())
def test_more_that_is_said_never_frees_units(told: list[Told], more: Told) -> None:
    """Whoever speaks later raises the figure or leaves it, as long as it says nothing of what a pool never gave."""
    later = Told(
        more.timeline, more.window_id, SPAN.start_us, SPAN.end_us, b"late" * 4, 0, more.units, 0, more.allotted
    )
    assert learned_out([*told, later]) >= learned_out(told)


def test_pools_count_whole_but_for_what_they_never_gave() -> None:
    """10 from the ledger; of 100 that went into a pool 25 were never given, whoever holds the others."""
    ledger = Told(2, WINDOW, 1_000, 2_000, b"a" * 16, 0, 10)
    pool = Told(2, WINDOW, 1_000, 2_000, b"b" * 16, 7, 30, total=100)
    closed = Told(2, WINDOW, 1_000, 2_000, b"b" * 16, 7, 30, total=100, unspent=25)
    assert [learned_out([ledger, pool]), learned_out([ledger, closed])] == [110, 85]
    assert [has_open_pool([ledger, pool]), has_open_pool([ledger, closed])] == [True, False]


def test_what_had_left_the_limit_is_out_whoever_has_it() -> None:
    """One holder heard that 400 units had left: so many are out, although it has 10 of them."""
    assert learned_out([Told(2, WINDOW, 1_000, 2_000, b"a" * 16, 0, 10, allotted=400)]) == 400


def test_a_window_that_learns_waits_for_its_holders_and_for_no_operator() -> None:
    """Refused until their time is over, and while the clock's time is in doubt; one that freezes stays refused."""
    issuing = Issuing(timeline=2, frozen_before_us=5_000, learning_until_us=3_000)
    held = Issuing(timeline=2, frozen_before_us=5_000, learning_until_us=3_000, is_held=True)
    assert issuing.refuses_window(SPAN, timeline=1, learned_at_us=2_999) is not None
    assert issuing.refuses_window(SPAN, timeline=1, learned_at_us=3_000) is None
    assert issuing.refuses_window(SPAN, timeline=1) is not None
    assert held.refuses_window(SPAN, timeline=1, learned_at_us=3_000) is not None
    assert issuing.refuses_opening(SPAN, is_rolling=True, learned_at_us=2_999) is not None
    assert issuing.refuses_opening(SPAN, is_rolling=True, learned_at_us=3_000) is None
    assert issuing.refuses_opening(SPAN, is_rolling=False) is not None


@given(st.integers(0, 2**50), st.integers(0, 1_000_000), st.integers(5, 3600))
def test_holders_have_their_time_however_fast_the_clock_runs(now_us: int, speed_milli: int, learning_s: int) -> None:
    """So many real seconds at least pass in which they can speak."""
    elapsed_us = learning_until_us(now_us, speed_milli, learning_s=learning_s) - now_us
    assert elapsed_us * 1_000 >= learning_s * 1_000_000 * speed_milli
