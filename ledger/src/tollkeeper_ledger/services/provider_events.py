"""Take events of the provider in: each once, in any order; what they are about is read again, never believed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper_ledger.payments.signature import UntrustedError, check_signature
from tollkeeper_ledger.payments.wire import object_path
from tollkeeper_ledger.services.disputes import dispute_said
from tollkeeper_ledger.services.provider_cards import PROVIDER
from tollkeeper_ledger.services.provider_payments import apply_invoice, refund_said
from tollkeeper_ledger.store import provider_jobs as jobs
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.payments.stripe_http import StripeHttp
    from tollkeeper_ledger.services.provider_cards import Cards
    from tollkeeper_ledger.store.pool import Connection, Pool

_PLACES = {"invoice": "invoices", "refund": "refunds", "dispute": "disputes"}
_OF_CARDS = ("customer", "checkout.session", "payment_method")


@dataclass(frozen=True, slots=True)
class Event:
    """What of an event is used: which object to read again."""

    event_id: str
    kind: str
    object_kind: str
    object_id: str
    customer: str = ""
    """Whose a card is or was."""


@dataclass(frozen=True, slots=True)
class Events:
    """Takes in what the provider sends."""

    pool: Pool
    stripe: StripeHttp
    cards: Cards
    secret: str
    is_live: bool
    account: str
    """Events of other connected accounts are refused; empty = our own."""
    now: Callable[[], datetime]
    log: FilteringBoundLogger | None = None
    """Where disputes are told loudly."""

    async def receive(self, *, header: str, body: bytes) -> bool:
        """Take one event in; False where it was taken in before, or is about nothing of ours. Committed on return.

        Raises UntrustedError: signature, mode or account is wrong; UnreadableError: what it is about can't be read now,
        so the provider should send it again.
        """
        check_signature(header, body, secret=self.secret, now_s=int(self.now().timestamp()))
        event = self._parse(body)
        if event.object_kind in _OF_CARDS:
            return await self._receive_card(event)
        said = await self._read(event)
        async with transaction(self.pool) as conn:
            is_new = await self._add(conn, event)
            if is_new and said is not None:
                await self._apply(conn, event, said)
        return is_new and said is not None

    async def _receive_card(self, event: Event) -> bool:
        customer, entered = await self._whose_card(event)
        async with self.cards.turn() as conn:
            if not await self._add(conn, event) or not customer:
                return False
            return await self.cards.follow(conn, customer, entered=entered)

    async def _add(self, conn: Connection, event: Event) -> bool:
        return await jobs.add_event(
            conn,
            provider=PROVIDER,
            event_id=event.event_id,
            kind=event.kind,
            object_id=event.object_id,
            now=self.now(),
        )

    def _parse(self, body: bytes) -> Event:
        try:
            told = json.loads(body)
            about = told["data"]["object"]
            # A card that was detached has no customer any more; the event says whose it was.
            customer = about.get("customer") or (told["data"].get("previous_attributes") or {}).get("customer") or ""
            event = Event(
                str(told["id"]), str(told["type"]), str(about["object"]), str(about.get("id", "")), str(customer)
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UntrustedError("the body is no event") from error
        if bool(told.get("livemode")) is not self.is_live:
            raise UntrustedError("the event is of the other mode (live or test)")
        if str(told.get("account") or self.account) != self.account:
            raise UntrustedError("the event is of another account")
        return event

    async def _read(self, event: Event) -> dict[str, Any] | None:
        """Read again what an event is about; None where it is nothing that we follow."""
        place = _PLACES.get(event.object_kind)
        if place is None or not event.object_id or event.kind.endswith(".deleted"):
            return None
        said = await self.stripe.read(object_path(place, event.object_id))
        if event.object_kind == "dispute":
            return await self._with_invoice(said)
        return said

    async def _with_invoice(self, dispute: dict[str, Any]) -> dict[str, Any] | None:
        """Find the provider's invoice that a disputed payment was for."""
        payment = dispute.get("payment_intent")
        if not isinstance(payment, str):
            return None
        paid = await self.stripe.read(object_path("payment_intents", payment))
        return {**dispute, "invoice": str(paid.get("invoice") or "")}

    async def _whose_card(self, event: Event) -> tuple[str, str]:
        """Give whose card to read again, empty where nobody's, and which one was entered on a page of ours."""
        if event.kind.endswith(".deleted"):
            return "", ""
        if event.object_kind == "customer":
            return event.object_id, ""
        if event.object_kind == "payment_method":
            async with transaction(self.pool) as conn:
                charged = await jobs.customer_of_method(conn, event.object_id, provider=PROVIDER)
            return charged or event.customer, ""
        session = await self.stripe.read(object_path("checkout/sessions", event.object_id))
        if session.get("mode") != "setup" or session.get("status") != "complete":
            return "", ""
        setup = await self.stripe.read(object_path("setup_intents", str(session["setup_intent"])))
        return str(session["customer"]), str(setup.get("payment_method") or "")

    async def _apply(self, conn: Connection, event: Event, said: dict[str, Any]) -> None:
        if event.object_kind == "invoice":
            invoice_id = await jobs.invoice_of_object(conn, event.object_id)
            if invoice_id is not None:
                await apply_invoice(conn, invoice_id, said, provider=PROVIDER)
        elif event.object_kind == "dispute":
            invoice_id = await jobs.invoice_of_object(conn, said["invoice"])
            if invoice_id is not None:
                await dispute_said(conn, invoice_id, said, provider=PROVIDER, now=self.now(), log=self.log)
        else:
            mark = (said.get("metadata") or {}).get("tollkeeper_refund")
            if mark:
                await refund_said(conn, UUID(str(mark)), said)
