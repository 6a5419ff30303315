# ruff: noqa: SIM300 - expected first, then actual
"""Overage of a meter that has decimal places, as the command line tells it."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from billing_bench import use
from served_billing import command_line, served
from tollkeeper.ledger.v1 import billing_pb2

if TYPE_CHECKING:
    from billing_bench import BillingBench
    from tollkeeper_ledger.config import Settings

pytestmark = pytest.mark.asyncio

CATALOGUE = """
version: 1
seller: {{id: default, name: Example AI GmbH, currency: USD, time_zone: UTC}}
meters:
  - {{name: storage, unit: GB hours, scale: 3}}
plans:
  - name: store
    billing_interval: {{unit: hour, count: 2}}
    prices: [{{meter: storage, description: Storage, per: 1000, unit_price: "0.02", included: 20000}}]
tenants:
  - {{id: shop, plan: store, subscription: {{start: "{start}"}}}}
"""


async def test_overage_is_told_in_whole_units(
    bench: BillingBench, ledger_settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """740.5 GB hours, 20 of them included, are 740.5 and 720.5 everywhere, not 740500; twice that is to come."""
    await bench.apply(CATALOGUE.format(start=bench.start.isoformat()))
    log = await bench.new_log()
    half = bench.start + timedelta(hours=1)
    await bench.set_now(half)
    await bench.send(log, use("a", bench.start, tenant="shop", storage=740_500), watermark=half)
    async with served(ledger_settings, bench.url) as (billing, _, address):
        found = await billing.GetOverage(billing_pb2.GetOverageRequest(tenant="shop"))
        (line,) = found.lines
        assert (3, 740_500, 720_500, 1_441) == (line.scale, line.quantity, line.charged, line.amount_minor)
        cli = command_line(address, capfd)
        (told,) = await cli("overage", "calculate", "--tenant", "shop", "-o", "json")
        names = ("quantity", "charged", "projected_quantity", "projected_charged", "unit")
        assert ("740.5", "720.5", "1481", "1461", "GB hours") == tuple(told[name] for name in names)
        (row,) = csv.DictReader(io.StringIO(await cli("overage", "calculate", "--tenant", "shop", "-o", "csv")))
        assert ("740.5", "1481", "14.41") == (row["quantity"], row["projected_quantity"], row["amount"])
        table = await cli("overage", "calculate", "--tenant", "shop")
        assert "740.5" in table
        assert "1,481" in table
