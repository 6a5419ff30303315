"""What is taken back after its period was billed: the invoice stands, the next one gives the money back."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from billing_bench import amounts, catalogue, use
from tollkeeper_ledger.services.usage_voids import void_usage
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from billing_bench import BillingBench

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)
MILLION = 1_000_000


@pytest.mark.asyncio
async def test_a_void_after_the_close_is_given_back_on_the_next_invoice(bench: BillingBench) -> None:
    """A record voided in its own period is not billed; one voided later is a negative line that names its period."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    middle = bench.start + HOUR / 2

    async def void(name: str) -> None:
        async with transaction(bench.ingest_pool) as conn:
            now = await ledger_now(conn)
            done = await void_usage(conn, bench.ingest, uuid.UUID(int=5), tenant="code", ids=[name], now=now)
            assert done == (1, 0)

    uses = [
        use("kept", middle, context_tokens=2 * MILLION),
        use("later", middle, context_tokens=3 * MILLION),
        use("at-once", middle, context_tokens=50 * MILLION),
    ]
    await bench.set_now(middle + timedelta(minutes=1))
    await bench.send(log, *uses, watermark=bench.start)
    await void("at-once")
    for hour in (1, 2):
        await bench.set_now(bench.start + hour * HOUR + GRACE)
        await bench.send(
            log, use(f"mark-{hour}", bench.start + hour * HOUR, context_tokens=0), watermark=bench.start + hour * HOUR
        )
        await bench.run()
        if hour == 1:
            first = await bench.documents("code")
            await void("later")
    documents = await bench.documents("code")
    assert documents[0] == first[0]
    assert amounts(documents[0])["context_tokens"] == 4 * 250
    (late,) = [line for line in documents[1]["lines"] if line["late"]]
    assert (late["amount_minor"], late["quantity"]) == (-3 * 250, -3 * MILLION)
