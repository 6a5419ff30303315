"""Kill -9 of the sidecar and of the ledger in the middle of a replay: nothing lost, nothing billed twice."""

from __future__ import annotations

import asyncio
import gzip
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tollkeeper_cli.replay.driver import Driver, Reserved, Settled
from tollkeeper_cli.replay.model import MICROSECONDS, ReplayRequest
from tollkeeper_cli.replay.pace import RunningPace
from tollkeeper_cli.replay.sidecar import CALL_TIMEOUT_S as SIDECAR_TIMEOUT_S
from tollkeeper_cli.replay.sidecar import SidecarCalls
from tollkeeper_client import AsyncClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from platform_support import Platform

ROOT = Path(__file__).resolve().parents[2]
TRACE = ROOT / "examples" / "data" / "AzureLLMInferenceTrace_conv.csv.gz"
CATALOGUE = ROOT / "tests" / "e2e" / "catalogue.yaml"
SEED = 20_231_116
REQUESTS = 2_800
SECONDS = 28
OUTPUT_CAP = 2_048
KILLS = 10


def workload(start_us: int) -> list[ReplayRequest]:
    """Return the first requests of the real trace, spread evenly, each open for 0.2 to 2.5 s."""
    lines = gzip.decompress(TRACE.read_bytes()).decode().splitlines()[1 : REQUESTS + 1]
    requests = []
    for number, line in enumerate(lines):
        _, context, generated = line.split(",")
        requests.append(
            ReplayRequest(
                number=number,
                request_id=f"kill/{number}",
                tenant="code" if number % 3 else "shared",
                at_us=start_us + number * SECONDS * MICROSECONDS // REQUESTS,
                duration_us=200_000 + int(generated) * 2_300,
                reserve={"requests": 1, "tokens": int(context) + OUTPUT_CAP},
                settle={"requests": 1, "tokens": int(context) + int(generated)},
            )
        )
    return requests


@dataclass
class Watched:
    """Calls that know which reservations are open."""

    inner: SidecarCalls
    open_tokens: set[str] = field(default_factory=set)
    settled_after_kill: int = 0
    open_at_kill: set[str] = field(default_factory=set)

    async def reserve(self, request: ReplayRequest) -> Reserved:
        """Reserve, and remember the token."""
        answer = await self.inner.reserve(request)
        if answer.token:
            self.open_tokens.add(answer.token)
        return answer

    async def settle(self, token: str, request: ReplayRequest) -> Settled:
        """Settle, and count whether a sidecar had died in between."""
        answer = await self.inner.settle(token, request)
        self.open_tokens.discard(token)
        self.settled_after_kill += token in self.open_at_kill
        return answer


async def kill_at_random(platform: Platform, calls: Watched, chance: random.Random) -> Counter[str]:
    """Kill and start again ten times at random points, at least four times each process; return how often."""
    victims = ["sidecar"] * 4 + ["ledger"] * 4 + chance.choices(["sidecar", "ledger"], k=KILLS - 8)
    chance.shuffle(victims)
    killed: Counter[str] = Counter()
    for victim in victims:
        await asyncio.sleep(chance.uniform(0.3, 1.5))
        if victim == "sidecar":
            calls.open_at_kill |= calls.open_tokens
            await asyncio.to_thread(platform.stack.kill_sidecar)
            await asyncio.to_thread(platform.stack.start_sidecar)
        else:
            await asyncio.to_thread(platform.stack.kill_ledger)
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            await asyncio.to_thread(platform.stack.start_ledger)
        killed[victim] += 1
    return killed


async def test_ten_kills_lose_nothing_and_bill_nothing_twice(platform: Platform, report: Callable[[str], None]) -> None:
    """After ten kill -9 under load every acknowledged settlement is stored once, rolled up once, and billed once."""
    chance = random.Random(SEED)
    await platform.apply(CATALOGUE.read_text())
    start_us = platform.now().ToMicroseconds()
    async with AsyncClient(platform.target, timeout_s=SIDECAR_TIMEOUT_S) as client:
        calls = Watched(inner=SidecarCalls(client, recorded_times=False))
        driver = Driver(calls)
        replay = asyncio.create_task(driver.run_timed(workload(start_us), RunningPace(start_us=start_us, speed=1)))
        killed = await kill_at_random(platform, calls, chance)
        tally = await replay

    assert killed.total() == KILLS
    assert tally.retries > 0, "the kills hit nothing"
    assert calls.settled_after_kill > 0, "no reservation was open at a kill"
    assert tally.admitted + tally.denied == REQUESTS
    assert {reason for _, _, reason in tally.denials()} <= {"AUTHORITY_UNREACHABLE"}, "no limit was near its amount"
    assert tally.admitted > REQUESTS // 10, "a slow machine is away for longer, yet not for ever"
    for tenant, counts in tally.tenants.items():
        records = await platform.until_stored(tenant, len(counts.record_ids))
        stored = Counter(record.id for record in records)
        assert sorted(counts.record_ids) == sorted(set(counts.record_ids)), "one outcome per reservation"
        assert set(counts.record_ids) - set(stored) == set(), "acknowledged, but not stored"
        assert set(stored) - set(counts.record_ids) == set(), "stored, but never acknowledged"
        assert max(stored.values()) == 1
        positions = Counter((record.producer_id, record.seq) for record in records)
        assert max(positions.values()) == 1
        raw: Counter[str] = Counter()
        for record in records:
            raw.update(dict(record.units))
        assert dict(counts.units) == dict(raw)
        assert dict(raw) == await platform.rolled_up(tenant)
        assert raw["tokens"] == (await platform.billable(tenant))["tokens"]
    report(
        f"kill -9: {dict(killed)}; {tally.admitted} records acknowledged = stored = billable; "
        f"{tally.denied} denied while an authority was away; {tally.retries} calls "
        f"repeated; {calls.settled_after_kill} reservations settled after their sidecar had died"
    )
