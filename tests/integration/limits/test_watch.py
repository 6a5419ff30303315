"""WatchLimits on a real Postgres: what a sidecar hears, and how soon."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from limits_support import apply_catalogue, new_key, quickest, set_amount
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc, limits_pb2, limits_pb2_grpc
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from limits_support import Serving


class Watch:
    """A watch stream of one sidecar, which says at once which clock it has applied."""

    def __init__(self, channel: grpc.aio.Channel, **hello: Any) -> None:
        self._says: asyncio.Queue[limits_pb2.WatchLimitsRequest | None] = asyncio.Queue()
        self.applies_clock = True
        first = limits_pb2.WatchHello(
            **{
                "protocol_version": 1,
                "holder": secrets.token_bytes(16),
                "producer_id": secrets.token_bytes(16),
                "tenants": ["acme"],
                **hello,
            }
        )
        self.say(limits_pb2.WatchLimitsRequest(hello=first))
        self.heard: list[limits_pb2.WatchLimitsResponse] = []
        self._news = asyncio.Condition()
        self.call: Any = limits_pb2_grpc.LimitServiceStub(channel).WatchLimits(self._requests())

    async def _requests(self) -> AsyncIterator[limits_pb2.WatchLimitsRequest]:
        while (message := await self._says.get()) is not None:
            yield message

    def say(self, message: limits_pb2.WatchLimitsRequest) -> None:
        """Send a message."""
        self._says.put_nowait(message)

    async def listen(self) -> None:
        """Take in everything until the stream ends."""
        async for message in self.call:
            if message.WhichOneof("message") == "clock" and self.applies_clock:
                self.say(limits_pb2.WatchLimitsRequest(clock_applied=message.clock.version))
            async with self._news:
                self.heard.append(message)
                self._news.notify_all()

    async def until(self, matches: Callable[[limits_pb2.WatchLimitsResponse], bool]) -> limits_pb2.WatchLimitsResponse:
        """Wait for a message that matches, also one that came before."""
        async with asyncio.timeout(60), self._news:
            await self._news.wait_for(lambda: any(matches(message) for message in self.heard))
            return next(message for message in self.heard if matches(message))

    async def tenant(self, wire_id: str, *, after: int = 0) -> limits_pb2.TenantSnapshot:
        """Wait for a tenant's snapshot of a change above `after`."""
        found = await self.until(lambda message: message.tenant.tenant == wire_id and message.tenant.change > after)
        return found.tenant


@asynccontextmanager
async def watching(channel: grpc.aio.Channel, **hello: Any) -> AsyncIterator[Watch]:
    """Watch until the block ends."""
    watch = Watch(channel, **hello)
    listener = asyncio.create_task(watch.listen())
    try:
        yield watch
    finally:
        watch.call.cancel()
        await asyncio.gather(listener, return_exceptions=True)


async def test_hello_is_answered_with_the_installation_and_the_tenants_with_their_ancestors(serving: Serving) -> None:
    """Welcome first, then meters, the tenant and its parent whole, limits in name order, and heartbeats."""
    async with watching(serving.channel) as watch:
        acme = await watch.tenant("acme")
        group = await watch.tenant("group")
        await watch.until(lambda message: message.HasField("heartbeat"))
        await watch.until(lambda message: [meter.name for meter in message.meters.meters] == ["tokens"])
    welcome = watch.heard[0].welcome
    assert (len(welcome.installation_id), welcome.timeline, welcome.heartbeat_interval_ms) == (16, 1, 40)
    assert [len(key.secret) for key in welcome.token_keys] == [32]
    assert watch.heard[1].HasField("meters")
    assert (acme.parent, group.parent, acme.plan) == ("group", "", "metered")
    assert list(acme.features) == ["streaming"]
    names = [limit.name for limit in acme.limits]
    assert names == sorted(names)
    assert {limit.name: limit.amount for limit in acme.limits}["large"] == 16_000
    assert acme.state == limits_pb2.TENANT_STATE_ACTIVE


async def test_a_change_is_pushed_within_a_second(serving: Serving) -> None:
    """An override reaches the stream in under a second, with a higher amount_version; a repeat is no change of it."""
    async with watching(serving.channel) as watch:
        before = await watch.tenant("acme")
        change = await set_amount(serving.channel, "acme", "minute", 77)
        after = await watch.tenant("acme", after=before.change)
        amounts = itertools.count(78)

        async def pushed() -> float:
            began = time.monotonic()
            latest = await set_amount(serving.channel, "acme", "minute", next(amounts))
            await watch.tenant("acme", after=latest - 1)
            return time.monotonic() - began

        assert await quickest(pushed, bound_s=1.0) < 1.0
    assert after.change == change
    old = next(limit for limit in before.limits if limit.name == "minute")
    new = next(limit for limit in after.limits if limit.name == "minute")
    assert (new.amount, new.amount_version, new.source) == (77, old.amount_version + 1, "override")
    others = {limit.name: limit.amount_version for limit in after.limits if limit.name != "minute"}
    assert others == {limit.name: limit.amount_version for limit in before.limits if limit.name != "minute"}


MOVING = """
version: 1
plans:
  - name: small
    currency: USD
    billing_interval: month
    limits: [{name: day, meter: tokens, kind: window, amount: 10, window: day}]
  - name: big
    currency: USD
    billing_interval: month
    features: [streaming]
    limits: [{name: day, meter: tokens, kind: window, amount: 1000, window: day}]
tenants: [{id: mover, plan: small}]
"""


async def test_a_plan_change_is_pushed_within_a_second(serving: Serving) -> None:
    """Another plan's limits and features reach the stream in under a second, as a pause and its end do."""
    await apply_catalogue(serving.channel, MOVING)
    admin = admin_pb2_grpc.AdminServiceStub(serving.channel)
    async with watching(serving.channel, tenants=["mover"]) as watch:
        latest = await watch.tenant("mover")
        assert (latest.plan, [limit.amount for limit in latest.limits]) == ("small", [10])
        plans = itertools.cycle(["big", "small"])

        async def moved() -> float:
            nonlocal latest
            plan = next(plans)
            request = admin_pb2.ChangeSubscriptionRequest(
                request_id=secrets.token_hex(8), tenant="mover", plan=plan, at="now"
            )
            began = time.monotonic()
            await admin.ChangeSubscription(request)
            latest = await watch.tenant("mover", after=latest.change)
            assert latest.plan == plan
            return time.monotonic() - began

        assert await quickest(moved, bound_s=1.0) < 1.0
        expected = (["streaming"], [1000]) if latest.plan == "big" else ([], [10])
        assert expected == (list(latest.features), [limit.amount for limit in latest.limits])
        await admin.PauseSubscription(admin_pb2.PauseSubscriptionRequest(request_id="pause", tenant="mover"))
        paused = await watch.tenant("mover", after=latest.change)
        assert paused.state == limits_pb2.TENANT_STATE_SUSPENDED
        await admin.ResumeSubscription(admin_pb2.ResumeSubscriptionRequest(request_id="resume", tenant="mover"))
        resumed = await watch.tenant("mover", after=paused.change)
        assert (resumed.state, resumed.plan) == (limits_pb2.TENANT_STATE_ACTIVE, latest.plan)


FEATURED = """
version: 1
features: [{name: streaming}, {name: batch}, {name: seats}, {name: support}]
plans:
  - {name: bronze, currency: USD, billing_interval: month, features: [streaming, {seats: 5}]}
  - {name: gold, currency: USD, billing_interval: month, features: {streaming: true, seats: 50, support: gold}}
tenants: [{id: featured, plan: bronze, features: OWN}]
"""


async def test_features_with_values_follow_the_plan_and_the_tenants_own_word(serving: Serving) -> None:
    """What the ledger tells of a subscription is what sidecars hear of: own features and a change of plan, at once."""
    admin = admin_pb2_grpc.AdminServiceStub(serving.channel)

    async def told() -> dict[str, str]:
        found = await admin.ListSubscriptions(admin_pb2.ListSubscriptionsRequest(tenant="featured"))
        return {one.name: one.value for one in found.subscriptions[0].features}

    await apply_catalogue(serving.channel, FEATURED.replace("OWN", "[]"))
    async with watching(serving.channel, tenants=["featured"]) as watch:
        latest = await watch.tenant("featured")
        assert (list(latest.features), await told()) == (["seats", "streaming"], {"seats": "5", "streaming": ""})
        await apply_catalogue(serving.channel, FEATURED.replace("OWN", "{streaming: false, batch: true, seats: 7}"))
        latest = await watch.tenant("featured", after=latest.change)
        assert (list(latest.features), await told()) == (["batch", "seats"], {"batch": "", "seats": "7"})
        change = admin_pb2.ChangeSubscriptionRequest(request_id="gold", tenant="featured", plan="gold", at="now")
        await admin.ChangeSubscription(change)
        latest = await watch.tenant("featured", after=latest.change)
        expected = {"batch": "", "seats": "7", "support": "gold"}
        assert (list(latest.features), await told()) == (list(expected), expected)
        await apply_catalogue(serving.channel, FEATURED.replace("OWN", "[]"))
        latest = await watch.tenant("featured", after=latest.change)
        assert await told() == {"seats": "50", "streaming": "", "support": "gold"}
        await admin.CancelSubscription(
            admin_pb2.CancelSubscriptionRequest(request_id="over", tenant="featured", at="now")
        )
        assert await told() == {}


async def test_a_change_of_a_stranger_is_not_pushed(serving: Serving) -> None:
    """A stream hears of the tenants that it follows and of nobody else."""
    async with watching(serving.channel) as watch, watching(serving.channel, tenants=["other"]) as other:
        before = await other.tenant("other")
        await watch.tenant("acme")
        change = await set_amount(serving.channel, "other", "minute", before.change + 1000)
        await other.tenant("other", after=before.change)
        await watch.until(lambda message: message.heartbeat.change >= change)
        assert not [message for message in watch.heard if message.tenant.tenant == "other"]


async def test_a_resume_confirms_what_did_not_change_and_sends_what_did(serving: Serving) -> None:
    """With its last change number a sidecar is sent only what moved; a number from the future is no number."""
    async with watching(serving.channel, tenants=["acme", "other"]) as watch:
        await watch.tenant("acme")
        await watch.tenant("other")
        resume = (await watch.until(lambda message: message.HasField("heartbeat"))).heartbeat.change
    await set_amount(serving.channel, "other", "small", resume + 500)
    async with watching(serving.channel, tenants=["acme", "other"], resume_change=resume) as watch:
        confirmed = await watch.until(lambda message: message.HasField("confirmed"))
        assert (await watch.tenant("other")).change > resume
        assert "acme" in confirmed.confirmed.tenants
        assert "other" not in confirmed.confirmed.tenants
    async with watching(serving.channel, tenants=["acme"], resume_change=2**40) as watch:
        assert (await watch.tenant("acme")).tenant == "acme"


async def test_an_unknown_tenant_is_said_to_be_unknown_and_pushed_once_it_exists(serving: Serving) -> None:
    """Asking early costs nothing: the tenant comes by itself when it is made."""
    name = f"late-{secrets.token_hex(4)}"
    async with watching(serving.channel, tenants=[]) as watch:
        watch.say(limits_pb2.WatchLimitsRequest(add=limits_pb2.WatchTenants(tenants=[name])))
        await watch.until(lambda message: message.unknown.tenant == name)
        yaml = f"version: 1\ntenants:\n  - {{id: {name}, name: Late}}\n"
        request = admin_pb2.ApplyCatalogueRequest(request_id=secrets.token_hex(8), yaml=yaml, source_name="test")
        await admin_pb2_grpc.AdminServiceStub(serving.channel).ApplyCatalogue(request)
        assert (await watch.tenant(name)).tenant == name


async def test_a_denial_ends_with_a_notice(serving: Serving) -> None:
    """Who was denied by the ledger hears of units that came back, of this key."""
    owner, denied, key = serving.sidecar(), serving.sidecar(), new_key()
    lease = await owner.ask("large", key, need=16_000, want=16_000)
    assert (await denied.ask("large", key, need=50)).HasField("denied")
    async with watching(serving.channel) as watch:
        await watch.tenant("acme")
        await owner.give_back(lease.window.window_id, 49)
        await owner.give_back(lease.window.window_id, 50)
        notice = (await watch.until(lambda message: message.HasField("units"))).units
    assert (notice.tenant, notice.limit, notice.key_hash) == ("acme", "large", key)
    assert len([message for message in watch.heard if message.HasField("units")]) == 1


async def test_a_raised_amount_reaches_an_open_window_and_its_pool_without_being_asked(serving: Serving) -> None:
    """A raise ends denials and makes a final pool unfinal, in the window that is running."""
    sidecar, key = serving.sidecar(), new_key()
    async with watching(serving.channel, tenants=["other"]) as watch:
        before = await watch.tenant("other")
        amount = next(limit.amount for limit in before.limits if limit.name == "large")
        await sidecar.ask("large", key, tenant="other", need=10, want=10)
        pool = (await sidecar.ask("large", key, tenant="other", need=amount - 10, want=amount)).pool
        assert pool.final
        assert (await sidecar.grant(pool, request_seq=1, need=amount))[:2] == ["OK", "0"]
        await set_amount(serving.channel, "other", "large", amount + 500)
        redis = serving.redis

        async def raised() -> bool:
            return bool(await redis.hget(pool.pool_key, "final") == "0")

        await wait_until(raised)
        seen = {"generation_seen": pool.generation, "allotted_cum_seen": pool.allotted_cum}
        answer = await sidecar.ask("large", key, tenant="other", need=500, **seen)
    assert (answer.pool.allotted_cum, answer.pool.final) == (amount + 490, True)


async def test_a_lowered_amount_closes_the_pool_and_calls_leases_back(serving: Serving) -> None:
    """What the closed pool never granted returns to the limit, so that the next generation fits the new amount."""
    sidecar, key = serving.sidecar(), new_key()
    await set_amount(serving.channel, "other", "large", 16_000)
    async with watching(serving.channel, tenants=["other"]) as watch:
        before = await watch.tenant("other")
        await sidecar.ask("large", key, tenant="other", need=100, want=100)
        pool = (await sidecar.ask("large", key, tenant="other", need=9_000, want=9_000)).pool
        assert (await sidecar.grant(pool, request_seq=1, need=200))[1] == "200"
        await set_amount(serving.channel, "other", "large", 1_000)
        await watch.tenant("other", after=before.change)
        recall = (await watch.until(lambda message: message.recall.key_hash == key)).recall
        assert (recall.tenant, recall.limit) == ("other", "large")
        redis = serving.redis

        async def closed() -> bool:
            return bool(await redis.hget(pool.pool_key, "closed") == "1")

        await wait_until(closed)
        assert (await sidecar.grant(pool, request_seq=2, need=1))[:2] == ["ERR", "CLOSED"]
        lost = {"generation_seen": pool.generation, "pool_error": limits_pb2.POOL_ERROR_CLOSED}
        answers: list[limits_pb2.AllotAnswer] = []

        async def reopened() -> bool:
            answers.append(await sidecar.ask("large", key, tenant="other", need=1, **lost))
            return answers[-1].HasField("pool")

        await wait_until(reopened)
    assert answers[-1].pool.generation == pool.generation + 1
    assert answers[-1].window.amount == 1_000
    assert answers[-1].window.allotted <= 1_000


async def test_setting_the_clock_waits_for_every_sidecar(serving: Serving) -> None:
    """SetClock returns after each connected sidecar said that it runs on the setting; one that stays silent is cut."""
    admin = admin_pb2_grpc.AdminServiceStub(serving.channel)
    async with watching(serving.channel) as quick, watching(serving.channel) as silent:
        await quick.tenant("acme")
        await silent.tenant("acme")
        silent.applies_clock = False
        answer = await admin.SetClock(admin_pb2.SetClockRequest(request_id="c1", speed_milli=2_000))
        heard = [message.clock for message in quick.heard if message.HasField("clock")]
        assert [(clock.version, clock.speed_milli) for clock in heard] == [(answer.version, 2_000)]
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(silent.call.code(), 60) and await silent.call.read()
        versions = itertools.count(2)

        async def set_again() -> float:
            began = time.monotonic()
            await admin.SetClock(admin_pb2.SetClockRequest(request_id=f"c{next(versions)}", speed_milli=1_000))
            return time.monotonic() - began

        assert await quickest(set_again, bound_s=1.0) < 1.0, "who was cut is not waited for"
        assert quick.call.done() is False


async def test_a_stream_must_begin_with_a_hello_that_is_understood(serving: Serving) -> None:
    """Another version, a nameless holder, or no hello at all is refused with the reason."""
    refusals = []
    for hello in ({"protocol_version": 2}, {"holder": b"x"}):
        watch = Watch(serving.channel, **hello)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.listen()
        refusals.append(caught.value.code())
    assert refusals == [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT]


async def test_heartbeats_go_on_while_the_ledger_works(serving: Serving) -> None:
    """While calls of 2,000 asks are served, heartbeats keep coming, in order; the longest gap is printed."""
    sidecar = serving.sidecar()

    async def longest_gap() -> float:
        requests = [[sidecar.entry("large", new_key()) for _ in range(2_000)] for _ in range(4)]
        begin = len(watch.heard)
        for entries in requests:
            await sidecar.send(*entries)
        beats = [message.heartbeat.now_us for message in watch.heard[begin:] if message.HasField("heartbeat")]
        assert beats == sorted(beats)
        gaps_ms = sorted((second - first) // 1000 for first, second in itertools.pairwise(beats))
        print(f"heartbeats under load: median gap {gaps_ms[len(gaps_ms) // 2]} ms, longest {gaps_ms[-1]} ms")  # noqa: T201
        return gaps_ms[-1] / 1_000

    async with watching(serving.channel) as watch:
        await watch.tenant("acme")
        assert await quickest(longest_gap, bound_s=2.0) < 2.0


async def test_an_order_to_sidecars_tells_who_did_it_and_who_was_silent(serving: Serving) -> None:
    """Each stream hears it once, limits sent anew before it; the answer adds up; a repeat is no new order."""
    async with watching(serving.channel) as busy, watching(serving.channel) as silent:
        await busy.tenant("acme")
        await silent.tenant("acme")
        stub = admin_pb2_grpc.AdminServiceStub(serving.channel)
        request = admin_pb2.InvalidateCachesRequest(request_id=secrets.token_hex(8), tenant="acme")
        call = asyncio.ensure_future(stub.InvalidateCaches(request, timeout=20))
        order = (await busy.until(lambda message: message.HasField("cache_order"))).cache_order
        done = limits_pb2.CacheOrderDone(order_id=order.order_id, keys=3)
        busy.say(limits_pb2.WatchLimitsRequest(cache_done=done))
        answer = await call
        assert (answer.sidecars, answer.pools) == (1, 3)
        assert answer.sidecars_silent >= 1
        assert (order.action, order.tenant) == (limits_pb2.CACHE_ACTION_INVALIDATE, "acme")
        kinds = [message.tenant.tenant or message.WhichOneof("message") for message in busy.heard]
        assert kinds[: kinds.index("cache_order")].count("acme") == 2
        assert await stub.InvalidateCaches(request, timeout=20) == answer
        assert [message.WhichOneof("message") for message in busy.heard].count("cache_order") == 1


async def test_who_a_lost_pool_refused_hears_of_units_from_the_ledger(serving: Serving) -> None:
    """Units that come back after a flush find no pool that could tell: the ledger tells everybody, soon."""
    owner, key = serving.sidecar(), new_key()
    lease = await owner.ask("large", key, need=100, want=100)
    pool = (await serving.sidecar().ask("large", key, need=15_900, want=15_900)).pool
    assert pool.final
    await serving.redis.delete(pool.pool_key, pool.holders_key)
    async with watching(serving.channel) as watch:
        await watch.tenant("acme")
        await owner.give_back(lease.window.window_id, 50)
        notice = (await watch.until(lambda message: message.HasField("units"))).units
    assert (notice.tenant, notice.limit, notice.key_hash) == ("acme", "large", key)
