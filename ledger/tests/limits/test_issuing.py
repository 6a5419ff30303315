"""What a set-back Postgres and a jumped clock forbid, and what they do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.issuing import (
    AHEAD_US_MAX,
    CLOCK_JUMP_US_MAX,
    Issuing,
    Witness,
    clock_jump_us,
    frozen_before_us,
    slack_us,
    witness_from,
)
from tollkeeper_ledger.domain.windows import Span

HERE, ELSEWHERE = b"h" * 16, b"e" * 16
HOUR_US = 3_600_000_000

timelines = st.integers(1, 2**21 - 1)
numbers = st.integers(1, 2**53 - 1)
values = st.binary(min_size=16, max_size=16)


@given(st.integers(0, 2**50), st.integers(0, 1_000_000))
def test_all_that_may_have_been_leased_is_frozen(now_us: int, speed_milli: int) -> None:
    """A restore freezes every window that an ask may have opened early, however fast the ledger's clock runs."""
    assert frozen_before_us(now_us, speed_milli) > now_us + AHEAD_US_MAX + slack_us(speed_milli)


@given(timelines, numbers, values)
def test_a_shown_witness_is_read_as_it_was(timeline: int, number: int, value: bytes) -> None:
    """What a sidecar shows back is the witness that was committed."""
    witness = Witness(timeline=timeline, number=number, value=value)
    assert witness_from(HERE, timeline, witness.shown(HERE)) == witness


@given(numbers, numbers, values, values)
def test_later_witnesses_are_greater_byte_by_byte(first: int, second: int, one: bytes, other: bytes) -> None:
    """Sidecars keep the later one without knowing what the bytes mean."""
    shown = [Witness(1, first, one).shown(HERE), Witness(1, second, other).shown(HERE)]
    assert (shown[0] < shown[1]) == ((first, one) < (second, other))


@pytest.mark.parametrize(
    ("timeline", "shown"),
    [
        (1, b""),
        (1, b"short"),
        (1, Witness(1, 5, bytes(range(16))).shown(ELSEWHERE)),
        (0, Witness(0, 5, bytes(16)).shown(HERE)),
        (2**21, Witness(1, 5, bytes(16)).shown(HERE)),
        (1, Witness(1, 0, bytes(16)).shown(HERE)),
        (1, Witness(1, 2**53, bytes(16)).shown(HERE)),
        (1, Witness(1, 5, bytes(17)).shown(HERE)),
    ],
)
def test_what_no_ledger_of_this_installation_made_is_no_witness(timeline: int, shown: bytes) -> None:
    """Lies, other installations and nothing at all never stop issuing."""
    assert witness_from(HERE, timeline, shown) is None


@pytest.mark.parametrize(
    ("start_h", "length_h", "rolling", "refused"),
    [
        (9, 24, False, True),  # began before the restore: may have been open, unknown to Postgres
        (10, 1, False, False),  # begins at the end of the frozen time
        (11, 24, False, False),
        (11, 24, True, True),  # a lost one may have begun an hour before the restore and still run
        (34, 24, True, False),  # every lost one is over by now
    ],
)
def test_a_window_is_opened_only_where_none_can_have_been_lost(
    start_h: int, length_h: int, *, rolling: bool, refused: bool
) -> None:
    """Frozen until 10:00: whatever may overlap a window that Postgres has lost waits for an operator."""
    issuing = Issuing(timeline=2, frozen_before_us=10 * HOUR_US)
    span = Span(start_h * HOUR_US, (start_h + length_h) * HOUR_US)
    assert (issuing.refuses_opening(span, is_rolling=rolling) is not None) == refused


def test_windows_of_this_timeline_are_never_frozen() -> None:
    """Only what an earlier timeline opened is frozen; a window that was reset since goes on."""
    issuing, span = Issuing(timeline=2, frozen_before_us=10 * HOUR_US), Span(0, 24 * HOUR_US)
    assert issuing.refuses_window(span, timeline=2) is None
    assert issuing.refuses_window(span, timeline=1) is not None
    assert Issuing(timeline=2).refuses_window(span, timeline=1) is None


@given(st.integers(-(10**15), 10**15), st.integers(0, 1_000_000))
def test_only_a_forward_jump_beyond_five_minutes_counts(drift_us: int, speed_milli: int) -> None:
    """Backward steps and drift are no jump; a scaled clock may be off by as much more as it is faster."""
    bound_us = CLOCK_JUMP_US_MAX * max(1000, speed_milli) // 1000
    found = clock_jump_us(expected_us=10**16, read_us=10**16 + drift_us, speed_milli=speed_milli)
    assert found == (drift_us if drift_us > bound_us else 0)
