"""A tenant that uses what its plan tells of, and whoever looks at it."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from billing_bench import use
from tollkeeper_ledger.domain.billing_profile import BillingProfile
from tollkeeper_ledger.services.alerting import Alerter
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from billing_bench import BillingBench
    from usage_support import Log

MINUTE = timedelta(minutes=1)
LOG = structlog.wrap_logger(structlog.ReturnLogger())

CATALOGUE = """
version: 1
seller: {{id: default, name: Example AI GmbH, invoice_prefix: TK, currency: USD, time_zone: UTC, email: s@example.com}}
meters: [{{name: tokens, unit: tokens}}, {{name: calls, unit: calls, aggregation: count}}]
plans:
  - name: hourly
    billing_interval: hour
    grace: {{unit: minute, count: 5}}
    fees: [{{name: base, amount: "20.00"}}]
    prices: [{{meter: tokens, unit_price: "0.01"}}]
    alerts:
      - {{spend: "40.00", at: [75%, 100%, "50"]}}
      - {{meter: tokens, amount: 1000, at: [50%, 100%]}}
tenants:
  - id: code
    plan: hourly
    subscription: {{start: "{start}"}}
  - id: own
    plan: hourly
    subscription: {{start: "{start}"}}
    alerts: [{{spend: "1000.00"}}, {{meter: calls, amount: 2}}]
"""
"""The first hour costs 20 $ without use; 1,000 tokens are 10 $."""


class Look:
    """A tenant that uses, and whoever looks at it."""

    def __init__(self, bench: BillingBench, log: Log) -> None:
        self.bench, self.log = bench, log
        self.alerter = Alerter(bench.billing, LOG)
        self._count = 0

    async def use(self, tokens: int, *, at: datetime | None = None, tenant: str = "code") -> str:
        """Use tokens at a time, the bench's start by default, and give the record's id."""
        self._count += 1
        name = f"use-{self._count}"
        moment = at or self.bench.start + MINUTE
        await self.bench.send(self.log, use(name, moment, tenant=tenant, tokens=tokens), watermark=moment)
        return name

    async def fired(self) -> list[tuple[str, str, str]]:
        """Give kind, threshold and figure of every alert that was told of, in order of start, kind and threshold."""
        rows = await self.bench.rows(
            "SELECT kind, threshold, trim_scale(value)::text AS value FROM alert"
            " ORDER BY starts_at, kind, length(threshold), threshold"
        )
        return [tuple(row) for row in rows]


@asynccontextmanager
async def opened(bench: BillingBench) -> AsyncIterator[Look]:
    """Declare the catalogue and open a producer."""
    await bench.apply(CATALOGUE.format(start=bench.start.isoformat()))
    yield Look(bench, await bench.new_log())


async def give_address(bench: BillingBench, *, locale: str = "en") -> None:
    """Give the payer of tenant `code` an address and a language."""
    (row,) = await bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
    async with transaction(bench.billing) as conn:
        act = Act(actor="test", request_id=uuid.uuid4().hex, now=await ledger_now(conn))
        await set_profile(conn, row["tenant_id"], BillingProfile(email="ap@customer.example", locale=locale), act=act)
