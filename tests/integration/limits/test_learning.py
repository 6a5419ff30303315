"""Limits that learn after Postgres was set back: sidecars say what they have, and issuing goes on by itself.

The database is really set back: it is copied, goes on, and is replaced by the copy. What is promised: admitted <= the
limit + what holders have that said nothing.
"""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from limits_support import CATALOGUE, Sidecar, apply_catalogue, kind, new_key
from set_back_support import flush, serving_on, state_of
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper_ledger.store.pool import connection
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from limits_support import Serving
    from set_back_support import History
    from tollkeeper_ledger.config import Settings

AMOUNT = 1_000
LEARNING = """
      - {name: learner, meter: tokens, kind: window, amount: 1000, window: {unit: year, count: 1}, key: [user],
         after_restore: learn}
      - {name: frozen, meter: tokens, kind: window, amount: 1000, window: {unit: year, count: 1}, key: [user]}
      - {name: roller, meter: tokens, kind: window, amount: 1000, key: [user], after_restore: learn,
         window: {unit: day, count: 1, alignment: rolling}}
tenants:"""


@asynccontextmanager
async def learning_on(settings: Settings) -> AsyncIterator[Serving]:
    """Serve a ledger whose sidecars have five seconds to speak."""
    async with serving_on(settings.model_copy(update={"learning_s": 5})) as served:
        await apply_catalogue(served.channel, CATALOGUE.replace("\ntenants:", LEARNING))
        yield served


def beside(served: Serving, sidecar: Sidecar) -> Sidecar:
    """Give the same holder at another ledger."""
    return Sidecar(channel=served.channel, ledger=served.ledger, holder=sidecar.holder)


def leases(
    answer: limits_pb2.AllotAnswer, *sources: limits_pb2.SourceLeases, **changes: Any
) -> limits_pb2.WindowLeases:
    """Say what is had of an answer's window."""
    window = answer.window
    return limits_pb2.WindowLeases(
        **{
            "tenant": "acme",
            "limit": "learner",
            "key_values": ["somebody"],
            "window_id": window.window_id,
            "start_us": window.start_us,
            "end_us": window.end_us,
            "timeline": window.timeline,
            "allotted": window.allotted,
            "sources": sources,
            **changes,
        }
    )


def of_ledger(units: int) -> limits_pb2.SourceLeases:
    """Give units that the ledger leased."""
    return limits_pb2.SourceLeases(units=units)


async def say(sidecar: Sidecar, *said: limits_pb2.WindowLeases) -> None:
    """Say what a holder has."""
    await sidecar.stub.ReportConsumption(limits_pb2.ReportConsumptionRequest(holder=sidecar.holder, leases=said))


async def learned(served: Serving) -> None:
    """Wait until the time to speak is over, by a clock that runs a hundred times faster."""
    await wait_until(lambda: is_set_back(served))
    await served.ledger.resources.clock.set(now=None, speed_milli=100_000)
    await wait_until(lambda: has_learned(served))
    await served.ledger.resources.clock.set(now=None, speed_milli=1_000)


async def is_set_back(served: Serving) -> bool:
    """Tell whether the ledger has noticed."""
    try:
        return (await state_of(served.channel)).timeline > 1
    except grpc.aio.AioRpcError:
        return False  # the connections are gone; the ledger takes new ones


async def has_learned(served: Serving) -> bool:
    """Tell whether sidecars have had their time, and every pool that they named is closed."""
    async with connection(served.ledger.resources.pools.ingest) as conn:
        waiting = await conn.fetchval("SELECT count(*) FROM learned_lease WHERE generation > 0 AND unspent IS NULL")
    return waiting == 0 and not (await state_of(served.channel)).HasField("learning_until")


async def take_all(served: Serving, key: bytes, limit: str = "learner") -> int:
    """Lease straight from the ledger until nothing is given any more; gives the units."""
    taken, sidecar = 0, served.sidecar()
    while kind(answer := await sidecar.ask(limit, key, need=1, want=1000, ledger_only=True)) == "lease":
        taken += answer.lease.give
    assert kind(answer) == "denied", answer
    return taken


async def test_what_holders_say_is_out_and_the_rest_is_issued(settings: Settings, history: History) -> None:
    """Nothing is issued while sidecars speak; then exactly what is left beside what they have, without an operator."""
    key = new_key()
    async with learning_on(settings) as served:
        first = served.sidecar()
        await first.ask("learner", key, need=40, want=40)
    await history.back_up()
    async with learning_on(settings) as served:
        before = await beside(served, first).ask("learner", key, need=300, want=300, ledger_only=True, request_seq=2)
        assert before.lease.granted_cum == 340
        await history.set_back()
        await wait_until(lambda: is_set_back(served))
        assert (await served.sidecar().ask("learner", key)).refused.reason == "RESTORE_UNCONFIRMED"
        for _ in range(2):
            await say(beside(served, first), leases(before, of_ledger(340), key_hash=key))
        assert (await served.sidecar().ask("learner", key)).refused.reason == "RESTORE_UNCONFIRMED"
        await learned(served)
        assert await take_all(served, key) == AMOUNT - 340
        assert (await state_of(served.channel)).HasField("frozen_before"), "nobody had to confirm"
        assert (await served.sidecar().ask("frozen", new_key())).refused.reason == "RESTORE_UNCONFIRMED"


async def test_a_window_that_postgres_lacks_is_learned(settings: Settings, history: History) -> None:
    """Opened after the backup: its holders' word makes it known, whatever the rule would open now (rolling)."""
    key, other = new_key(), new_key()
    async with learning_on(settings) as served:
        await served.sidecar().ask("large", new_key())
    await history.back_up()
    async with learning_on(settings) as served:
        one, two = served.sidecar(), served.sidecar()
        first = await one.ask("roller", key, need=600, want=600)
        second = await two.ask("roller", key, need=300, want=300, ledger_only=True)
        assert second.window.window_id == first.window.window_id
        await history.set_back()
        await wait_until(lambda: is_set_back(served))
        await say(one, leases(first, of_ledger(600), limit="roller", key_hash=key, allotted=600))
        await say(two, leases(second, of_ledger(300), limit="roller", key_hash=key, allotted=600))
        await learned(served)
        answer = await served.sidecar().ask("roller", key, need=1, want=1, ledger_only=True)
        assert (answer.window.start_us, answer.window.end_us) == (first.window.start_us, first.window.end_us)
        assert (answer.window.timeline, answer.window.allotted) == (2, 901)
        assert await take_all(served, key, "roller") == AMOUNT - 901
        assert await take_all(served, other, "roller") == AMOUNT, "of which nobody told, nobody has anything"


async def test_a_pool_of_before_is_closed_and_its_rest_is_left(settings: Settings, history: History) -> None:
    """What Redis says the pool never gave is issued again; it gives nothing any more."""
    key = new_key()
    async with learning_on(settings) as served:
        await served.sidecar().ask("large", new_key())
    await history.back_up()
    async with learning_on(settings) as served:
        one, two = served.sidecar(), served.sidecar()
        first = await one.ask("learner", key, need=100, want=100)
        second = await two.ask("learner", key, need=200, want=200)
        pool = second.pool
        reply = await two.grant(pool, request_seq=1, need=50)
        assert reply[:2] == ["OK", "50"]
        # A third one that will say nothing: Redis knows what it got.
        silent = await served.sidecar().grant(pool, request_seq=1, need=30)
        assert silent[:2] == ["OK", "30"]
        await history.set_back()
        await wait_until(lambda: is_set_back(served))
        # Nobody who speaks knows how much went into the pool: Redis does.
        source = limits_pb2.SourceLeases(generation=pool.generation, units=50)
        await say(one, leases(first, of_ledger(100), key_hash=key, allotted=0))
        await say(two, leases(second, source, key_hash=key, allotted=0))
        await learned(served)
        assert (await two.grant(pool, request_seq=2, need=1))[:2] == ["ERR", "CLOSED"]
        assert await take_all(served, key) == AMOUNT - 100 - 50 - 30


async def test_a_pool_that_redis_lost_counts_with_all_that_went_into_it(settings: Settings, history: History) -> None:
    """Redis is lost as well: the pool is out as a whole, as far as any holder knows of it."""
    key = new_key()
    async with learning_on(settings) as served:
        await served.sidecar().ask("large", new_key())
    await history.back_up()
    async with learning_on(settings) as served:
        one, two = served.sidecar(), served.sidecar()
        first = await one.ask("learner", key, need=100, want=100)
        second = await two.ask("learner", key, need=200, want=200)
        await history.set_back()
        await flush(settings)
        await wait_until(lambda: is_set_back(served))
        total = second.pool.allotted_cum
        source = limits_pb2.SourceLeases(generation=second.pool.generation, units=10, total=total)
        await say(one, leases(first, of_ledger(100), key_hash=key))
        await say(two, leases(second, source, key_hash=key, allotted=0))
        await learned(served)
        assert await take_all(served, key) == AMOUNT - 100 - total


async def test_who_says_nothing_may_spend_what_it_has_and_no_more(settings: Settings, history: History) -> None:
    """The bound: of three holders one says nothing; what is issued again is at most what that one has."""
    key = new_key()
    async with learning_on(settings) as served:
        await served.sidecar().ask("learner", key, need=10, want=10)
    await history.back_up()
    async with learning_on(settings) as served:
        holders = [served.sidecar() for _ in range(3)]
        answers = [await one.ask("learner", key, need=200, want=200, ledger_only=True) for one in holders]
        await history.set_back()
        await wait_until(lambda: is_set_back(served))
        for one, answer in list(zip(holders, answers, strict=True))[:2]:
            await say(one, leases(answer, of_ledger(200), key_hash=key, allotted=0))
        await learned(served)
        again = await take_all(served, key)
        assert 3 * 200 + again <= AMOUNT + 200
        # It speaks after all: from now on that counts as out as well, and nothing is issued beside it.
        late = leases(answers[2], of_ledger(200), key_hash=key, allotted=0)
        await say(holders[2], late)
        await say(holders[2], late)
        answer = await served.sidecar().ask("learner", key, need=1, want=1, ledger_only=True)
        assert (kind(answer), answer.window.allotted) == ("denied", 2 * 200 + again + 200)


async def test_what_is_learned_never_lowers_what_postgres_knows(settings: Settings, history: History) -> None:
    """Holders that say little, or of other windows, free nothing; what they say of this timeline's counts once."""
    key = new_key()
    async with learning_on(settings) as served:
        first = served.sidecar()
        given = await first.ask("learner", key, need=500, want=500)
    await history.back_up()
    async with learning_on(settings) as served:
        # What the backup lacks is issued to another key, or nobody could tell that Postgres went back.
        await served.sidecar().ask("learner", new_key())
        await history.set_back()
        await wait_until(lambda: is_set_back(served))
        await say(served.sidecar(), leases(given, of_ledger(1), key_hash=key, allotted=0))
        await say(served.sidecar(), leases(given, of_ledger(900), key_hash=key, limit="frozen"))
        await say(served.sidecar(), leases(given, of_ledger(900), key_hash=key, limit="nowhere"))
        await learned(served)
        answer = await served.sidecar().ask("learner", key, need=100, want=100, ledger_only=True)
        assert answer.window.allotted == 600
        heir = leases(answer, limits_pb2.SourceLeases(holder=first.holder, units=100), key_hash=key, timeline=0)
        await say(served.sidecar(), heir)
        assert await take_all(served, key) == AMOUNT - 600


@pytest.mark.parametrize(
    "changes",
    [
        {"window_id": b"short"},
        {"key_hash": b"short"},
        {"end_us": 5, "start_us": 5},
        {"allotted": -1},
        {"sources": [limits_pb2.SourceLeases(units=-1)]},
        {"sources": [limits_pb2.SourceLeases(units=2**53)]},
        {"sources": [limits_pb2.SourceLeases(total=2**53)]},
        {"sources": [limits_pb2.SourceLeases(holder=b"short")]},
        {"timeline": 2**63},
    ],
)
async def test_what_no_holder_can_have_is_refused(serving: Serving, changes: dict[str, Any]) -> None:
    """A field that breaks a rule is refused, and nothing is learned."""
    answer = await serving.sidecar().ask("large", key := new_key())
    said = leases(answer, **{"limit": "large", "key_hash": key, "sources": [of_ledger(1)], **changes})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await say(serving.sidecar(), said)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_nothing_is_learned_while_postgres_has_never_been_set_back(settings: Settings) -> None:
    """A holder that lies about what it has raises nothing in the first timeline."""
    key = new_key()
    async with learning_on(settings) as served:
        answer = await served.sidecar().ask("learner", key, need=1, want=1)
        for timeline in (0, 1, 9):
            name = answer.window.window_id[:4] + secrets.token_bytes(12)
            lie = leases(answer, of_ledger(999), key_hash=key, timeline=timeline, window_id=name)
            await say(served.sidecar(), lie)
        assert await take_all(served, key) == AMOUNT - 1
