# ruff: noqa: SIM300 - expected first, then actual
"""Recurring revenue and overage of real subscriptions on a real Postgres, through gRPC and the command line."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from billing_bench import use
from stripe_shop import act_on
from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc, reports_pb2, reports_pb2_grpc
from tollkeeper_cli.main import main
from tollkeeper_ledger.app import running
from tollkeeper_ledger.services import subscription_changes as changes
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from billing_bench import BillingBench
    from tollkeeper_ledger.config import Settings

pytestmark = pytest.mark.asyncio

CATALOGUE = """
version: 1
seller: {id: default, name: Example AI GmbH, invoice_prefix: TK, currency: USD, time_zone: UTC}
meters:
  - {name: messages, unit: messages}
plans:
  - name: basic
    billing_interval: month
    fees: [{name: Basic, amount: "30.00"}]
    prices: [{meter: messages, description: Messages, unit_price: "0.01", included: 100}]
  - name: pro
    billing_interval: month
    fees: [{name: Pro, amount: "90.00", timing: advance}]
  - {name: yearly, billing_interval: year, fees: [{name: Year, amount: "1200.00"}]}
  - name: trial
    billing_interval: month
    trial_days: 45
    fees: [{name: Trial, amount: "10.00"}]
tenants:
  - {id: climbs, plan: basic, subscription: {start: "2031-01-10T00:00:00Z"}}
  - {id: leaves, plan: yearly, subscription: {start: "2031-01-10T00:00:00Z"}}
  - {id: rests, plan: basic, subscription: {start: "2031-01-10T00:00:00Z"}}
  - {id: tries, plan: trial, subscription: {start: "2031-01-10T00:00:00Z"}}
"""


def at(month: int, day: int) -> datetime:
    """Give a day of 2031."""
    return datetime(2031, month, day, tzinfo=UTC)


async def act(bench: BillingBench, when: datetime, tenant: str, work: Callable[..., Any], **more: Any) -> None:
    """Change a tenant's subscription at a time."""
    await bench.set_now(when)
    async with transaction(bench.billing) as conn:
        tenant_id = (await find_tenant_ids(conn, [tenant]))[tenant]
        await work(conn, tenant_id, **more, act=await act_on(conn))


async def test_what_subscriptions_are_worth_and_what_is_over(
    bench: BillingBench, ledger_settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """A year's beginning of four tenants, month by month and plan by plan; overage now and at this pace.

    January: 30 + 100 + 30, the trial nothing. February: one climbs to 90 (60 more), one leaves (100 lost), the trial
    ends and is worth 10. March: one rests (30 lost). April, on the 11th: it is back.
    """
    await bench.set_now(at(1, 10))
    await bench.apply(CATALOGUE)
    await act(bench, at(2, 10), "climbs", changes.change_subscription, asked=changes.ChangeAsked(plan="pro"))
    await act(bench, at(2, 12), "leaves", changes.cancel_subscription, at=changes.NOW)
    await act(bench, at(3, 5), "rests", changes.pause_subscription, at=changes.NOW)
    await act(bench, at(4, 5), "rests", changes.resume_subscription)
    log = await bench.new_log()
    # The running period of `rests` is 10 April to 10 May; on 20 April a third of it is over.
    await bench.set_now(at(4, 20))
    await bench.send(log, use("m1", at(4, 12), tenant="rests", messages=300), watermark=at(4, 20))
    settings = ledger_settings.model_copy(update={"database_url": bench.url})
    async with running(settings) as ledger:
        address = f"127.0.0.1:{ledger.port}"

        async def cli(*words: str) -> str:
            capfd.readouterr()
            assert 0 == await asyncio.to_thread(main, ["--ledger", address, *words])
            return capfd.readouterr().out

        rows = json.loads(await cli("revenue", "recurring", "--from", "2031-01", "--to", "2031-04", "-o", "json"))
        names = (
            "month", "opening_minor", "new_minor", "returned_minor", "expansion_minor", "churned_minor",
            "closing_minor", "closing_tenants", "per_tenant_minor", "tenant_churn_bp", "revenue_churn_bp",
        )  # fmt: skip
        assert [
            ("2031-01", 0, 16000, 0, 0, 0, 16000, 3, 5333, None, None),
            ("2031-02", 16000, 1000, 0, 6000, 10000, 13000, 3, 4333, 3333, 6250),
            ("2031-03", 13000, 0, 0, 0, 3000, 10000, 2, 5000, 3333, 2308),
            ("2031-04", 10000, 0, 3000, 0, 0, 13000, 3, 4333, 0, 0),
        ] == [tuple(row[name] for name in names) for row in rows]
        by_plan = list(csv.DictReader(io.StringIO(await cli("revenue", "recurring", "--by-plan", "-o", "csv"))))
        february = {row["plan"]: (row["moved_minor"], row["closing"]) for row in by_plan if row["month"] == "2031-02"}
        assert {
            "basic": ("-3000", "30.00"), "pro": ("3000", "90.00"), "trial": ("0", "10.00"), "yearly": ("0", "0.00"),
        } == february  # fmt: skip
        assert "130.00 USD" in await cli("revenue", "recurring")
        await refused(address)

        (line,) = json.loads(await cli("overage", "calculate", "--tenant", "rests", "-o", "json"))
        assert (300, 200, 200, 900, 800, 800) == tuple(
            line[name]
            for name in ("quantity", "charged", "amount_minor", "projected_quantity", "projected_charged",
                         "projected_minor")
        )  # fmt: skip
        (row,) = csv.DictReader(io.StringIO(await cli("overage", "report", "-o", "csv")))
        assert ("rests", "basic", "2.00", "8.00", "USD") == tuple(
            row[name] for name in ("tenant", "plan", "amount", "projected", "currency")
        )


async def refused(address: str) -> None:
    """Months that are none, to come or too many are refused; who has no subscription has no overage."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = reports_pb2_grpc.ReportServiceStub(channel)
        for first, last, words in (
            ("2031-13", "", "not a month"), ("", "2031-05", "still to come"), ("1999-01", "", "too far"),
            ("2031-04", "2031-03", "after"),
        ):  # fmt: skip
            request = reports_pb2.GetRecurringRevenueRequest(**{"from": first}, to=last)
            with pytest.raises(grpc.aio.AioRpcError, match=words):
                await stub.GetRecurringRevenue(request)
        with pytest.raises(grpc.aio.AioRpcError, match="subscription"):
            await billing_pb2_grpc.BillingServiceStub(channel).GetOverage(
                billing_pb2.GetOverageRequest(tenant="leaves")
            )
