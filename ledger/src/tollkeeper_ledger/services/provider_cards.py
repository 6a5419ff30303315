"""Keep which card of a payer is charged: its customer's default at the provider, read while nobody else reads it.

A page on which a card is entered does not make it the default; that is a request of ours. Cards only go forward: one
that was entered before the present default, or is not the customer's any more, never takes its place.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.payments.stripe_http import UnreadableError
from tollkeeper_ledger.payments.wire import Meaning, default_request, meaning_of, object_path
from tollkeeper_ledger.services.trials import follow_methods, lock_trials_of
from tollkeeper_ledger.store import provider_jobs as jobs
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from tollkeeper_ledger.payments.stripe_http import StripeHttp
    from tollkeeper_ledger.store.pool import Connection, Pool

PROVIDER = "stripe"
_READ_S_MAX = 45.0
"""Less than Postgres lets a transaction idle, so that a slow provider ends the reading and not the connection."""
_AT_ONCE = 2
"""Connections that a process spends on waiting for the provider; more would keep others from theirs."""


@dataclass(frozen=True, slots=True)
class Cards:
    """Follows the cards of one account. Any number may at once."""

    pool: Pool
    stripe: StripeHttp
    now: Callable[[], datetime]
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Connection]:
        """Begin a transaction in which a card may be followed; few at once."""
        async with self._turns, transaction(self.pool) as conn:
            yield conn

    async def follow(self, conn: Connection, customer: str, *, entered: str = "") -> bool:
        """Keep what a customer is charged by now; False where the customer is none of ours.

        `entered` is a card that was entered on a page of ours: it is made the default unless a newer one is. Readings
        of one customer wait for each other until they are committed, so that an older one never overwrites a newer.
        Raises UnreadableError.
        """
        if not await jobs.lock_customer(conn, provider=PROVIDER, customer=customer):
            return False
        try:
            async with asyncio.timeout(_READ_S_MAX):
                method = await self._settle(customer, entered)
        except TimeoutError as error:
            raise UnreadableError(f"the card of {customer}: no answer within {_READ_S_MAX:.0f} s") from error
        await keep_method(conn, customer, method, now=self.now())
        return True

    async def _settle(self, customer: str, entered: str) -> dict[str, Any]:
        said = await self.stripe.read(object_path("customers", customer))
        name = str((said.get("invoice_settings") or {}).get("default_payment_method") or "")
        default = await self._read(name) if name else {}
        if entered in ("", name):
            return default
        card = await self._read(entered)
        # Stripe takes a card away from its customer for good: one that was removed since stays removed.
        if card.get("customer") != customer or (default and int(card["created"]) <= int(default["created"])):
            return default
        reply = await self.stripe.send(default_request(customer, entered))
        if reply is None or meaning_of(reply) is not Meaning.DONE:
            raise UnreadableError(f"the default of {customer}: {reply.problem() if reply else 'no answer'}")
        return card

    async def _read(self, method: str) -> dict[str, Any]:
        return await self.stripe.read(object_path("payment_methods", method))


async def keep_method(conn: Connection, customer: str, method: dict[str, Any], *, now: datetime) -> None:
    """Keep which method of a customer is charged, never more of a card than brand, last digits and expiry.

    Trials that ask for one follow in the same transaction.
    """
    card = method.get("card") or {}
    expires = date(int(card["exp_year"]), int(card["exp_month"]), 1) if card.get("exp_year") else None
    label = f"{card['brand']} {card['last4']}" if card else str(method.get("type", ""))
    # Tenants are locked before anything of their payer's changes.
    trying = await lock_trials_of(conn, await jobs.find_payer(conn, provider=PROVIDER, customer=customer))
    await jobs.put_method(
        conn,
        provider=PROVIDER,
        customer=customer,
        method=str(method.get("id", "")),
        label=label,
        expires=expires,
        now=now,
    )
    await follow_methods(conn, trying)
