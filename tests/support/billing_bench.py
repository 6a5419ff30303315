"""A ledger's money side on a real Postgres: a catalogue, usage, a clock that tests move, and runs."""

from __future__ import annotations

import json
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.services.catalogue import apply_catalogue
from tollkeeper_ledger.services.invoice_issue import Run
from tollkeeper_ledger.services.invoice_run import Progress, run_invoices
from tollkeeper_ledger.services.usage import UsageIngest
from tollkeeper_ledger.store.clock import ledger_now, set_clock
from tollkeeper_ledger.store.pool import SEARCH_PATH, open_pool, transaction
from usage_support import Log, Use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime

    from tollkeeper_ledger.domain.catalogue.known import Change
    from tollkeeper_ledger.services.billing_processes import BillingProcesses
    from tollkeeper_ledger.store.pool import Connection, Pool

HOLDER = b"holder-billing"
RUN = Run(actor="test", request_id="run")

CATALOGUE = """
version: 1
seller: {{id: default, name: Example AI GmbH, address: [Street 1], invoice_prefix: TK, currency: USD, time_zone: UTC}}
meters:
  - {{name: context_tokens, unit: tokens}}
  - {{name: generated_tokens, unit: tokens}}
plans:
  - name: hourly
    billing_interval: {{unit: hour, count: 1}}
    grace: {{unit: minute, count: 5}}
    fees: [{{name: base, amount: "20.00"}}]
    prices:
      - {{meter: context_tokens, per: 1000000, unit_price: "2.50", included: 1000000}}
      - {{meter: generated_tokens, per: 1000000, unit_price: "{price}"}}
    limits:
      - {{name: day, meter: context_tokens, kind: window, amount: 1000, window: day}}
      - {{name: rate, meter: context_tokens, kind: rate, amount: 60, refill: minute, burst: 20}}
  - {{name: free, billing_interval: hour, grace: {{unit: minute, count: 5}}}}
tenants:
{tenants}
"""


def catalogue(start: datetime, *names: str, plan: str = "hourly", price: str = "10.00", extra: str = "") -> str:
    """Give a catalogue whose tenants' hours begin at `start`."""
    subscription = f'subscription: {{start: "{start.isoformat()}"}}'
    tenants = "\n".join(f"  - {{id: {name}, plan: {plan}, {subscription}{extra}}}" for name in names)
    return CATALOGUE.format(tenants=tenants, price=price)


@dataclass(slots=True)
class BillingBench:
    """A database and what tests do to it."""

    url: str
    billing: Pool
    ingest_pool: Pool
    reader: Pool
    ingest: UsageIngest
    start: datetime
    """Ledger time at which the bench was opened, on the whole second; the clock stands still."""
    logs: dict[uuid.UUID, int] = field(default_factory=dict)

    async def apply(self, yaml: str) -> list[Change]:
        """Declare a catalogue."""
        async with transaction(self.billing) as conn:
            return await apply_catalogue(
                conn, yaml_text=yaml, source_name="test", request_id="r", actor="test", now=await ledger_now(conn)
            )

    async def set_now(self, now: datetime) -> None:
        """Move ledger time on; it stands still there."""
        async with self.ingest_pool.acquire() as conn:
            await set_clock(conn, now=now, speed_milli=0)

    async def new_log(self) -> Log:
        """Give the log of a producer that was opened."""
        log = Log(producer_id=uuid.uuid4())
        await self.ingest.open_producer(log.producer_id, incarnation=1, holder=HOLDER, version=1)
        self.logs[log.producer_id] = 0
        return log

    async def send(self, log: Log, *uses: Use, watermark: datetime, tenants: tuple[str, ...] = ()) -> None:
        """Record uses and ship them with a watermark."""
        log.record(*uses)
        first = self.logs[log.producer_id]
        batch = log.cut(first, watermark_us=to_us(watermark), tenants_served=tenants)
        await self.ingest.append(batch)
        self.logs[log.producer_id] = len(log.entries)

    async def run(self, *, only: str | None = None, processes: BillingProcesses | None = None) -> list[Progress]:
        """Bill what is due."""
        return [step async for step in run_invoices(self.billing, run=RUN, only=only, processes=processes)]

    async def rows(self, statement: str, *arguments: object) -> list[Any]:
        """Read past row-level security."""
        async with superuser(self.url) as conn:
            found: list[Any] = await conn.fetch(statement, *arguments)
        return found

    async def documents(self, tenant: str) -> list[dict[str, Any]]:
        """Give a tenant's invoices in the order in which they were made."""
        rows = await self.rows(
            "SELECT document FROM invoice JOIN tenant USING (tenant_id) WHERE wire_id = $1 ORDER BY serial",
            tenant,
        )
        return [json.loads(row["document"]) for row in rows]


def use(
    name: str,
    at: datetime,
    *,
    tenant: str = "code",
    received: datetime | None = None,
    attributes: tuple[tuple[str, str], ...] = (),
    **units: int,
) -> Use:
    """Give a record of `units` per meter."""
    return Use(
        id=name,
        tenant=tenant,
        event_us=to_us(at),
        received_us=to_us(received or at),
        quantities=tuple(sorted(units.items())),
        attributes=attributes,
    )


def amounts(document: Mapping[str, Any]) -> dict[str, int]:
    """Give a document's lines as amount by description."""
    return {line["description"]: line["amount_minor"] for line in document["lines"]}


@asynccontextmanager
async def superuser(url: str) -> AsyncIterator[Connection]:
    """Connect as the user who owns the server: row-level security does not apply."""
    conn = await asyncpg.connect(url, server_settings={"search_path": SEARCH_PATH, "timezone": "UTC"})
    try:
        yield conn
    finally:
        await conn.close()


@asynccontextmanager
async def open_billing_bench(url: str) -> AsyncIterator[BillingBench]:
    """Open pools on a database with the schema and stop its clock."""
    billing = await open_pool(url, role="tollkeeper_billing", size=4)
    ingest = await open_pool(url, role="tollkeeper_ingest", size=4)
    reader = await open_pool(url, role="tollkeeper_reader", size=1)
    try:
        async with ingest.acquire() as conn:
            start = (await ledger_now(conn)).replace(microsecond=0)
            await set_clock(conn, now=None, speed_milli=0)
        yield BillingBench(
            url=url,
            billing=billing,
            ingest_pool=ingest,
            reader=reader,
            ingest=UsageIngest(ingest, embedded=True),
            start=start,
        )
    finally:
        for pool in (billing, ingest, reader):
            pool.terminate()
