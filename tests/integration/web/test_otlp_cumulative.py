# ruff: noqa: SIM300 - expected first, then actual
"""Counters that only grow become usage: each amount once, whatever is sent again, restarted or killed."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from typing import TYPE_CHECKING, Any

import httpx
from http_support import METERED, findings, served, stored
from ledger_process import process
from otlp_support import MAPPING, serving, text
from ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tollkeeper_ledger.config import Settings

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS


def reading(
    series: str, total: int | None, *, start: int, at: int, metric: str = "calls", **changed: Any
) -> dict[str, Any]:
    """Give an export of one reading of a series, whose counter began at `start`."""
    point = {
        "startTimeUnixNano": str(start),
        "timeUnixNano": str(at),
        "asInt": None if total is None else str(total),
        "attributes": [text("tenant.id", "acme"), text("http.route", series)],
        **changed,
    }
    data = {"aggregationTemporality": 2, "isMonotonic": True, "dataPoints": [point]}
    resource = {"attributes": [text("service.instance.id", series)]}
    return {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": [{"name": metric, "sum": data}]}]}]}


class Teller:
    """Sends readings, and tells what each added."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._known: set[str] = set()

    async def adds(self, export: dict[str, Any]) -> int | str | None:
        """Send; gives what was stored by it, None for nothing, or what was said."""
        self._known |= (await stored(self._http)).keys()
        answer = (await self._http.post("/v1/metrics", json=export)).json()
        if answer:
            assert answer["partialSuccess"]["rejectedDataPoints"] == "1"
            return str(answer["partialSuccess"]["errorMessage"])
        after = await stored(self._http)
        new = [after[name]["units"] for name in after.keys() - self._known]
        assert len(new) <= 1
        return next((sum(units.values()) for units in new), None)


async def test_each_amount_of_a_growing_counter_is_counted_once(ledger_settings: Settings, tmp_path: Path) -> None:
    """First readings, later ones, the same again, older ones, other ones, counters that began anew."""
    now = time.time_ns()
    start, again = now - 3_000 * SECOND_NS, now - 500 * SECOND_NS
    name = secrets.token_hex(4)

    def at(second: int, total: int | None, since: int = start, **changed: Any) -> dict[str, Any]:
        return reading(name, total, start=since, at=start + second * SECOND_NS, **changed)

    async with serving(ledger_settings, tmp_path) as (_, http):
        teller = Teller(http)
        assert 5 == await teller.adds(at(10, 5))
        assert await teller.adds(at(10, 5)) is None, "the same again"
        assert 7 == await teller.adds(at(20, 12))
        assert await teller.adds(at(30, 12)) is None, "nothing was added"
        assert 8 == await teller.adds(at(40, 20))
        assert await teller.adds(at(10, 5)) is None, "the first once more"
        assert "before the last reading" in str(await teller.adds(at(15, 9)))
        assert "another value" in str(await teller.adds(at(40, 21)))
        assert 2 == await teller.adds(at(50, 2)), "it fell: it began anew"
        assert 4 == await teller.adds(at(2_600, 4, again)), "it began anew and says so"
        assert "before the last reading" in str(await teller.adds(at(60, 3)))
        assert 3 == await teller.adds(at(2_700, 7, again))
        rows = [row for row in (await stored(http)).values() if row["attributes"].get("path") == name]
        assert 5 + 7 + 8 + 2 + 4 + 3 == sum(row["units"]["requests"] for row in rows)
        assert await findings(http) == []


async def test_counting_begins_where_nobody_knows_the_start(ledger_settings: Settings, tmp_path: Path) -> None:
    """A first reading without a known start, or of one long ago, adds nothing; the next one what came since."""
    now = time.time_ns()
    async with serving(ledger_settings, tmp_path) as (_, http):
        teller = Teller(http)
        for age_ns in (100 * SECOND_NS, 40 * DAY_NS):
            name, start = secrets.token_hex(4), now - age_ns
            first = start if age_ns < DAY_NS else now - 90 * SECOND_NS
            assert await teller.adds(reading(name, 100, start=start, at=first)) is None
            assert 30 == await teller.adds(reading(name, 130, start=start, at=now - 50 * SECOND_NS))
        told = await teller.adds(reading("none", 1, start=0, at=now))
        assert "start_time_unix_nano" in str(told)


async def test_what_is_no_amount_is_told_with_the_next_reading(ledger_settings: Settings, tmp_path: Path) -> None:
    """A reading that can't be counted leaves what it says to the next one; doubles are exact."""
    now = time.time_ns()
    start = now - 100 * SECOND_NS
    name = secrets.token_hex(4)

    def sent(second: int, value: float) -> dict[str, Any]:
        return reading(name, None, start=start, at=start + second * SECOND_NS, metric="sent", asDouble=value)

    async with serving(ledger_settings, tmp_path) as (_, http):
        teller = Teller(http)
        assert 512 == await teller.adds(sent(1, 0.5))
        assert "scale" in str(await teller.adds(sent(2, 0.7)))
        assert 1_024 == await teller.adds(sent(3, 1.5))
        assert "no total of a counter" in str(await teller.adds(sent(4, 1e300)))
        assert 1_024 == await teller.adds(sent(5, 2.5))


async def test_readings_of_one_export_are_counted_in_their_order(ledger_settings: Settings, tmp_path: Path) -> None:
    """Several readings of a series in one export, in any order, add up to the last total."""
    now = time.time_ns()
    start = now - 100 * SECOND_NS
    name = secrets.token_hex(4)
    export = reading(name, 3, start=start, at=start + 1)
    points = export["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["sum"]["dataPoints"]
    for second, total in ((30, 11), (10, 4), (20, 9)):
        points.append({**points[0], "timeUnixNano": str(start + second * SECOND_NS), "asInt": str(total)})
    async with serving(ledger_settings, tmp_path) as (_, http):
        for _ in range(2):
            assert (await http.post("/v1/metrics", json=export)).json() == {}
        rows = [row for row in (await stored(http)).values() if row["attributes"].get("path") == name]
        assert [1, 2, 3, 5] == sorted(row["units"]["requests"] for row in rows)


class Counter:
    """An application's counter: it grows, is sent until somebody answers, and begins anew now and then."""

    def __init__(self, number: int) -> None:
        self.name = f"kill-{number}-{secrets.token_hex(4)}"
        self.counted = 0
        self._chance = random.Random(number)
        self._last_ns = 0
        self._start = self._now()
        self._total = 0

    def _now(self) -> int:
        """Give the time; it goes forward, whatever the machine's clock does."""
        self._last_ns = max(self._last_ns + 1_000, time.time_ns())
        return self._last_ns

    async def tell(self, http: httpx.AsyncClient) -> None:
        """Count something and send what it stands at; a reading that nobody answered is sent again, or a later one."""
        await self._answered(http)
        if self._chance.random() < 0.1:
            self._start, self._total = self._now(), 0
        while True:
            grown = self._chance.randint(1, 9)
            self._total += grown
            self.counted += grown
            if await self._send(http) or self._chance.random() < 0.5:
                return

    async def _answered(self, http: httpx.AsyncClient) -> None:
        """Send what it stands at until it is answered: what a counter said last before it began anew must be told."""
        while self._total and not await self._send(http):  # noqa: ASYNC110 - a ledger that is dead tells nobody
            await asyncio.sleep(0.01)

    async def _send(self, http: httpx.AsyncClient) -> bool:
        export = reading(self.name, self._total, start=self._start, at=self._now())
        for _ in range(self._chance.randint(1, 2)):
            try:
                answer = await http.post("/v1/metrics", json=export)
            except httpx.TransportError:
                continue
            if answer.status_code == 200:
                assert answer.json() == {}
                return True
        return False

    async def settle(self, http: httpx.AsyncClient) -> None:
        """Tell the last total, to a ledger that lives."""
        async with asyncio.timeout(120):
            await self._answered(http)


async def test_killed_ledgers_count_growing_counters_once(ledger_settings: Settings, tmp_path: Path) -> None:
    """Kill -9 with exports in flight, sent again or not: what is stored is what was counted, to the unit."""
    path = tmp_path / "otlp.toml"
    path.write_text(MAPPING)
    environment = {"TOLLKEEPER_OTLP_MAPPING": str(path)}
    port, http_port, chance = free_port(), free_port(), random.Random(9)
    counters = [Counter(number) for number in range(4)]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", timeout=60) as http:
        for kill in range(3):
            async with process(ledger_settings, port, http_port=http_port, environment=environment) as ledger:
                await served(http)
                if kill == 0:
                    await http.post("/v1/catalogue:apply", json={"request_id": "grow", "yaml": METERED})
                if kill == 2:
                    await asyncio.gather(*(counter.settle(http) for counter in counters))
                    rows = (await stored(http)).values()
                    for counter in counters:
                        own = [
                            row["units"]["requests"] for row in rows if row["attributes"].get("path") == counter.name
                        ]
                        assert counter.counted == sum(own)
                    assert await findings(http) == []
                    break
                told = [asyncio.create_task(_keep_telling(counter, http)) for counter in counters]
                await asyncio.wait(told, timeout=chance.uniform(0.5, 1.5))  # the moment of death is drawn
                ledger.kill()
                await ledger.wait()
                for task in told:
                    task.cancel()
                await asyncio.gather(*told, return_exceptions=True)


async def _keep_telling(counter: Counter, http: httpx.AsyncClient) -> None:
    while True:
        await counter.tell(http)
