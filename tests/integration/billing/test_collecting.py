# ruff: noqa: SIM300 - expected first, then actual
"""Invoices are collected several at once: as many as is allowed, each by itself in order, and none holds up another."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from stripe_shop import SINCE, open_shop
from tollkeeper_ledger.services.collecting import LEASE, Collector
from tollkeeper_ledger.services.reconciling import reconcile

if TYPE_CHECKING:
    from billing_bench import BillingBench
    from tollkeeper_ledger.payments.stripe_http import StripeHttp
    from tollkeeper_ledger.payments.wire import Reply, Request

pytestmark = pytest.mark.asyncio

IN_ORDER = ["POST invoices", "POST add_lines", "GET invoice", "POST finalize"]


class Counted:
    """A provider's client that counts what is under way, and has each request wait for as many as there may be."""

    def __init__(self, stripe: StripeHttp, at_once: int) -> None:
        self.stripe, self.at_once = stripe, at_once
        self.under_way = self.most = 0
        self.full = asyncio.Event()

    async def send(self, request: Request) -> Reply | None:
        """Send a request once enough others are under way."""
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if self.under_way >= self.at_once:
            self.full.set()
        try:
            async with asyncio.timeout(20):
                await self.full.wait()
            return await self.stripe.send(request)
        finally:
            self.under_way -= 1

    def __getattr__(self, name: str) -> object:
        """Give whatever else the client has."""
        return getattr(self.stripe, name)


async def test_as_many_are_under_way_as_is_allowed(bench: BillingBench) -> None:
    """Five of twenty invoices at once, each with its requests in order; six requests an invoice, none asked twice."""
    async with open_shop(bench, at_once=5) as shop:
        await shop.bill(2, *(f"t{number}" for number in range(10)))
        counted = Counted(shop.stripe, 5)
        collector = replace(shop.collector, stripe=counted)
        await collector.run_all()
        assert 5 == counted.most
        assert {("collect", "pay", "waiting")} == set(await shop.jobs())
        assert 20 == len(shop.fake.all("invoices"))
        requests = [(method, target.removeprefix("/v1/").split("/")) for method, target, *_ in shop.fake.log]
        made = Counter(method for method, words in requests if words == ["customers"])
        # Two jobs of a payer that begin at the same moment both ask for it, under one key.
        assert 10 <= made["POST"] <= 20
        assert 10 == len(shop.fake.all("customers"))
        assert 20 == sum(1 for method, words in requests if (method, words) == ("POST", ["invoices"]))
        for invoice in shop.fake.all("invoices"):
            mine = [f"{method} {words[-1] if len(words) > 2 else 'invoice'}" for method, words in requests
                    if words[0] == "invoices" and invoice["id"] in words]  # fmt: skip
            assert IN_ORDER[1:] == mine


class Breaks(Collector):
    """Breaks on every request about one invoice."""

    async def _send(self, job, *arguments):  # noqa: ANN001, ANN002, ANN202 - the base has them
        if arguments[0].number == "TK-000003":
            raise ZeroDivisionError("about one invoice")
        return await super()._send(job, *arguments)


async def test_an_invoice_that_breaks_the_worker_holds_up_no_other(bench: BillingBench) -> None:
    """What it broke of is raised when those beside it have ended; the next turn takes the others, later it as well."""
    async with open_shop(bench, at_once=2) as shop:
        await shop.bill(1, *(f"t{number}" for number in range(6)))
        at = {name: getattr(shop.collector, name) for name in ("pool", "stripe", "cards", "account", "now", "log")}
        broken = Breaks(**at, at_once=2)
        with pytest.raises(ZeroDivisionError):
            await broken.run_all()
        await broken.run_all()
        assert Counter(waiting=5, ready=1) == Counter(state for *_, state in await shop.jobs())
        assert 0 == await broken.run_all()
        shop.clock.pass_(LEASE + timedelta(seconds=1))
        await shop.collector.run_all()
        assert Counter(waiting=6) == Counter(state for *_, state in await shop.jobs())
        assert (6, []) == await reconcile(bench.billing, shop.stripe, since=SINCE)


async def test_a_worker_whose_lease_was_over_takes_no_step_twice(bench: BillingBench) -> None:
    """Another worker went on with the job while this one waited for an answer: this one leaves it where it is."""
    async with open_shop(bench) as shop:
        await shop.bill(1, "code")
        held, go_on = asyncio.Event(), asyncio.Event()
        send = shop.stripe.send

        class Slow:
            """Keeps the answer to the draft until it may go on."""

            async def send(self, request: Request) -> Reply | None:
                reply = await send(request)
                if request.path == "/v1/invoices":
                    held.set()
                    await go_on.wait()
                return reply

            def __getattr__(self, name: str) -> object:
                return getattr(shop.stripe, name)

        slow = asyncio.create_task(replace(shop.collector, stripe=Slow()).run_all())
        await held.wait()
        shop.clock.pass_(LEASE + timedelta(seconds=1))
        await shop.collector.run_all()
        assert [("collect", "pay", "waiting")] == await shop.jobs()
        before = len(shop.fake.log)
        go_on.set()
        await slow
        assert before == len(shop.fake.log)
        assert [("collect", "pay", "waiting")] == await shop.jobs()
        assert ("open", 2380) == tuple(shop.fake.all("invoices")[0][name] for name in ("status", "total"))
