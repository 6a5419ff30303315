"""Kill -9 of sidecar, ledger and Postgres while records flow: acknowledged = stored = billable, exactly.

`KILLS` says how many, 60 by default; with `KILLS_SECONDS` it ends by then. In every fourth round the ledger is killed
while the answer of a batch that it has just committed is on its way, and the sidecar lives on: commits of unknown
outcome are met for certain.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
from kill_support import Flow, answers_lost
from platform_support import AddedSidecar, Platform
from ports import free_port
from tcp_proxy import REPLIES_LOST, Proxy
from tollkeeper.quota.v1 import usage_pb2
from tollkeeper_cli.embedded import ProcessError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CATALOGUE = Path(__file__).parents[1] / "e2e" / "catalogue.yaml"
KILLS = int(os.environ.get("KILLS", "60"))
SECONDS = float(os.environ.get("KILLS_SECONDS", "inf"))
SEED = int(os.environ.get("KILLS_SEED", "1"))
TENANTS = ("code", "shared")
VICTIMS = ("sidecar", "ledger", "postgres")
WAIT_S = 120.0


@dataclass
class Site:
    """A stack whose sidecar stands behind a line to the ledger that can lose answers."""

    platform: Platform
    line: Proxy
    sidecar: AddedSidecar
    http_port: int
    killed: Counter[str] = field(default_factory=Counter)
    ambiguous: int = 0

    async def kill(self, victim: str) -> None:
        """Kill one process."""
        if victim == "sidecar":
            self.ambiguous += await answers_lost(self.http_port)
        stack = self.platform.stack
        kills = {"sidecar": self.sidecar.kill, "ledger": stack.kill_ledger, "postgres": stack.kill_postgres}
        await asyncio.to_thread(kills[victim])
        self.killed[victim] += 1

    async def start(self, victim: str) -> None:
        """Start one process; the ledger again where it found no Postgres to talk to yet."""
        stack = self.platform.stack
        starts = {"sidecar": self.sidecar.start, "ledger": stack.start_ledger, "postgres": stack.start_postgres}
        give_up_s = time.monotonic() + WAIT_S
        while True:
            try:
                return await asyncio.to_thread(starts[victim])
            except ProcessError:
                if time.monotonic() > give_up_s:
                    raise

    async def committed(self) -> int:
        """Ask Postgres how far all producers are committed, together."""
        conn = await asyncpg.connect(self.platform.stack.environment()["TOLLKEEPER_DATABASE_URL"])
        try:
            return int(await conn.fetchval("SELECT coalesce(sum(committed_seq), 0) FROM tollkeeper.producer"))
        finally:
            await conn.close()

    async def lose_an_answer(self) -> None:
        """Kill the ledger when it has committed a batch whose answer has not arrived."""
        self.line.use(REPLIES_LOST)
        before = await self.committed()
        async with asyncio.timeout(WAIT_S):
            while await self.committed() == before:  # noqa: ASYNC110 - Postgres tells nobody
                await asyncio.sleep(0.01)
        await self.kill("ledger")
        self.line.cut()
        self.line.heal()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Run Postgres, Valkey, a ledger, and a sidecar behind a line to it; all are this test's own."""
    platform = Platform(tmp_path / "platform")
    try:
        platform.start()
        platform.stack.kill_sidecar()
        ledger_port = int(platform.stack.addresses.ledger_listen.rpartition(":")[2])
        http_port = free_port()
        with Proxy(ledger_port) as line:
            sidecar = AddedSidecar(
                platform.stack,
                "killed",
                {
                    "TOLLKEEPER_LEDGER_ADDRESS": f"127.0.0.1:{line.port}",
                    "TOLLKEEPER_SIDECAR_HTTP": f"127.0.0.1:{http_port}",
                    "TOLLKEEPER_SHIP_INTERVAL_MS": "20",
                },
            )
            platform.added.append(sidecar)
            asyncio.run(platform.apply(CATALOGUE.read_text()))
            sidecar.start()
            yield Site(platform, line, sidecar, http_port)
    finally:
        platform.stop()


async def round_of_kills(site: Site, chance: random.Random, *, aimed: bool) -> None:
    """Kill each once, in a random order with random gaps, some of them back before the next one dies."""
    victims, dead = list(VICTIMS), []
    chance.shuffle(victims)
    if aimed:
        await site.lose_an_answer()
        victims, dead = ["postgres"], ["ledger"]
    for victim in victims:
        await asyncio.sleep(chance.uniform(0.0, 0.15))
        await site.kill(victim)
        # The ledger can't start without Postgres.
        if chance.random() < 0.2 and (victim != "ledger" or "postgres" not in dead):
            await site.start(victim)
        else:
            dead.append(victim)
    if "postgres" in dead:
        await site.start("postgres")
    await asyncio.gather(*(site.start(victim) for victim in dead if victim != "postgres"))


async def flowing(flows: list[Flow], task: asyncio.Task[None]) -> None:
    """Wait until every flow has had a batch acknowledged since now."""
    for flow in flows:
        flow.moved.clear()
    waiting = asyncio.gather(*(flow.moved.wait() for flow in flows))
    async with asyncio.timeout(WAIT_S):
        await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        waiting.cancel()
        task.result()


async def run_kills(site: Site, flows: list[Flow], chance: random.Random, report: Callable[[str], None]) -> None:
    """Kill until `KILLS` is reached, or the time is up, while records flow; wait for the flow before each round."""
    stop, until_s = asyncio.Event(), time.monotonic() + SECONDS
    flow = asyncio.create_task(all_of(flows, stop))
    await flowing(flows, flow)
    for number in itertools.count():
        await round_of_kills(site, chance, aimed=number % 4 == 0)
        await flowing(flows, flow)
        if site.killed.total() >= KILLS or time.monotonic() > until_s:
            break
        if number % 40 == 39:
            report(f"so far {dict(site.killed)}")
    stop.set()
    await flow
    site.ambiguous += await answers_lost(site.http_port)


async def all_of(flows: list[Flow], stop: asyncio.Event) -> None:
    """Run all flows; the first that fails ends all."""
    async with asyncio.TaskGroup() as group:
        for flow in flows:
            group.create_task(flow.run(stop))


async def check(platform: Platform, tenant: str, acknowledged: dict[str, int]) -> None:
    """Compare what was acknowledged of a tenant with what is stored, rolled up and billable: equal, per id."""
    records = await platform.until_stored(tenant, len(acknowledged))
    stored = Counter(record.id for record in records)
    assert set(acknowledged) - set(stored) == set(), "acknowledged, but not stored"
    assert set(stored) - set(acknowledged) == set(), "stored, but never acknowledged"
    assert [name for name, count in stored.items() if count > 1] == [], "stored twice"
    positions = Counter((record.producer_id, record.seq) for record in records)
    assert [position for position, count in positions.items() if count > 1] == [], "one number, two records"
    assert {record.id: record.units["tokens"] for record in records} == acknowledged
    total = sum(acknowledged.values())
    assert (await platform.rolled_up(tenant))["tokens"] == total
    assert (await platform.billable(tenant))["tokens"] == total


async def check_chain(platform: Platform) -> None:
    """Recompute chain and sums; nothing was refused, and no number was taken by a hole."""
    assert await platform.findings() == []
    conn = await asyncpg.connect(platform.stack.environment()["TOLLKEEPER_DATABASE_URL"])
    try:
        row = await conn.fetchrow(
            "SELECT count(*) > 0 AS any, sum(holes)::bigint AS holes, sum(conflicts)::bigint AS conflicts,"
            " sum(quarantined)::bigint AS quarantined FROM tollkeeper.usage_chain"
        )
    finally:
        await conn.close()
    assert dict(row) == {"any": True, "holes": 0, "conflicts": 0, "quarantined": 0}


async def test_kills_of_everything_lose_nothing_and_bill_nothing_twice(
    site: Site, report: Callable[[str], None]
) -> None:
    """Whatever dies when, each acknowledged record is stored, rolled up and billed once, no other; the chain holds."""
    chance = random.Random(SEED)
    kinds = (usage_pb2.ACKNOWLEDGEMENT_LOCAL, usage_pb2.ACKNOWLEDGEMENT_LEDGER)
    flows = [
        Flow(site.platform, site.sidecar.target, tenant, kind, random.Random(chance.random()))
        for tenant in TENANTS
        for kind in kinds
    ]
    begun_s = time.monotonic()
    await run_kills(site, flows, chance, report)
    took_s = time.monotonic() - begun_s
    acknowledged = {
        tenant: {name: units for flow in flows if flow.tenant == tenant for name, units in flow.acknowledged.items()}
        for tenant in TENANTS
    }
    for tenant in TENANTS:
        await check(site.platform, tenant, acknowledged[tenant])
    await check_chain(site.platform)
    count = sum(map(len, acknowledged.values()))
    report(
        f"kill -9: {dict(site.killed)} in {took_s:.0f} s; {count} records acknowledged = stored = billable; "
        f"{site.ambiguous} commits whose answer was lost; {sum(flow.retries for flow in flows)} calls repeated"
    )
    total = site.killed.total()
    assert total >= KILLS or took_s >= SECONDS
    assert min(site.killed[victim] for victim in VICTIMS) >= total // 4
    assert site.ambiguous > 0, "no commit's answer was lost"
