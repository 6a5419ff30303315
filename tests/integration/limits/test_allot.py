"""Allot on a real Postgres and a real Valkey."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from limits_support import Sidecar, kind, new_key
from redis.asyncio import Redis
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper_ledger.app import running
from waiting import wait_until

if TYPE_CHECKING:
    from limits_support import Serving
    from tollkeeper_ledger.config import Settings

_DAY_US = 86_400_000_000


async def flush_redis(serving: Serving, *, functions: bool) -> None:
    """Lose everything that Redis has."""
    client = Redis.from_url(serving.ledger.resources.settings.redis_url)
    await client.flushall()
    if functions:
        await client.function_flush()
    await client.aclose()


async def allotted(serving: Serving, window_id: bytes) -> int:
    """Read a window's row."""
    async with serving.ledger.resources.pools.ingest.acquire() as conn:
        found: int = await conn.fetchval("SELECT allotted FROM limit_window WHERE window_id = $1", window_id)
    return found


async def test_first_ask_gets_a_lease_of_a_share_of_the_amount(serving: Serving) -> None:
    """The first holder of a cold key has units after one round trip, at most a sixteenth beyond its need."""
    answer = await serving.sidecar().ask("large", new_key(), need=5, want=16_000)
    assert kind(answer) == "lease"
    assert (answer.lease.give, answer.lease.granted_cum) == (1000, 1000)
    assert (answer.window.amount, answer.window.allotted) == (16_000, 1000)
    assert answer.window.end_us - answer.window.start_us == _DAY_US
    day = int.from_bytes(answer.window.window_id[:4], "big")
    assert day == (answer.window.end_us - 1) // _DAY_US


async def test_a_first_need_above_the_share_is_met_in_full(serving: Serving) -> None:
    """Need counts before the share."""
    answer = await serving.sidecar().ask("small", new_key(), need=90, want=90)
    assert answer.lease.give == 90


async def test_two_first_uses_at_once_make_one_window(serving: Serving) -> None:
    """Twenty holders that use a fresh key at the same time share one window: one lease, the others the pool."""
    key = new_key()
    answers = await asyncio.gather(*(serving.sidecar().ask("large", key) for _ in range(20)))
    assert len({answer.window.window_id for answer in answers}) == 1
    assert sorted(kind(answer) for answer in answers) == ["lease"] + ["pool"] * 19
    assert len({answer.pool.generation for answer in answers if kind(answer) == "pool"}) == 1


async def test_a_repeated_request_gets_its_answer_again_and_no_more_units(serving: Serving) -> None:
    """A lease is given once per request_seq; skipping one is refused with the number that the ledger knows."""
    sidecar, key = serving.sidecar(), new_key()
    first = await sidecar.ask("large", key, request_seq=1, need=7, want=7)
    again = await sidecar.ask("large", key, request_seq=1, need=7, want=7)
    assert (first.lease.give, again.lease.give, again.lease.granted_cum) == (7, 7, 7)
    assert await allotted(serving, first.window.window_id) == 7
    refused = await sidecar.ask("large", key, request_seq=3)
    assert (refused.refused.reason, refused.refused.last_request_seq) == ("REQUEST_SEQ", 1)
    zero = await sidecar.ask("large", key, request_seq=0)
    assert zero.refused.reason == "REQUEST_SEQ"


async def test_the_second_ask_opens_a_pool_that_serves(serving: Serving) -> None:
    """The same holder's second ask is sent to a pool which is open and filled when the answer arrives."""
    sidecar, key = serving.sidecar(), new_key()
    await sidecar.ask("large", key)
    answer = await sidecar.ask("large", key)
    assert kind(answer) == "pool"
    assert (answer.pool.allotted_cum, answer.pool.final) == (1000, False)
    reply = await sidecar.grant(answer.pool, request_seq=1, need=100)
    assert reply[:3] == ["OK", "100", "100"]


async def test_a_pool_grows_only_for_who_has_seen_all_that_is_in_it(serving: Serving) -> None:
    """Fifty holders at an old figure don't make the pool grow; one at the present figure does."""
    key = new_key()
    await serving.sidecar().ask("large", key)
    pool = (await serving.sidecar().ask("large", key)).pool
    seen = {"generation_seen": pool.generation, "allotted_cum_seen": pool.allotted_cum}
    grown = (await serving.sidecar().ask("large", key, **seen)).pool
    assert grown.allotted_cum == 2000
    answers = await asyncio.gather(*(serving.sidecar().ask("large", key, **seen) for _ in range(50)))
    assert {answer.pool.allotted_cum for answer in answers} == {2000}


async def test_a_limit_gives_exactly_its_amount_whoever_asks_how(serving: Serving) -> None:
    """Sixty holders with random needs get no more than the amount in all, and the pool is final at its end."""
    key, seed = new_key(), random.Random(7)
    window_id, given, last = b"", 0, limits_pb2.PoolInfo()
    for _ in range(40):
        sidecars = [serving.sidecar() for _ in range(3)]
        answers = await asyncio.gather(
            *(
                sidecar.ask(
                    "large",
                    key,
                    need=seed.randrange(1, 2000),
                    want=seed.randrange(2000, 4000),
                    generation_seen=last.generation,
                    allotted_cum_seen=last.allotted_cum,
                )
                for sidecar in sidecars
            )
        )
        for sidecar, answer in zip(sidecars, answers, strict=True):
            window_id = answer.window.window_id
            if kind(answer) == "lease":
                given += answer.lease.give
            elif kind(answer) == "pool":
                last = answer.pool if answer.pool.allotted_cum >= last.allotted_cum else last
                reply = await sidecar.grant(answer.pool, request_seq=1, need=1, want=seed.randrange(1, 500))
                given += int(reply[1]) if reply[0] == "OK" else 0
    assert last.final
    assert await allotted(serving, window_id) == 16_000
    assert 0 < given <= 16_000


async def test_exhaustion_is_denied_with_what_is_left(serving: Serving) -> None:
    """A need beyond what is left is denied; less is still given; amount 0 denies everything."""
    sidecar, key = serving.sidecar(), new_key()
    denied = await sidecar.ask("small", key, need=101, want=101)
    assert (kind(denied), denied.denied.left) == ("denied", 100)
    assert (await sidecar.ask("small", key, need=100, want=100)).lease.give == 100
    assert (await sidecar.ask("small", key)).denied.left == 0
    none = await sidecar.ask("none", new_key())
    assert (kind(none), none.denied.left) == ("denied", 0)


async def test_a_denial_is_decided_anew_when_repeated(serving: Serving) -> None:
    """A repeat after units came back is not answered with yesterday's proof."""
    owner, late, key = serving.sidecar(), serving.sidecar(), new_key()
    lease = await owner.ask("small", key, need=100, want=100)
    assert kind(await late.ask("small", key, request_seq=1)) == "denied"
    assert await owner.give_back(lease.window.window_id, 60) == 60
    assert kind(await late.ask("small", key, request_seq=1)) == "pool"


@pytest.mark.parametrize("fault", ["NO_POOL", "FENCE", "GENERATION", "CLOSED", "ROLLBACK", "SEQ", "RETURN_RANGE"])
async def test_a_lost_pool_makes_the_next_generation_once(serving: Serving, fault: str) -> None:
    """Everybody who reports the same lost generation is sent to one new one, made of what is left."""
    key = new_key()
    await serving.sidecar().ask("large", key)
    pool = (await serving.sidecar().ask("large", key)).pool
    lost = {
        "generation_seen": pool.generation,
        "allotted_cum_seen": pool.allotted_cum,
        "pool_error": limits_pb2.PoolError.Value(f"POOL_ERROR_{fault}"),
    }
    answers = await asyncio.gather(*(serving.sidecar().ask("large", key, **lost) for _ in range(10)))
    assert {answer.pool.generation for answer in answers} == {pool.generation + 1}
    assert {answer.pool.allotted_cum for answer in answers} == {1000}
    late = await serving.sidecar().ask("large", key, **lost)
    assert (late.pool.generation, late.pool.allotted_cum) == (pool.generation + 1, 1000)
    assert await allotted(serving, late.window.window_id) == 10 + 2000


async def test_a_flushed_redis_never_gives_the_amount_twice(serving: Serving) -> None:
    """However often Redis loses everything, functions included, all leases together stay within the amount.

    One pool is opened for a lost one; while the next ones would be lost as well the ledger leases, and strands nothing.
    """
    key, given, pools = new_key(), 0, 0
    first = await serving.sidecar().ask("large", key, need=1000, want=1000)
    given += first.lease.give
    window_id = first.window.window_id
    seen: dict[str, int] = {}
    for turn in range(30):
        sidecar = serving.sidecar()
        answer = await sidecar.ask("large", key, want=1000, **seen)
        if kind(answer) == "denied":
            break
        if kind(answer) == "lease":
            assert pools >= 2, "the first lost pool is followed by one"
            given += answer.lease.give
            continue
        pools += 1
        reply = await sidecar.grant(answer.pool, request_seq=1, need=700)
        assert reply[0] == "OK"
        given += int(reply[1])
        await flush_redis(serving, functions=turn % 8 == 0)
        seen = {"generation_seen": answer.pool.generation, "pool_error": limits_pb2.POOL_ERROR_NO_POOL}
        await ensure_functions(serving)
    else:
        pytest.fail("the limit never ended")
    assert given == 16_000 - 300 * pools
    assert await allotted(serving, window_id) == 16_000


async def ensure_functions(serving: Serving) -> None:
    """Wait until the ledger has put its functions back."""
    redis: Any = serving.redis

    async def there() -> bool:
        return bool(await redis.execute_command("FUNCTION", "LIST"))

    await wait_until(there)


async def test_lost_units_come_back_through_living_holders_up_to_what_was_allotted(serving: Serving) -> None:
    """A lost generation takes returns, capped by what went into it."""
    sidecar, key = serving.sidecar(), new_key()
    await sidecar.ask("large", key)
    answer = await sidecar.ask("large", key)
    window, pool = answer.window.window_id, answer.pool
    after = await sidecar.ask("large", key, generation_seen=pool.generation, pool_error=limits_pb2.POOL_ERROR_NO_POOL)
    before = await allotted(serving, window)
    assert await sidecar.give_back(window, 300, generation=pool.generation) == 300
    assert await sidecar.give_back(window, 300, generation=pool.generation) == 300
    assert await allotted(serving, window) == before - 300
    await serving.sidecar().give_back(window, 5000, generation=pool.generation)
    assert await allotted(serving, window) == before - pool.allotted_cum
    assert after.pool.generation == pool.generation + 1


async def test_ledger_leases_come_back_once_and_never_more_than_was_given(serving: Serving) -> None:
    """returned_cum is cumulative: repeats, older figures and figures above the lease change nothing."""
    sidecar, key = serving.sidecar(), new_key()
    lease = await sidecar.ask("small", key, need=50, want=50)
    window = lease.window.window_id
    assert [await sidecar.give_back(window, cum) for cum in (20, 20, 10, 500)] == [20, 20, 20, 50]
    assert await allotted(serving, window) == 0
    assert await serving.sidecar().give_back(window, 10) == 0
    assert await sidecar.give_back(bytes(16), 10) == 0


async def test_without_redis_units_come_straight_from_the_ledger_and_denials_need_proof(serving: Serving) -> None:
    """UNREACHABLE gets leases while units are left; beside a pool whose rest nobody sees there is no denial."""
    sidecar, key = serving.sidecar(), new_key()
    await sidecar.ask("small", key, need=10, want=10)
    pool = (await sidecar.ask("small", key)).pool
    blind = {"generation_seen": pool.generation, "pool_error": limits_pb2.POOL_ERROR_UNREACHABLE}
    lease = await sidecar.ask("small", key, need=74, want=74, **blind)
    assert (lease.lease.give, lease.lease.granted_cum) == (74, 84)
    refused = await sidecar.ask("small", key, **blind)
    assert refused.refused.reason == "AUTHORITY_UNREACHABLE"
    by_policy = await sidecar.ask("small", key, ledger_only=True, request_seq=4)
    assert by_policy.refused.reason == "AUTHORITY_UNREACHABLE"


async def test_bad_asks_are_refused_one_by_one(serving: Serving) -> None:
    """An ask that can't be answered gets its reason; its neighbours get their units."""
    sidecar, now_us = serving.sidecar(), serving.ledger.resources.clock.reading().now_us
    answers = await sidecar.send(
        sidecar.entry("large", new_key(), tenant="nobody"),
        sidecar.entry("no-such-limit", new_key()),
        sidecar.entry("unlimited", new_key()),
        sidecar.entry("large", b"short"),
        sidecar.entry("large", new_key(), need=-1),
        sidecar.entry("large", new_key(), need=2**53),
        sidecar.entry("large", new_key(), at_us=now_us + 60_000_000),
        sidecar.entry("large", new_key(), at_us=now_us - 8_000_000_000),
        sidecar.entry("large", new_key(), at_us=2**62),
        sidecar.entry("large", new_key()),
    )
    assert [answer.refused.reason or kind(answer) for answer in answers] == [
        "TENANT_UNKNOWN",
        "LIMIT_UNKNOWN",
        "FIELD_INVALID",
        "FIELD_INVALID",
        "FIELD_OUT_OF_RANGE",
        "FIELD_OUT_OF_RANGE",
        "FIELD_OUT_OF_RANGE",
        "FIELD_OUT_OF_RANGE",
        "FIELD_OUT_OF_RANGE",
        "lease",
    ]


async def test_the_next_window_can_be_leased_early_and_is_another_one(serving: Serving) -> None:
    """Present and next window live side by side, each with its own amount, whichever was asked for first."""
    sidecar, key = serving.sidecar(), new_key()
    now_us = serving.ledger.resources.clock.reading().now_us
    ahead = await sidecar.ask("minute", key, at_us=now_us + 4_900_000, request_seq=1)
    behind = await sidecar.ask("minute", key, at_us=now_us - 58_000_000, request_seq=1)
    assert behind.window.end_us <= ahead.window.start_us
    assert (kind(ahead), kind(behind)) == ("lease", "lease")
    again = await sidecar.ask("minute", key, at_us=now_us + 4_900_000, request_seq=2)
    assert again.window.window_id == ahead.window.window_id


async def test_a_window_may_be_the_billing_period(serving: Serving) -> None:
    """A billing period window has the subscription's own bounds."""
    answer = await serving.sidecar().ask("period", new_key())
    days = (answer.window.end_us - answer.window.start_us) // _DAY_US
    assert 28 <= days <= 31


async def test_a_token_bucket_is_opened_once_and_reopened_when_lost(serving: Serving) -> None:
    """Keys of a rate share sixteen shards, each opened once; a report about one makes its next generation, alone."""
    keys = [bytes([first]) + new_key()[1:] for first in (3, 19, 4)]
    answers = await asyncio.gather(*(serving.sidecar().ask("rate", key) for key in keys * 2))
    places = [answer.bucket for answer in answers]
    assert {place.marker_key for place in places[0::3]} == {places[1].marker_key}, "3 and 19 are one shard"
    assert places[2].marker_key != places[1].marker_key, "another hash tag: another slot of a cluster"
    bucket, other = places[0], places[2]
    for place in (bucket, other):
        marker = await serving.redis.hgetall(place.marker_key)
        assert marker["generation"] == str(place.generation)
    lost = {"generation_seen": bucket.generation, "pool_error": limits_pb2.POOL_ERROR_NO_POOL}
    after = await asyncio.gather(*(serving.sidecar().ask("rate", keys[0], **lost) for _ in range(5)))
    assert {answer.bucket.generation for answer in after} == {bucket.generation + 1}
    marker = await serving.redis.hgetall(bucket.marker_key)
    assert (marker["generation"], marker["first"]) == (str(bucket.generation + 1), "0")
    assert (await serving.sidecar().ask("rate", keys[2])).bucket.generation == other.generation


async def test_consumption_is_summed_over_the_fleet_and_never_falls(serving: Serving) -> None:
    """Each holder's highest report counts, less what it gave back; the answer sums them; unknown windows have none."""
    one, two, key = serving.sidecar(), serving.sidecar(), new_key()
    window = (await one.ask("large", key)).window.window_id

    async def report(sidecar: Sidecar, consumed: int, over: int, given_back: int = 0) -> tuple[int, int]:
        entry = limits_pb2.ConsumptionEntry(
            window_id=window, consumed_cum=consumed, over_cum=over, given_back_cum=given_back
        )
        unknown = limits_pb2.ConsumptionEntry(window_id=bytes(16), consumed_cum=1)
        request = limits_pb2.ReportConsumptionRequest(holder=sidecar.holder, entries=[unknown, entry])
        uses = (await sidecar.stub.ReportConsumption(request)).uses
        assert uses[0] == limits_pb2.WindowUse()
        assert (uses[1].allotted, uses[1].amount) == (10, 16_000)
        return uses[1].consumed, uses[1].over

    assert await report(one, 5, 0) == (5, 0)
    assert await report(two, 3, 2) == (8, 2)
    assert await report(one, 4, 1) == (8, 3)
    assert await report(one, 9, 0) == (12, 3)
    assert await report(one, 9, 0, given_back=4) == (8, 3)
    assert await report(one, 10, 0, given_back=2) == (9, 3), "a late report takes nothing given back away again"
    assert await report(two, 3, 2, given_back=11) == (0, 1), "what is given back beyond consumed was over"


async def test_returned_units_make_a_final_pool_unfinal(serving: Serving) -> None:
    """A pool that refused as final says so no longer once leased units came back, and grows again."""
    owner, late, key = serving.sidecar(), serving.sidecar(), new_key()
    lease = await owner.ask("small", key, need=90, want=90)
    pool = (await late.ask("small", key, need=10)).pool
    assert pool.final
    assert (await late.grant(pool, request_seq=1, need=11))[1:6:4] == ["0", "1"]
    redis: Any = serving.redis
    assert await redis.hget(pool.pool_key, "final") == "1"
    await owner.give_back(lease.window.window_id, 30)
    assert await redis.hget(pool.pool_key, "final") == "0"
    seen = {"generation_seen": pool.generation, "allotted_cum_seen": pool.allotted_cum}
    grown = (await late.ask("small", key, need=20, **seen)).pool
    assert (grown.allotted_cum, grown.final) == (30, False)
    assert (await late.grant(grown, request_seq=2, need=20))[1] == "20"


async def test_a_pool_that_was_not_told_is_told_again(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool_extend whose outcome is unknown is repeated with the figures of that time, without anybody asking."""
    owner, late, key = serving.sidecar(), serving.sidecar(), new_key()
    lease = await owner.ask("small", key, need=90, want=90)
    pool = (await late.ask("small", key, need=10)).pool
    redis: Any = serving.redis

    def broken(*, transaction: bool) -> None:
        raise ConnectionError("cut")

    monkeypatch.setattr(redis, "pipeline", broken)
    await owner.give_back(lease.window.window_id, 30)
    assert await redis.hget(pool.pool_key, "final") == "1"
    monkeypatch.undo()

    async def told() -> bool:
        return bool(await redis.hget(pool.pool_key, "final") == "0")

    await wait_until(told)


async def test_a_restarted_ledger_tells_pools_what_its_predecessor_could_not(
    serving: Serving, ledger_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the commit and Redis: the next process makes the pool unfinal by itself."""
    owner, late, key = serving.sidecar(), serving.sidecar(), new_key()
    lease = await owner.ask("small", key, need=90, want=90)
    pool = (await late.ask("small", key, need=10)).pool
    redis: Any = serving.redis

    def broken(*, transaction: bool) -> None:
        raise ConnectionError("cut")

    monkeypatch.setattr(redis, "pipeline", broken)
    await owner.give_back(lease.window.window_id, 30)
    assert await redis.hget(pool.pool_key, "final") == "1"

    async def told() -> bool:
        return bool(await redis.hget(pool.pool_key, "final") == "0")

    async with running(ledger_settings):
        await wait_until(told)
