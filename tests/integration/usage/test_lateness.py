# ruff: noqa: SIM300 - expected first, then actual
"""How late and how early records may be is each meter's own, declared in the catalogue and judged at receive time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tollkeeper_ledger.domain.usage import DAY_US, MINUTE_US, Problem, Verdict
from usage_bench import superuser

if TYPE_CHECKING:
    from usage_bench import Bench

pytestmark = pytest.mark.asyncio

LATE = Problem("TOO_LATE", "event_time_us")


async def test_an_outage_makes_nothing_late_and_each_meter_has_its_own_bound(bench: Bench) -> None:
    """What its sidecar received in time is stored ten days later; what was late for a meter then is not."""
    async with superuser(bench.url) as conn:
        await conn.execute("UPDATE meter SET late_max_s = 60, early_max_s = 0 WHERE name = 'requests'")
    received = bench.now_us - 10 * DAY_US
    log = await bench.new_log()
    both = (("requests", 1), ("context_tokens", 1))
    log.record(
        bench.use("in-time", received_us=received, event_us=received - MINUTE_US),
        bench.use("late", received_us=received, event_us=received - MINUTE_US - 1),
        bench.use("other", received_us=received, event_us=received - 35 * DAY_US, quantities=(("context_tokens", 1),)),
        bench.use("both", received_us=received, event_us=received - 2 * MINUTE_US, quantities=both),
        bench.use("early", received_us=received, event_us=received + 1),
    )
    outcome = await bench.ingest.append(log.cut())
    assert [Verdict(2, LATE), Verdict(4, LATE), Verdict(5, Problem("TOO_EARLY", "event_time_us"))] == list(
        outcome.verdicts
    )
    assert [(1, "in-time"), (3, "other")] == await bench.stored(log)
    async with superuser(bench.url) as conn:
        await conn.execute("UPDATE meter SET late_max_s = DEFAULT, early_max_s = DEFAULT WHERE name = 'requests'")
