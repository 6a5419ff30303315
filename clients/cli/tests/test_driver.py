"""Driving a recording."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tollkeeper_cli.errors import UnreachableError
from tollkeeper_cli.replay.driver import Driver, Reserved, RetryableError, RetryPolicy, Settled
from tollkeeper_cli.replay.model import ReplayRequest
from tollkeeper_cli.replay.pace import RunningPace, SteppingPace, shift_to_present
from tollkeeper_cli.replay.users import ZipfUsers

QUICK = RetryPolicy(first_s=0.0, longest_s=0.0)


def request(number: int, *, at_us: int = 0, duration_us: int = 0, tenant: str = "code") -> ReplayRequest:
    """Make a request."""
    return ReplayRequest(
        number=number,
        request_id=f"r/{number}",
        tenant=tenant,
        at_us=at_us,
        duration_us=duration_us,
        reserve={"tokens": 10},
        settle={"tokens": number},
    )


class FlakySidecar:
    """Loses answers before and after doing what was asked, and keeps to ids as a sidecar does."""

    def __init__(self, *, seed: int, failure_share: float, deny_above: int = 10**9) -> None:
        self._random = random.Random(seed)
        self._failure_share = failure_share
        self._deny_above = deny_above
        self.tokens: dict[str, str] = {}
        self.records: Counter[str] = Counter()
        self.settled: set[str] = set()
        self.calls: list[str] = []

    def _fail(self) -> None:
        if self._random.random() < self._failure_share:
            raise RetryableError("gone")

    async def reserve(self, request: ReplayRequest) -> Reserved:
        """Reserve once per id."""
        self.calls.append(f"reserve {request.request_id}")
        self._fail()
        if request.number > self._deny_above:
            return Reserved(reason="QUOTA_EXHAUSTED", limit="tokens-per-minute")
        token = self.tokens.setdefault(request.request_id, f"token-{len(self.tokens)}")
        self._fail()
        return Reserved(token=token)

    async def settle(self, token: str, request: ReplayRequest) -> Settled:
        """Record once per token."""
        self.calls.append(f"settle {request.request_id}")
        self._fail()
        if token not in self.settled:
            self.settled.add(token)
            self.records[token] += request.settle["tokens"]
        self._fail()
        return Settled(record_id=f"r/{token}", refunded={"tokens": 10}, expired=False)


@pytest.mark.parametrize("seed", range(5))
async def test_lost_answers_neither_lose_nor_double(seed: int) -> None:
    """With four of ten answers lost before or after the deed, every request ends once and the counts are exact."""
    sidecar = FlakySidecar(seed=seed, failure_share=0.4, deny_above=150)
    driver = Driver(sidecar, retry=QUICK)
    pace = RunningPace(start_us=0, speed=120)
    tally = await driver.run_timed([request(number) for number in range(1, 201)], pace)
    assert (tally.requests, tally.admitted, tally.denied) == (200, 150, 50)
    assert tally.units("tokens") == sum(range(1, 151)) == sum(sidecar.records.values())
    assert len(set(tally.of("code").record_ids)) == 150
    assert tally.retries > 0
    assert dict(tally.denials()) == {("code", "tokens-per-minute", "QUOTA_EXHAUSTED"): 50}


async def test_gives_up_when_nobody_answers_for_long() -> None:
    """A sidecar that never comes back ends the replay with the request's id and how long it was tried."""
    driver = Driver(
        FlakySidecar(seed=1, failure_share=1.0), retry=RetryPolicy(first_s=0.001, longest_s=0.001, give_up_after_s=0.01)
    )
    with pytest.raises(ExceptionGroup) as caught:
        await driver.run_timed([request(1)], RunningPace(start_us=0, speed=120))
    assert caught.group_contains(UnreachableError, match="request r/1: nobody answered")


async def test_other_errors_end_the_replay_at_once() -> None:
    """What a repeat can't mend is not repeated."""

    class Broken(FlakySidecar):
        async def reserve(self, request: ReplayRequest) -> Reserved:
            self.calls.append("reserve")
            raise ValueError("a bug")

    broken = Broken(seed=1, failure_share=0)
    with pytest.raises(ExceptionGroup):
        await Driver(broken, retry=QUICK).run_timed([request(1)], RunningPace(start_us=0, speed=120))
    assert broken.calls == ["reserve"]


async def test_stepped_replay_follows_the_times_exactly() -> None:
    """The clock is set before each arrival, and a settlement comes before the arrivals after its end."""
    sidecar = FlakySidecar(seed=1, failure_share=0)
    steps: list[int] = []

    async def set_clock(at_us: int) -> None:
        sidecar.calls.append(f"clock {at_us}")
        steps.append(at_us)

    requests = [request(1, at_us=10, duration_us=25), request(2, at_us=20, duration_us=5), request(3, at_us=30)]
    await Driver(sidecar, retry=QUICK).run_stepped(requests, SteppingPace(set_clock=set_clock))
    assert sidecar.calls == [
        "clock 10", "reserve r/1", "clock 20", "reserve r/2", "settle r/2", "clock 30", "reserve r/3",
        "clock 30", "settle r/3", "clock 35", "settle r/1",
    ]  # fmt: skip
    assert steps == sorted(steps)


async def test_running_pace_tells_how_late_it_is() -> None:
    """Lateness is real time, whatever the speed."""
    now_s = 100.0
    pace = RunningPace(start_us=1_000_000, speed=60, started_s=90.0, monotonic=lambda: now_s)
    assert pace.now_us() == 601_000_000
    assert await pace.reach(541_000_000) == 1_000_000
    assert await pace.reach(601_000_000) == 0


@pytest.mark.parametrize(
    ("first_us", "now_us", "expected_h"),
    [(100, 50, 0), (100, 100, 0), (100, 101, 1), (100, 3_600_000_100, 1), (100, 3_600_000_101, 2)],
)
def test_shift_is_the_least_whole_hours_that_avoid_the_past(first_us: int, now_us: int, expected_h: int) -> None:
    """The recording is never before the present, and not an hour later than need be."""
    shift_us = shift_to_present(first_us, now_us)
    assert shift_us == expected_h * 3_600_000_000
    assert first_us + shift_us >= min(now_us, first_us + shift_us)


def test_zipf_users_are_seeded_and_skewed() -> None:
    """The most active user asks about k times as often as the k-th, and the same seed gives the same users."""
    users = ZipfUsers(seed="s", count=200, exponent=1.0)
    drawn = [users.draw() for _ in range(20_000)]
    again = ZipfUsers(seed="s", count=200, exponent=1.0)
    assert drawn == [again.draw() for _ in range(20_000)]
    counts = Counter(drawn)
    assert counts.most_common(1)[0][0] == "user-001"
    assert 8 < counts["user-001"] / counts["user-010"] < 13
    assert all(1 <= int(name.removeprefix("user-")) <= 200 for name in counts)


async def test_pace_follows_a_change_of_speed() -> None:
    """Who waits while the clock is slowed doesn't wake before the clock shows the time."""
    clock_s = [0.0]

    def monotonic() -> float:
        clock_s[0] += 0.01
        return clock_s[0]

    pace = RunningPace(start_us=0, speed=1_000, monotonic=monotonic)
    pace.restart(start_us=5_000_000, speed=10, started_s=clock_s[0])
    assert await pace.reach(5_300_000) == 0
    assert pace.now_us() >= 5_300_000
