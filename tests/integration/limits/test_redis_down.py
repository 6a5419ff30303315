"""The ledger while Redis is away: leases go on, nothing hangs, and pools come back with the next generation."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from limits_support import Sidecar, apply_catalogue, kind, new_key, quickest
from redis.asyncio import Redis
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper_cli.embedded import EmbeddedValkey
from tollkeeper_ledger.app import running
from tollkeeper_ledger.config import ConfigurationError
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tollkeeper_ledger.app import Running
    from tollkeeper_ledger.config import Settings


@pytest.fixture
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """Run a Valkey that a test may kill."""
    server = EmbeddedValkey(tmp_path_factory.mktemp("own"))
    server.start()
    yield server
    server.remove()


async def test_a_killed_redis_delays_no_lease_and_gives_no_unit_twice(
    ledger_settings: Settings, own_valkey: EmbeddedValkey
) -> None:
    """Killed: first leases and UNREACHABLE asks are answered at once. Back, empty: the next generation serves."""
    settings = ledger_settings.model_copy(update={"redis_url": own_valkey.url})
    async with running(settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
        await apply_catalogue(channel)
        sidecar, key = Sidecar(channel=channel, ledger=ledger), new_key()
        first = await sidecar.ask("large", key)
        pool = (await sidecar.ask("large", key)).pool
        assert (await sidecar.grant(pool, request_seq=1, need=600))[1] == "600"
        own_valkey.kill()
        began = time.monotonic()
        assert kind(await sidecar.ask("large", new_key())) == "lease"
        blind = {"generation_seen": pool.generation, "pool_error": limits_pb2.POOL_ERROR_UNREACHABLE}
        assert kind(await sidecar.ask("large", key, **blind)) == "lease"
        # Whether the ledger knows by now decides which.
        assert kind(await sidecar.ask("large", key, generation_seen=pool.generation)) in {"pool", "lease"}
        assert time.monotonic() - began < 30.0, "nothing hangs"
        await asyncio.get_running_loop().run_in_executor(None, own_valkey.start)

        async def serves() -> bool:
            lost = {"generation_seen": pool.generation, "pool_error": limits_pb2.POOL_ERROR_NO_POOL}
            answer = await sidecar.ask("large", key, **lost)
            while kind(answer) == "pool":
                reply = await Sidecar(channel=channel, ledger=ledger).grant(answer.pool, request_seq=1, need=600)
                if reply[0] == "OK":
                    granted.append(int(reply[1]))
                    generations.append(answer.pool.generation)
                    return True
                lost["generation_seen"] = answer.pool.generation
                answer = await sidecar.ask("large", key, **lost)
            return False

        granted: list[int] = []
        generations: list[int] = []
        await wait_until(serves)
        async with ledger.resources.pools.ingest.acquire() as conn:
            allotted = await conn.fetchval(
                "SELECT allotted FROM limit_window WHERE window_id = $1", first.window.window_id
            )
    assert granted == [600]
    assert generations[0] > pool.generation
    assert allotted <= 16_000


async def test_a_hanging_redis_costs_one_wait_and_then_leases_come_at_once(
    ledger_settings: Settings, own_valkey: EmbeddedValkey
) -> None:
    """Stopped: known as down within half a second; every ask is then a lease, none waits. Back: pools within 2 s."""
    settings = ledger_settings.model_copy(update={"redis_url": own_valkey.url})
    async with running(settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
        await apply_catalogue(channel)
        sidecar = Sidecar(channel=channel, ledger=ledger)
        keys = [new_key() for _ in range(40)]
        for key in keys:
            await sidecar.ask("large", key)
        seconds: list[float] = []
        back: list[float] = []

        async def known_as_down() -> float:
            os.kill(own_valkey.pid, signal.SIGSTOP)
            try:
                asked = time.monotonic()
                await sidecar.ask("large", keys[0])
                await wait_until(lambda: is_up(ledger, expected=False))
                known_s = time.monotonic() - asked
                for key in keys[1:]:
                    began = time.monotonic()
                    assert kind(await sidecar.ask("large", key)) == "lease"
                    seconds.append(time.monotonic() - began)
            finally:
                os.kill(own_valkey.pid, signal.SIGCONT)
            began = time.monotonic()
            await wait_until(lambda: is_up(ledger, expected=True))
            back.append(time.monotonic() - began)
            return known_s

        assert await quickest(known_as_down, bound_s=0.75) < 0.75, "one wait of 250 ms, and half a second"
        assert statistics.median(seconds) < 0.2, "none waits for the answer of Redis, 250 ms"
        assert min(back) <= 2.0
        assert kind(await sidecar.ask("large", keys[1])) == "pool"


async def test_a_demoted_redis_strands_one_allotment_at_most(
    ledger_settings: Settings, own_valkey: EmbeddedValkey
) -> None:
    """A primary that became a replica refuses one opening; from then on asks get leases, and nothing more is opened."""
    settings = ledger_settings.model_copy(update={"redis_url": own_valkey.url})
    async with (
        running(settings) as ledger,
        grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel,
        Redis.from_url(own_valkey.url) as client,
    ):
        await apply_catalogue(channel)
        sidecar, key = Sidecar(channel=channel, ledger=ledger), new_key()
        await sidecar.ask("large", key)
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
        asked = [kind(await sidecar.ask("large", key))]
        for _ in range(20):
            lost = {"generation_seen": 1 << 32 | 1, "pool_error": limits_pb2.POOL_ERROR_NO_POOL}
            asked.append(kind(await sidecar.ask("large", key, **lost)))
        await client.execute_command("REPLICAOF", "NO", "ONE")
        assert asked.count("pool") <= 1
        assert set(asked[1:]) == {"lease"}
        await wait_until(lambda: is_up(ledger, expected=True))


async def is_up(ledger: Running, *, expected: bool) -> bool:
    """Tell whether the ledger knows of Redis what is expected."""
    return ledger.resources.redis.is_up() is expected


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_redis_that_evicts_keys_is_refused_by_name(
    ledger_settings: Settings, own_valkey: EmbeddedValkey, policy: str
) -> None:
    """A bucket that is gone counts as full: the ledger does not start on a server that may throw keys away."""
    async with Redis.from_url(own_valkey.url) as client:
        await client.config_set("maxmemory-policy", policy)
    settings = ledger_settings.model_copy(update={"redis_url": own_valkey.url})
    with pytest.raises(ConfigurationError, match=rf"TOLLKEEPER_REDIS_URL.*{policy}.*maxmemory-policy noeviction"):
        async with running(settings):
            pass


@pytest.mark.parametrize("url", ["http://h", "redis+sentinel://h:1", "redis+cluster://h:1/x"])
async def test_a_redis_url_that_can_not_be_read_is_refused_with_its_forms(ledger_settings: Settings, url: str) -> None:
    """The error names the setting and every form that it can have."""
    with pytest.raises(ConfigurationError, match=r"TOLLKEEPER_REDIS_URL.*redis\+cluster://"):
        async with running(ledger_settings.model_copy(update={"redis_url": url})):
            pass
