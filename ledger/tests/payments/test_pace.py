# ruff: noqa: SIM300 - expected first, then actual
"""Requests leave as fast as the provider takes them, slower once it refuses some, and as fast again later."""

from __future__ import annotations

import asyncio

import pytest
from tollkeeper_ledger.payments.pace import WAIT_S_MAX, Gate, Pace
from tollkeeper_ledger.payments.wire import Reply, is_too_many


def leave(pace: Pace, *, from_s: float, until_s: float) -> int:
    """Count the requests of somebody who always has another one, which are all taken."""
    now, count = from_s, 0
    while (now := pace.leave_at(now)) < until_s:
        pace.was_taken()
        count += 1
    return count


@pytest.mark.parametrize("per_s", [1, 20, 80, 10_000])
def test_no_second_has_more_than_is_taken(per_s: int) -> None:
    """Whoever asks without a pause gets just the rate; time in which nobody asked is not made up for."""
    pace = Pace.of(per_s)
    assert leave(pace, from_s=0.0, until_s=1.0) in (per_s, per_s + 1)
    assert leave(pace, from_s=100.0, until_s=101.0) in (per_s, per_s + 1)


def test_a_refusal_halves_the_pace_once_a_second() -> None:
    """However many requests of one burst are refused; never below a twentieth, so that something goes on."""
    pace = Pace.of(80)
    for _ in range(50):
        pace.was_too_many(10.0)
    assert 40 == pace.per_s
    for second in range(11, 20):
        pace.was_too_many(float(second))
    assert 4 == pace.per_s


def test_what_is_taken_makes_it_fast_again() -> None:
    """A hundred answers are enough, and it is never faster than it was allowed to be."""
    pace = Pace.of(80)
    for second in range(9):
        pace.was_too_many(float(second))
    assert 4 == pace.per_s
    for _ in range(100):
        pace.was_taken()
    assert 80 == pace.per_s


def test_nothing_leaves_while_the_provider_said_to_wait() -> None:
    """For as long as it said, but never so long that a job's lease ends."""
    pace = Pace.of(80)
    pace.was_too_many(10.0, wait_s=7)
    assert 17.0 == pace.leave_at(10.5)
    pace.was_too_many(20.0, wait_s=86_400)
    assert 20.0 + WAIT_S_MAX == pace.leave_at(20.5)


def test_those_who_wait_go_in_their_order() -> None:
    """Twenty that come at once leave one after the other, a place apart."""
    left: list[tuple[int, float]] = []

    async def wait(gate: Gate, number: int) -> None:
        await gate.wait()
        left.append((number, slept[-1] if slept else 0.0))

    slept: list[float] = []

    async def sleep(span_s: float) -> None:
        slept.append(span_s)
        await asyncio.sleep(0)

    async def all_of_them() -> None:
        gate = Gate(Pace.of(20), now=lambda: 5.0, sleep=sleep)
        await asyncio.gather(*(wait(gate, number) for number in range(20)))

    asyncio.run(all_of_them())
    assert [*range(20)] == [number for number, _ in left]
    assert [pytest.approx(place / 20) for place in range(1, 20)] == slept


@pytest.mark.parametrize(
    ("status", "body", "is_meant"),
    [
        (429, b'{"error": {"type": "invalid_request_error", "code": "rate_limit"}}', True),
        (429, b"busy", True),
        (429, b'{"error": {"code": "lock_timeout"}}', False),
        (409, b'{"error": {"code": "idempotency_key_in_use"}}', False),
        (200, b"{}", False),
    ],
)
def test_only_too_many_requests_slow_down(status: int, body: bytes, *, is_meant: bool) -> None:
    """An object that somebody else has locked says nothing of how many requests there are."""
    assert is_meant == is_too_many(Reply(status=status, body=body))
