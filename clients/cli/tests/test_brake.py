"""How fast a recording is replayed on a machine that is busy."""

from __future__ import annotations

import bisect
import random

import pytest
from tollkeeper_cli.replay.brake import INTERVAL_S, Brake
from tollkeeper_cli.replay.model import MICROSECONDS as US

SLOWEST = 2
EVEN = [at * 100_000 for at in range(36_000)]
"""Ten requests a second of the recording, for an hour."""
QUICK_S, SLOW, STALLED = [0.005] * 9, [0.05] * 9, [0.2] * 9


def test_a_replay_begins_slowly_and_comes_to_full_speed() -> None:
    """While everything is asked for the first time the clock runs at a sixtieth; within seconds it is at full speed.

    That beginning is not told as slower than asked for.
    """
    brake = Brake(120, EVEN)
    assert (brake.speed, brake.is_on) == (SLOWEST, False)
    speeds = [brake.decide(QUICK_S, 0, now_us=0) for _ in range(30)]
    assert speeds.index(120) < 25
    assert not brake.is_on
    assert {brake.decide(QUICK_S, 0, now_us=0) for _ in range(20)} == {None}


@pytest.mark.parametrize("full", [1, 8, 120])
def test_the_speed_stays_between_a_sixtieth_and_full(full: int) -> None:
    """However slow it is, and whatever comes; where nothing comes, the clock needn't be slow."""
    brake = Brake(full, EVEN)
    for taken_s in (SLOW, STALLED, QUICK_S, [], STALLED):
        for _ in range(50):
            brake.decide(taken_s, 0, now_us=0)
            assert max(1, full // 60) <= brake.speed <= full
    assert brake.is_on == (brake.speed < full)
    assert Brake(full, []).decide([], 0, now_us=0) in {full, None}


def test_one_stall_is_enough_for_a_sixtieth() -> None:
    """Who waits as long as calls wait at most is denied for the machine's sake: nobody is sent into that on purpose."""
    brake = Brake(120, EVEN)
    for _ in range(40):
        brake.decide(QUICK_S, 0, now_us=0)
    assert brake.decide(STALLED, 0, now_us=0) == SLOWEST
    assert brake.decide(STALLED, 0, now_us=0) is None


def test_requests_that_are_sent_late_are_too_many_as_well() -> None:
    """A client that can't send in time is as busy as a sidecar that can't answer, though no answer was slow."""
    brake = Brake(120, EVEN)
    for _ in range(40):
        brake.decide(QUICK_S, 0, now_us=0)
    slower = brake.decide(QUICK_S, 200_000, now_us=0)
    assert slower is not None
    assert SLOWEST < slower < 120


def test_a_burst_is_gone_into_slowly() -> None:
    """What the machine took before it is asked for again, no more: the recording says that more would come."""
    quiet = range(0, 3_000 * US, US // 10)
    brake = Brake(120, [*quiet, *range(3_000 * US, 3_600 * US, US // 100)])
    brake.decide(SLOW * 20, 0, now_us=0)
    while brake.speed < 120:
        brake.decide(QUICK_S, 0, now_us=0)
    slower = brake.decide(QUICK_S, 0, now_us=3_000 * US)
    assert slower is not None
    assert SLOWEST < slower < 30


@pytest.mark.parametrize(("per_s", "waiting_max"), [(150, 0.05), (400, 0.025), (1_500, 0.005)])
@pytest.mark.parametrize("seed", range(3))
def test_a_machine_that_takes_so_many_is_asked_for_hardly_more(per_s: int, waiting_max: float, seed: int) -> None:
    """Of a recording in bursts few requests wait as long as calls wait at most, and it takes at most 2.6 times as long.

    The machine is a queue that takes so many a second, and for a second in ten only a third of it.
    """
    randoms = random.Random(seed)
    arrivals, at_us = [], 0
    while at_us < 1_200 * US:
        burst = randoms.choice([2, 5, 20])
        end_us = at_us + 30 * US
        while at_us < end_us:
            at_us += max(1, int(randoms.expovariate(burst) * US))
            arrivals.append(at_us)
    brake, now_us, real_s, queue, waited = Brake(120, arrivals), 0.0, 0.0, 0.0, 0
    while now_us < arrivals[-1]:
        taken_s: list[float] = []
        for _ in range(15):
            step_s = INTERVAL_S / 15
            until_us = now_us + brake.speed * step_s * US
            come = bisect.bisect_left(arrivals, until_us) - bisect.bisect_left(arrivals, now_us)
            can = per_s * (1 if real_s % 10 < 9 else 1 / 3)
            waited += come * (queue / can > 0.25)
            taken_s += [0.004 + queue / can] * come
            queue = max(0.0, queue + come - can * step_s)
            now_us, real_s = until_us, real_s + step_s
        brake.decide(taken_s, 0, now_us=round(now_us))
    assert waited < len(arrivals) * waiting_max
    assert real_s < 2.6 * max(len(arrivals) / per_s, 1_200 / 120)
