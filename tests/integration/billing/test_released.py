"""What is released from quarantine is billed with its period, or on the next invoice where that is closed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from billing_bench import amounts, catalogue, use
from quarantine_support import keys_of, release
from tollkeeper_ledger.domain.usage_quarantine import ActOutcome
from usage_faults import refusing

if TYPE_CHECKING:
    from billing_bench import BillingBench

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)
MILLION = 1_000_000


@pytest.mark.asyncio
async def test_what_is_released_is_billed_once_in_its_period_or_late(bench: BillingBench) -> None:
    """Released before the close it stands on its period's invoice; after it, on a line of the next that names it."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    middle = bench.start + HOUR / 2
    await bench.set_now(middle)
    async with refusing(bench, "usage_record", "NEW.id LIKE '%-poison'", "data_exception"):
        await bench.send(
            log,
            use("good", middle, context_tokens=2 * MILLION),
            use("early-poison", middle, context_tokens=3 * MILLION),
            use("late-poison", middle, context_tokens=5 * MILLION),
            watermark=bench.start,
        )
    (early,) = await release(bench, keys_of(log, 2))
    for hour in (1, 2):
        end = bench.start + hour * HOUR
        await bench.set_now(end + GRACE)
        await bench.send(log, use(f"mark-{hour}", end, context_tokens=0), watermark=end)
        await bench.run()
        if hour == 1:
            first = await bench.documents("code")
            (late,) = await release(bench, keys_of(log, 3))
    assert (early.outcome, late.outcome) == (ActOutcome.RELEASED, ActOutcome.RELEASED)
    documents = await bench.documents("code")
    assert documents[0] == first[0]
    assert amounts(documents[0])["context_tokens"] == 4 * 250
    (line,) = [line for line in documents[1]["lines"] if line["late"]]
    assert (line["amount_minor"], line["quantity"]) == (5 * 250, 5 * MILLION)
