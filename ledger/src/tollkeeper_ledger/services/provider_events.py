"""Take events of the provider in: each once, in any order; what they are about is read again, never believed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper_ledger.payments.signature import UntrustedError, check_signature
from tollkeeper_ledger.payments.wire import object_path
from tollkeeper_ledger.services.disputes import dispute_said
from tollkeeper_ledger.services.provider_payments import apply_invoice, refund_said
from tollkeeper_ledger.services.trials import follow_methods, lock_trials_of
from tollkeeper_ledger.store import provider_jobs as jobs
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.payments.stripe_http import StripeHttp
    from tollkeeper_ledger.store.pool import Connection, Pool

PROVIDER = "stripe"
_PLACES = {
    "invoice": "invoices",
    "customer": "customers",
    "checkout.session": "checkout/sessions",
    "refund": "refunds",
    "dispute": "disputes",
}


@dataclass(frozen=True, slots=True)
class Event:
    """What of an event is used: which object to read again."""

    event_id: str
    kind: str
    object_kind: str
    object_id: str


@dataclass(frozen=True, slots=True)
class Events:
    """Takes in what the provider sends."""

    pool: Pool
    stripe: StripeHttp
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
        said = await self._read(event)
        async with transaction(self.pool) as conn:
            is_new = await jobs.add_event(
                conn,
                provider=PROVIDER,
                event_id=event.event_id,
                kind=event.kind,
                object_id=event.object_id,
                now=self.now(),
            )
            if is_new and said is not None:
                await self._apply(conn, event, said)
        return is_new and said is not None

    def _parse(self, body: bytes) -> Event:
        try:
            told = json.loads(body)
            about = told["data"]["object"]
            event = Event(str(told["id"]), str(told["type"]), str(about["object"]), str(about.get("id", "")))
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
        if event.object_kind == "checkout.session":
            return await self._with_method(said)
        if event.object_kind == "customer":
            return await self._customer(event.object_id)
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

    async def _with_method(self, session: dict[str, Any]) -> dict[str, Any] | None:
        """Charge the card that was just entered from now on, and read the customer."""
        if session.get("mode") != "setup" or session.get("status") != "complete":
            return None
        setup = await self.stripe.read(object_path("setup_intents", str(session["setup_intent"])))
        return {"id": session["customer"], "method": await self._method(str(setup.get("payment_method") or ""))}

    async def _customer(self, customer: str) -> dict[str, Any]:
        said = await self.stripe.read(object_path("customers", customer))
        default = (said.get("invoice_settings") or {}).get("default_payment_method")
        return {"id": customer, "method": await self._method(str(default or ""))}

    async def _method(self, method: str) -> dict[str, Any]:
        return await self.stripe.read(object_path("payment_methods", method)) if method else {}

    async def _apply(self, conn: Connection, event: Event, said: dict[str, Any]) -> None:
        if event.object_kind == "invoice":
            job_id = await jobs.job_of_object(conn, event.object_id)
            if job_id is not None:
                row = await jobs.read_work(conn, job_id)
                await apply_invoice(conn, row["invoice_id"], said, provider=PROVIDER)
        elif event.object_kind == "dispute":
            job_id = await jobs.job_of_object(conn, said["invoice"])
            if job_id is not None:
                row = await jobs.read_work(conn, job_id)
                await dispute_said(conn, row["invoice_id"], said, provider=PROVIDER, now=self.now(), log=self.log)
        elif event.object_kind == "refund":
            mark = (said.get("metadata") or {}).get("tollkeeper_refund")
            if mark:
                await refund_said(conn, UUID(str(mark)), said)
        else:
            await keep_method(conn, said["id"], said["method"], now=self.now())


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
