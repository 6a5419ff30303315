"""A ledger that is killed while records come in over HTTP stores each of them once."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
from http_support import findings, served, stored
from ledger_process import process
from ports import free_port

if TYPE_CHECKING:
    from tollkeeper_ledger.config import Settings

CATALOGUE = """
version: 1
seller: {id: default, name: Example GmbH, invoice_prefix: TK, currency: USD, time_zone: UTC}
meters: [{name: requests, unit: requests, aggregation: sum}]
plans: [{name: free, currency: USD, billing_interval: {unit: month, count: 1}}]
tenants: [{id: acme, name: Acme, plan: free}]
"""
KILLS = 2
BATCHES, RECORDS = 40, 5


async def send(http: httpx.AsyncClient, batch: list[dict[str, Any]]) -> list[str] | None:
    """Send a batch once; None where nobody knows what became of it."""
    try:
        answer = await http.post("/v1/usage", json={"records": batch})
    except httpx.TransportError:
        return None
    return [one["outcome"] for one in answer.json()["results"]] if answer.status_code == 200 else None


def batches(kill: int) -> list[list[dict[str, Any]]]:
    """Give batches of records of their own."""
    now = datetime.now(UTC).isoformat()
    return [
        [
            {
                "id": f"k-{kill}-{batch}-{number}",
                "tenant": "acme",
                "event_time": now,
                "quantities": [{"meter": "requests", "units": 1 + number}],
            }
            for number in range(RECORDS)
        ]
        for batch in range(BATCHES)
    ]


async def interrupted(
    http: httpx.AsyncClient, ledger: asyncio.subprocess.Process, sent: list[list[dict[str, Any]]], chance: random.Random
) -> list[list[str] | None]:
    """Send all batches, kill the ledger at a random moment, and give what was answered of each."""
    answers, delay_s = chance.randrange(1, BATCHES // 2), chance.uniform(0, 0.02)
    calls = [asyncio.create_task(send(http, batch)) for batch in sent]
    done: set[asyncio.Task[list[str] | None]] = set()
    while len(done) < answers:
        done, _ = await asyncio.wait(calls, timeout=0.001, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(delay_s)  # the moment of death is drawn
    ledger.kill()
    return list(await asyncio.gather(*calls))


async def test_a_killed_ledger_counts_a_retried_record_once(ledger_settings: Settings) -> None:
    """Kill -9 with calls in flight, send all again after the restart: what was answered is stored, nothing twice."""
    port, http_port, chance = free_port(), free_port(), random.Random(5)
    sent: list[list[dict[str, Any]]] = []
    first: list[list[str] | None] = []
    ambiguous = 0
    limits = httpx.Limits(max_connections=4)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", timeout=60, limits=limits) as http:
        for kill in range(KILLS + 1):
            async with process(ledger_settings, port, http_port=http_port) as ledger:
                await served(http)
                if kill == 0:
                    await http.post("/v1/catalogue:apply", json={"request_id": "kill", "yaml": CATALOGUE})
                kept = await stored(http)
                again = await asyncio.gather(*(send(http, batch) for batch in sent))
                for batch, before, outcomes in zip(sent, first, again, strict=True):
                    assert outcomes is not None
                    if before is not None:
                        assert {one["id"] for one in batch} <= kept.keys()
                        assert set(outcomes) == {"RECORD_OUTCOME_DUPLICATE"}
                    ambiguous += before is None and "RECORD_OUTCOME_DUPLICATE" in outcomes
                if kill < KILLS:
                    sent = batches(kill)
                    first = await interrupted(http, ledger, sent, chance)
                    continue
                kept = await stored(http)
                assert len(kept) == KILLS * BATCHES * RECORDS
                total = sum(row["units"]["requests"] for row in kept.values())
                assert KILLS * BATCHES * sum(range(1, RECORDS + 1)) == total
                assert str(total) in json.dumps((await http.get("/v1/tenants/acme/usage")).json())
                assert await findings(http) == []
    print(f"{KILLS} kills, {ambiguous} batches committed without an answer")  # noqa: T201 - a figure, not a bound
