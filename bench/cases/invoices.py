"""Invoices of tenants with a fee and five meters, called as the command line calls: runs, previews and PDFs."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import typst
from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc, usage_pb2, usage_pb2_grpc

from bench.cases.ingest import open_producer, send, uuid7s
from bench.frame import Bench, Goal, Sample
from bench.stage import SELLER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import asyncpg

    from bench.cases.ingest import Producer
    from bench.frame import Effort
    from bench.stage import Stage

_METERS = tuple(f"bench_billed_{number}" for number in range(5))
_LINES = len(_METERS) + 1
_PRICES = (
    'per: 1000000, unit_price: "2.50", included: 1000000',
    'unit_price: "0.0004"',
    'model: graduated, tiers: [{up_to: 10000, unit_price: "0.01"}, {unit_price: "0.008"}]',
    'model: volume, tiers: [{up_to: 10000, unit_price: "0.01"}, {unit_price: "0.008"}]',
    'model: package, size: 1000, price: "0.50", included: 100000',
)
_PLAN = (
    "\n  - name: bench-invoices\n    currency: USD\n    billing_interval: {unit: hour, count: 1}\n"
    '    grace: {unit: minute, count: 1}\n    fees: [{name: base, amount: "20.00"}]\n    prices:'
    + "".join(f"\n      - {{meter: {meter}, {price}}}" for meter, price in zip(_METERS, _PRICES, strict=True))
)
_AGO = timedelta(hours=1, minutes=10)
"""Since when tenants are subscribed: one hour is over and due, the next is not."""
_RUNNING = timedelta(minutes=10)
"""Since when tenants are whose first hour runs."""
_TENANTS_A_CALL, _RECORDS_A_CALL = 1_000, 1_000
_TIMEOUT_S = 600.0
_PER_S = 100_000 / 120
_CPU_US = 2 * 120e6 / 100_000

# Other benches' tenants are billed by months of UTC, and what they owe is no part of this.
_NOTHING_DUE = (
    "UPDATE subscription SET billed_until = date_trunc('month', now()) WHERE billed_until < date_trunc('month', now())"
)

_FLOOR_TABLES = """
CREATE TABLE IF NOT EXISTS bench_invoice (
  invoice_id uuid PRIMARY KEY, tenant_id uuid NOT NULL, number bigint NOT NULL UNIQUE, total_minor bigint NOT NULL,
  document bytea NOT NULL);
CREATE TABLE IF NOT EXISTS bench_line (
  invoice_id uuid NOT NULL REFERENCES bench_invoice, line integer NOT NULL, description text NOT NULL,
  amount_minor bigint NOT NULL, PRIMARY KEY (invoice_id, line))
"""
_NUMBERS = "SELECT number FROM invoice JOIN tenant USING (tenant_id) WHERE wire_id = ANY ($1::text[])"
_FLOOR_SUMS = "SELECT meter_id, sum(units) FROM usage_rollup_minute WHERE tenant_id = $1 GROUP BY 1"
_FLOOR_INVOICES = """
INSERT INTO bench_invoice
SELECT invoice_id, invoice_id, (SELECT coalesce(max(number), 0) FROM bench_invoice) + place, 2000, document
FROM unnest($1::uuid[], $2::bytea[]) WITH ORDINALITY AS added (invoice_id, document, place)
"""
_FLOOR_LINES = """
INSERT INTO bench_line SELECT invoice_id, line, 'a line', 100
FROM unnest($1::uuid[]) AS added (invoice_id), generate_series(1, $2) AS line
"""


@asynccontextmanager
async def open_run(stage: Stage, effort: Effort) -> AsyncIterator[Bench]:
    """Be ready to subscribe tenants, send their usage, and bill them."""
    count = effort.of(10_000, quick=100)
    async with AsyncExitStack() as opened:
        channel = await opened.enter_async_context(stage.ledger())
        owner = await opened.enter_async_context(stage.owner())
        await owner.execute(_FLOOR_TABLES)
        usage: Any = usage_pb2_grpc.UsageServiceStub(channel)
        billing: Any = billing_pb2_grpc.BillingServiceStub(channel)
        producer = await open_producer(usage)

        async def ours() -> Sample:
            await owner.execute(_NOTHING_DUE)
            await _prepare(stage, usage, producer, [f"invoiced-{secrets.token_hex(6)}" for _ in range(count)])
            with stage.spending("ledger", "postgres") as spent:
                made = await _bill(billing)
            if made != count:
                raise RuntimeError(f"{made} invoices of {count} tenants")
            return Sample(count=count, wall_s=spent.wall_s, cpu_s=spent.cpu_s)

        async def floor() -> Sample:
            with stage.spending("driver", "postgres") as spent:
                await _insert(owner, count)
            return Sample(count=count, wall_s=spent.wall_s, cpu_s=spent.cpu_s)

        yield Bench(
            unit="tenants",
            ours=ours,
            floor=floor,
            floor_is="asyncpg, an INSERT of as many documents of 8 KB, and of six lines each",
            goals=(Goal("ours.per_s", _PER_S), Goal("ours.cpu_us", _CPU_US, is_at_least=False)),
        )


@asynccontextmanager
async def open_preview(stage: Stage, effort: Effort) -> AsyncIterator[Bench]:
    """Subscribe tenants and send their usage of the running hour; no preview was asked for before the first sample."""
    names = [f"previewed-{number}" for number in range(20)]
    async with AsyncExitStack() as opened:
        channel = await opened.enter_async_context(stage.ledger())
        owner = await opened.enter_async_context(stage.owner())
        usage: Any = usage_pb2_grpc.UsageServiceStub(channel)
        billing: Any = billing_pb2_grpc.BillingServiceStub(channel)
        await _prepare(stage, usage, await open_producer(usage), names, ago=_RUNNING)
        rows = await owner.fetch("SELECT tenant_id FROM tenant WHERE wire_id = ANY ($1::text[])", names)
        count = effort.of(500, quick=40)

        async def ask(number: int) -> None:
            request = billing_pb2.PreviewInvoiceRequest(tenant=names[number % len(names)])
            answer = await billing.PreviewInvoice(request, timeout=_TIMEOUT_S)
            if len(answer.invoice.lines) != _LINES:
                raise RuntimeError(f"{len(answer.invoice.lines)} lines of {_LINES}")

        async def look(number: int) -> None:
            await owner.fetch(_FLOOR_SUMS, rows[number % len(rows)]["tenant_id"])

        yield Bench(
            unit="previews",
            ours=partial(stage.one_by_one, ("ledger", "postgres"), ask, count),
            floor=partial(stage.one_by_one, ("driver", "postgres"), look, count),
            floor_is="asyncpg, the sums of the same meters",
            goals=(Goal("ours.p99_ms", 50, is_at_least=False),),
        )


@asynccontextmanager
async def open_pdf(stage: Stage, effort: Effort) -> AsyncIterator[Bench]:
    """Be ready to bill tenants and to ask for each invoice once: what was set before is set faster."""
    count = effort.of(100, quick=10)
    async with AsyncExitStack() as opened:
        channel = await opened.enter_async_context(stage.ledger())
        owner = await opened.enter_async_context(stage.owner())
        usage: Any = usage_pb2_grpc.UsageServiceStub(channel)
        billing: Any = billing_pb2_grpc.BillingServiceStub(channel)
        producer = await open_producer(usage)

        async def ours() -> Sample:
            await owner.execute(_NOTHING_DUE)
            names = [f"printed-{secrets.token_hex(6)}" for _ in range(count)]
            await _prepare(stage, usage, producer, names)
            await _bill(billing)
            rows = await owner.fetch(_NUMBERS, names)

            async def ask(place: int) -> None:
                request = billing_pb2.GetInvoicePdfRequest(invoice=rows[place]["number"])
                answer = await billing.GetInvoicePdf(request, timeout=_TIMEOUT_S)
                if not answer.pdf.startswith(b"%PDF-"):
                    raise RuntimeError("no PDF")

            return await stage.one_by_one(("ledger", "postgres"), ask, len(rows))

        async def page(number: int) -> None:
            await asyncio.to_thread(typst.compile, f"Page {number} {secrets.token_hex(6)}".encode())

        yield Bench(
            unit="PDFs",
            ours=ours,
            floor=partial(stage.one_by_one, ("driver",), page, count),
            floor_is="typst, a page of three words",
            goals=(Goal("ours.p99_ms", 100, is_at_least=False),),
        )


async def _bill(billing: Any) -> int:
    request = billing_pb2.RunInvoicesRequest(request_id=secrets.token_hex(8), without_lines=True, together=True)
    made = 0
    async for step in billing.RunInvoices(request, timeout=_TIMEOUT_S):
        if step.held_tenant:
            raise RuntimeError(f"{step.held_tenant} is held: {step.held_reason}")
        made += len(step.invoices)
    return made


async def _prepare(
    stage: Stage, usage: Any, producer: Producer, names: Sequence[str], *, ago: timedelta = _AGO
) -> None:
    start = datetime.now(UTC).replace(microsecond=0) - ago
    meters = "".join(f"\n  - {{name: {name}, unit: units}}" for name in _METERS)
    subscribed = f'plan: bench-invoices, subscription: {{start: "{start.isoformat()}", anchor: start}}'
    for first in range(0, len(names), _TENANTS_A_CALL):
        rows = "".join(f"\n  - {{id: {name}, {subscribed}}}" for name in names[first : first + _TENANTS_A_CALL])
        await stage.apply(f"{SELLER}meters:{meters}\nplans:{_PLAN}\ntenants:{rows}\n")
    randoms = random.Random(5)
    for first in range(0, len(names), _RECORDS_A_CALL):
        batch = producer.cut(_columns(names[first : first + _RECORDS_A_CALL], start, randoms))
        batch.watermark_us = time.time_ns() // 1_000
        await send(usage, [batch])


def _columns(names: Sequence[str], start: datetime, randoms: random.Random) -> usage_pb2.UsageColumns:
    at_us = int(start.timestamp()) * 1_000_000 + 1_000_000
    size, each = len(names), len(_METERS)
    return usage_pb2.UsageColumns(
        tenants=names,
        meters=_METERS,
        ids=list(uuid7s(size)),
        tenant=range(size),
        event_time_us=[at_us] + [0] * (size - 1),
        received_us=[at_us] + [0] * (size - 1),
        flags=[0] * size,
        quantity_count=[each] * size,
        attribute_count=[0] * size,
        meter=list(range(each)) * size,
        units=[randoms.randint(1, 5_000_000) for _ in range(size * each)],
    )


async def _insert(conn: asyncpg.Connection[asyncpg.Record], count: int) -> None:
    ids = [uuid.uuid4() for _ in range(count)]
    async with conn.transaction():
        await conn.execute(_FLOOR_INVOICES, ids, [secrets.token_bytes(8_192) for _ in ids])
        await conn.execute(_FLOOR_LINES, ids, _LINES)
