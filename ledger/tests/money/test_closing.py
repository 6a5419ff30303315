"""When a period may close."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tollkeeper_ledger.domain.closing import HOLD_MAX, ProducerState, grace_of, judge

END = datetime(2023, 11, 16, 19, 15, tzinfo=UTC)
GRACE = timedelta(minutes=5)
SOON = timedelta(seconds=1)


def producer(state: str = "open", watermark: timedelta | None = None, silent: timedelta = SOON) -> ProducerState:
    """Give a producer whose watermark is so far after the end."""
    mark = None if watermark is None else END + watermark
    return ProducerState(producer="p", state=state, watermark=mark, silent_for=silent)


@pytest.mark.parametrize(
    ("after_end", "producers", "may_close", "held", "ignored"),
    [
        (GRACE - SOON, [], False, 0, 0),
        (GRACE, [], True, 0, 0),
        (GRACE, [producer(watermark=timedelta(0))], True, 0, 0),
        (GRACE, [producer(watermark=-SOON)], False, 1, 0),
        (GRACE, [producer()], False, 1, 0),
        (GRACE, [producer("closed", -SOON)], True, 0, 0),
        (GRACE, [producer("lost", -SOON)], True, 0, 1),
        (GRACE, [producer(watermark=-SOON, silent=timedelta(minutes=10))], True, 0, 1),
        (GRACE, [producer("lost"), producer(watermark=-SOON)], False, 1, 1),
        (HOLD_MAX - SOON, [producer(watermark=-SOON)], False, 1, 0),
        (HOLD_MAX, [producer(watermark=-SOON)], True, 0, 1),
    ],
)
def test_the_verdict(
    after_end: timedelta,
    producers: list[ProducerState],
    may_close: bool,  # noqa: FBT001 - an expected value
    held: int,
    ignored: int,
) -> None:
    """Grace first, then the watermarks of living producers, and never later than six hours after the end."""
    verdict = judge(period_end=END, grace=GRACE, now=END + after_end, producers=producers)
    assert (may_close, held, ignored) == (verdict.may_close, len(verdict.held_by), len(verdict.not_waited_for))


def test_a_grace_longer_than_the_hold_is_kept() -> None:
    """Nobody closes before the grace is over, however long it is."""
    verdict = judge(period_end=END, grace=timedelta(days=2), now=END + timedelta(days=1), producers=[])
    assert not verdict.may_close


def test_graces_are_read_from_definitions() -> None:
    """A plan version's grace has a unit and a count."""
    assert timedelta(hours=2) == grace_of({"grace": {"unit": "hour", "count": 2}})
