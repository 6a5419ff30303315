"""Hosted pages for cards, so that card data never reaches us; and removing cards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError
from tollkeeper_ledger.payments.stripe_http import UnreadableError
from tollkeeper_ledger.payments.wire import Meaning, Request, form, key_of, meaning_of, object_path
from tollkeeper_ledger.services.provider_cards import PROVIDER
from tollkeeper_ledger.store import provider_jobs as jobs
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.payments.stripe_http import StripeHttp
    from tollkeeper_ledger.payments.wire import Reply
    from tollkeeper_ledger.services.provider_cards import Cards
    from tollkeeper_ledger.store.pool import Pool

URL_CHARS_MAX = 2_000


@dataclass(frozen=True, slots=True)
class Pages:
    """Makes pages at the provider."""

    pool: Pool
    stripe: StripeHttp
    cards: Cards
    account: str
    now: Callable[[], datetime]

    async def card_page(self, payer_id: UUID, *, name: str, kind: str, return_url: str, request_id: str) -> str:
        """Give a page on which the payer enters a card (`checkout`) or changes its cards (`portal`).

        A repeat of a request gives the same page. Raises InvalidFieldError; PreconditionError: the provider refused.
        """
        if kind not in ("checkout", "portal"):
            raise InvalidFieldError("kind", "is not known", value=ascii(kind[:32]), bound="checkout, portal")
        parts = urlsplit(return_url)
        if parts.scheme != "https" or not parts.netloc or len(return_url) > URL_CHARS_MAX or not return_url.isascii():
            raise InvalidFieldError("return_url", "is no https address", bound=f"https, at most {URL_CHARS_MAX} ASCII")
        customer = await self._customer(payer_id, name=name)
        key = key_of(self.account, payer_id, "page", kind, request_id)
        if kind == "portal":
            body = form({"customer": customer, "return_url": return_url})
            found = await self._send(Request("POST", "/v1/billing_portal/sessions", body, key))
        else:
            body = form(
                {
                    "mode": "setup",
                    "customer": customer,
                    "payment_method_types[0]": "card",
                    "success_url": return_url,
                    "cancel_url": return_url,
                }
            )
            found = await self._send(Request("POST", "/v1/checkout/sessions", body, key))
        return str(found["url"])

    async def remove_method(self, payer_id: UUID, *, request_id: str) -> None:
        """Remove every card of the payer at the provider, so that none takes the place of the one that is charged.

        Nothing happens where there is none. Raises PreconditionError: the provider refused.
        """
        async with transaction(self.pool) as conn:
            row = await jobs.read_account(conn, payer_id, provider=PROVIDER)
        if row is None or not row["customer"]:
            return
        customer = str(row["customer"])
        try:
            for method in await self._cards_of(customer):
                path = f"{object_path('payment_methods', method)}/detach"
                key = key_of(self.account, payer_id, "detach", method, request_id)
                reply = await self.stripe.send(Request("POST", path, b"", key))
                # Refused is also what somebody else has removed meanwhile.
                if not _is_done(reply) and method in await self._cards_of(customer):
                    raise _refused(path, reply)
            async with self.cards.turn() as conn:
                await self.cards.follow(conn, customer)
        except UnreadableError as error:
            raise PreconditionError(
                f"the provider can't be read: {error}", reason="PROVIDER_REFUSED", metadata={"field": customer}
            ) from error

    async def _cards_of(self, customer: str) -> list[str]:
        path = f"{object_path('customers', customer)}/payment_methods"
        return [str(one["id"]) async for one in self.stripe.each(path)]

    async def _customer(self, payer_id: UUID, *, name: str) -> str:
        async with transaction(self.pool) as conn:
            row = await jobs.read_account(conn, payer_id, provider=PROVIDER)
        if row is not None and row["customer"]:
            return str(row["customer"])
        body = form({"name": name, "metadata[tollkeeper_tenant]": payer_id})
        found = await self._send(
            Request("POST", "/v1/customers", body, key_of(self.account, payer_id, "page customer"))
        )
        async with transaction(self.pool) as conn:
            await jobs.put_customer(conn, payer_id, provider=PROVIDER, customer=str(found["id"]), now=self.now())
            row = await jobs.read_account(conn, payer_id, provider=PROVIDER)
        return str(row["customer"]) if row is not None else str(found["id"])

    async def _send(self, request: Request) -> dict[str, object]:
        reply = await self.stripe.send(request)
        if reply is None or not _is_done(reply):
            raise _refused(request.path, reply)
        return reply.read()


def _is_done(reply: Reply | None) -> bool:
    return meaning_of(reply) is Meaning.DONE


def _refused(path: str, reply: Reply | None) -> PreconditionError:
    return PreconditionError(
        f"the provider answered {reply.problem() if reply else 'nothing'}",
        reason="PROVIDER_REFUSED",
        metadata={"field": path},
    )
