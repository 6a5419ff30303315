"""What comes back to a token bucket, standing shares, and a server's clock that jumps ahead."""

from __future__ import annotations

import itertools
from fractions import Fraction

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import (  # noqa: TID252 - test folders are not packages on the path
    CHANNEL,
    HOLDERS,
    Functions,
)
from .test_buckets import BUCKET, MARKER, MAX, ORIGIN_US, SECOND_US, Bucket  # noqa: TID252 - as above

SHARE_US = 600 * SECOND_US
FORGET_US = 660 * SECOND_US


def take(bucket: Bucket, need: int, *, holder: str = HOLDERS[0]) -> tuple[int, int]:
    """Take and answer what was given and the call's name."""
    reply = bucket.raw(need, holder=holder)
    return int(reply[1]), int(reply[4])


def give(bucket: Bucket, count: int, op: int, *, seq: int = 0, holder: str = HOLDERS[0]) -> list[str]:
    """Give back what the call `op` took."""
    return bucket.calls.call(
        "bucket_give", [MARKER, BUCKET], 1, holder, seq or next(bucket.seqs), count, op,
        bucket.rate, bucket.interval_us, bucket.burst, MAX,
    )  # fmt: skip


def test_what_comes_back_at_once_is_there_again(calls: Functions) -> None:
    """A call that another limit denied costs nothing; a repeat gives nothing twice, an older request is refused."""
    bucket = Bucket(calls, rate=1, interval_us=SECOND_US, burst=10)
    _, op = take(bucket, 10)
    assert give(bucket, 10, op, seq=5) == ["OK", "10", "10"]
    assert take(bucket, 4)[0] == 4
    assert give(bucket, 10, op, seq=5) == ["OK", "10", "6"], "a repeat says what it said and gives nothing"
    assert give(bucket, 1, op, seq=4) == ["ERR", "SEQ", "5"]


def test_never_more_than_was_taken_and_only_by_who_took_it(calls: Functions) -> None:
    """A holder gives back what it took at most, and a stranger nothing."""
    bucket = Bucket(calls, rate=0, interval_us=1, burst=100)
    _, op = take(bucket, 5)
    take(bucket, 50, holder=HOLDERS[1])
    assert give(bucket, 30, op, holder=HOLDERS[2]) == ["OK", "0", "45"]
    assert give(bucket, 30, op)[1:] == ["5", "50"]
    assert give(bucket, 30, op)[1:] == ["0", "50"]


def test_tokens_that_would_have_run_over_are_gone(calls: Functions) -> None:
    """What was refilled in the meantime isn't there twice: a late return after a full bucket is worth nothing."""
    bucket = Bucket(calls, rate=1, interval_us=SECOND_US, burst=10)
    _, op = take(bucket, 10)
    bucket.step(7 * SECOND_US)
    take(bucket, 5, holder=HOLDERS[1])
    assert give(bucket, 10, op) == ["OK", "3", "5"], "7 of 10 had no room above a level of 7"
    bucket.step(5 * SECOND_US)
    _, late = take(bucket, 10)
    bucket.step(10 * SECOND_US)
    assert take(bucket, 10, holder=HOLDERS[1])[0] == 10
    assert give(bucket, 10, late) == ["OK", "0", "0"]


def test_a_bucket_that_had_expired_takes_nothing_back(calls: Functions) -> None:
    """A key that is gone had been full: there is no room in it."""
    bucket = Bucket(calls, rate=1, interval_us=SECOND_US, burst=10)
    _, op = take(bucket, 10)
    calls.redis.delete(BUCKET)
    assert give(bucket, 10, op) == ["OK", "0", "10"]


acts = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 2), st.integers(1, 12)),
        st.tuples(st.just("give"), st.integers(0, 9), st.integers(1, 12)),
        st.tuples(st.just("step"), st.just(0), st.integers(0, 6 * SECOND_US)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(acts=acts)
def test_no_return_ever_mints(calls: Functions, *, acts: list[tuple[str, int, int]]) -> None:
    """However takes and returns mix, the bucket is never above one in which what came back was never taken.

    And what was admitted in any interval, less what came back of it, stays within burst + rate x t.
    """
    bucket = Bucket(calls, rate=1, interval_us=SECOND_US, burst=12)
    taken: list[list[int]] = []  # time, units that stayed away, name of the call, holder
    now_us = 0
    for act, which, value in acts:
        if act == "step":
            bucket.step(value)
            now_us += value
        elif act == "take":
            got, op = take(bucket, value, holder=HOLDERS[which])
            taken.append([now_us, got, op, which])
        elif taken:
            entry = taken[which % len(taken)]
            came = int(give(bucket, min(value, entry[1]), entry[2], holder=HOLDERS[entry[3]])[1])
            entry[1] -= came
        assert bucket.take(0)[1] <= level_without(taken, now_us)
    for first, last in itertools.combinations_with_replacement(range(len(taken)), 2):
        admitted = sum(entry[1] for entry in taken[first : last + 1])
        assert admitted * SECOND_US <= 12 * SECOND_US + (taken[last][0] - taken[first][0])


def level_without(taken: list[list[int]], now_us: int) -> Fraction:
    """Answer the level of a bucket from which only what stayed away was ever taken."""
    level, at_us = Fraction(12), 0
    for time_us, units, *_ in taken:
        level = min(Fraction(12), level + Fraction(time_us - at_us, SECOND_US)) - units
        assert level >= 0, "more was admitted than such a bucket has"
        at_us = time_us
    return min(Fraction(12), level + Fraction(now_us - at_us, SECOND_US))


class Shares:
    """Holders of one shard, each with what it uses, and the shard's clock in the test's hand."""

    def __init__(self, calls: Functions, *, first: int = 1) -> None:
        self.calls, self.seqs = calls, itertools.count(1)
        calls.redis.delete(MARKER)
        assert calls.call("bucket_open", [MARKER], 1, ORIGIN_US, 1_000, first, CHANNEL) == ["OK"]

    def ask(self, holder: int, held: int = 0, *, seq: int = 0) -> list[str]:
        """Ask for a share and answer the reply."""
        return self.calls.call(
            "bucket_share", [MARKER], 1, f"{holder:032x}", seq or next(self.seqs), held, ORIGIN_US + 10**12
        )

    def pass_time(self, elapsed_us: int) -> None:
        """Let the shard's clock believe that so much time went by."""
        self.calls.redis.hincrby(MARKER, "at", -elapsed_us)


def test_shares_add_up_to_two_per_cent_whatever_is_lost(calls: Functions) -> None:
    """A share that somebody may still use stays counted until he says that he uses less."""
    shares = Shares(calls)
    assert shares.ask(1) == ["OK", "20000"]
    assert shares.ask(2) == ["OK", "0"], "the first may be using it all"
    assert shares.ask(1, 20_000) == ["OK", "10000"]
    assert shares.ask(2) == ["OK", "0"], "nobody knows yet whether the first heard that"
    assert shares.ask(1, 10_000) == ["OK", "10000"]
    assert shares.ask(2) == ["OK", "10000"]
    assert shares.ask(1, 20_000, seq=2) == ["ERR", "SEQ", "5"], "a request that was overtaken changes nothing"


def test_a_holder_that_is_gone_is_forgotten_after_its_share_is_over(calls: Functions) -> None:
    """Its share goes to others, and not before it has ended by its own clock."""
    shares = Shares(calls)
    shares.ask(1)
    shares.pass_time(SHARE_US)
    assert shares.ask(2) == ["OK", "0"]
    shares.pass_time(FORGET_US - SHARE_US + SECOND_US)
    assert shares.ask(2) == ["OK", "20000"]


def test_a_later_generation_waits_until_old_shares_are_over(calls: Functions) -> None:
    """Holders that never heard of the new generation may still use the old one's shares."""
    shares = Shares(calls, first=0)
    assert shares.ask(1) == ["OK", "0"]
    shares.pass_time(FORGET_US)
    assert shares.ask(1) == ["OK", "20000"]


def test_a_server_clock_that_jumps_ahead_mints_a_second_at_most(calls: Functions) -> None:
    """Callers tell their ledger time: the shard gets no further ahead of it than a margin, and stays there."""
    bucket = Bucket(calls, rate=100, interval_us=SECOND_US, burst=1_000_000, speed=1_000)
    start_us = int(calls.redis.hget(MARKER, "at"))

    def left() -> int:
        caller_us = ORIGIN_US + int(calls.redis.time()[0]) * SECOND_US + SECOND_US - start_us
        return int(
            calls.call(
                "bucket_take", [MARKER, BUCKET], 1, HOLDERS[0], next(bucket.seqs), 0, 0, 100, SECOND_US, 1_000_000,
                caller_us,
            )[2]
        )  # fmt: skip

    assert bucket.take(1_000_000)[0] == 1_000_000
    assert left() < 1_000
    for _ in range(3):
        calls.redis.hincrby(MARKER, "at", -3_600 * SECOND_US)  # The server's clock is an hour ahead of what it was.
        assert left() < 6_000, "an hour would have brought 360,000"
    calls.redis.delete(BUCKET)  # As a jump lets keys expire.
    calls.redis.hincrby(MARKER, "at", -3_600 * SECOND_US)
    assert left() < 1_000, "a bucket that is missing after a jump is not taken for a full one"
