"""A ledger on a real Postgres, a fake of Stripe over real HTTP, and what carries one to the other."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog
from billing_bench import catalogue
from fake_stripe import SECRET, Clock, FakeStripe
from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.payments.stripe_http import StripeHttp
from tollkeeper_ledger.services.collecting import Collector
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.services.provider_cards import Cards
from tollkeeper_ledger.services.provider_events import Events
from tollkeeper_ledger.services.provider_pages import Pages
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from billing_bench import BillingBench
    from tollkeeper_ledger.store.pool import Connection

HOUR = timedelta(hours=1)
AS_FAST_AS_IT_GOES = 1_000_000
GRACE = timedelta(minutes=5)
SINCE = datetime(2020, 1, 1, tzinfo=UTC)
"""Before all that is compared: the provider's clock stands at one date, the ledger's at the day of the test."""
BY_CARD = BillingProfile(provider="stripe", taxes=(TaxRate(name="VAT", percent="19"),), email="a@example.com")


class Shop:
    """A ledger, a provider, and what carries one to the other."""

    def __init__(self, bench: BillingBench, fake: FakeStripe, clock: Clock, *, at_once: int = 1) -> None:
        self.bench, self.fake, self.clock = bench, fake, clock
        self.stripe = StripeHttp.connect(fake.url, api_key="sk_test", requests_per_s=AS_FAST_AS_IT_GOES)
        log = structlog.wrap_logger(structlog.ReturnLogger())
        cards = Cards(bench.billing, self.stripe, clock)
        self.collector = Collector(bench.billing, self.stripe, cards, "acct", clock, log, at_once=at_once)
        self.events = Events(bench.billing, self.stripe, cards, SECRET, is_live=False, account="", now=clock)
        self.pages = Pages(bench.billing, self.stripe, cards, "acct", clock)

    async def bill(self, hours: int, *names: str, profile: BillingProfile = BY_CARD) -> list[UUID]:
        """Bill tenants for so many hours of a base fee."""
        await self.bench.apply(catalogue(self.bench.start, *names))
        for row in await self.bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = ANY ($1)", list(names)):
            async with transaction(self.bench.billing) as conn:
                await set_profile(conn, row["tenant_id"], profile, act=await act_on(conn))
        await self.bench.set_now(self.bench.start + hours * HOUR + GRACE)
        await self.bench.run()
        return [row["invoice_id"] for row in await self.bench.rows("SELECT invoice_id FROM invoice ORDER BY serial")]

    async def work(self, *, workers: int = 1, rounds: int = 400) -> None:
        """Work, letting backoffs pass, until no job is ready."""
        for _ in range(rounds):
            await asyncio.gather(*(self.collector.run_all() for _ in range(workers)))
            (row,) = await self.bench.rows("SELECT min(next_at) AS at FROM provider_job WHERE state = 'ready'")
            if row["at"] is None:
                return
            self.clock.at = max(self.clock.at, row["at"])
        raise AssertionError("jobs don't come to an end")

    async def hear(self) -> None:
        """Take in everything that the provider says, each event after the one before, or `at_once` of them together."""
        told = iter(list(self.fake.events))

        async def listen() -> None:
            for event in told:
                header, body = self.fake.signed(event)
                await self.events.receive(header=header, body=body)

        await asyncio.gather(*(listen() for _ in range(self.collector.at_once)))

    async def jobs(self) -> list[tuple[str, str, str]]:
        """Give kind, step and state of every job."""
        rows = await self.bench.rows("SELECT kind, step, state FROM provider_job ORDER BY kind, step")
        return [tuple(row) for row in rows]

    async def standing(self) -> list[tuple[str, int]]:
        """Give state and due of every invoice in order."""
        rows = await self.bench.rows(
            "SELECT r.state, r.due_minor FROM receivable r JOIN invoice USING (invoice_id) ORDER BY serial"
        )
        return [tuple(row) for row in rows]


async def act_on(conn: Connection) -> Act:
    """Give who does it now."""
    return Act(actor="test", request_id=uuid.uuid4().hex, now=await ledger_now(conn))


@asynccontextmanager
async def open_shop(bench: BillingBench, *, seed: int = 0, rate: float = 0.0, at_once: int = 1) -> AsyncIterator[Shop]:
    """Give a shop whose provider meets every request with a fault at this rate; so many jobs are carried at once."""
    clock = Clock()
    fake = FakeStripe(clock, seed=seed, rate=rate)
    shop = Shop(bench, fake, clock, at_once=at_once)
    try:
        yield shop
    finally:
        await shop.stripe.aclose()
        fake.close()
