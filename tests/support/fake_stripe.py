"""A payment provider with Stripe's HTTP API as far as we use it, which lies, loses and repeats as it is told to.

It honours idempotency keys (the first answer is given again, stored errors included; other bytes under a used key are
an error; keys are forgotten after 24 hours of its clock), drafts, lines, finalising, payments, credit notes, refunds
and signed events. A card that is entered on a page is attached to its customer and nothing more; detached, it is gone
for good. Faults are drawn per request from a seed.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import random
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

SECRET = "whsec_test"  # noqa: S105 - of a fake
KEY_KEPT = timedelta(hours=24)
FAULTS = ("409", "429", "500-before", "500-after", "cut-before", "cut-after")
Json = dict[str, Any]


@dataclass
class Clock:
    """Real time as tests move it."""

    at: datetime = field(default_factory=lambda: datetime(2026, 10, 1, tzinfo=UTC))

    def __call__(self) -> datetime:
        """Read it."""
        return self.at

    def pass_(self, span: timedelta) -> None:
        """Let time pass."""
        self.at += span


class FakeStripe:
    """The provider. `rate` of all requests meet a fault; `faults` says which."""

    def __init__(self, clock: Clock, *, seed: int = 0, rate: float = 0.0, faults: tuple[str, ...] = FAULTS) -> None:
        self.clock = clock
        self.rate, self.faults = rate, faults
        self.chance = random.Random(seed)
        self.lock = threading.RLock()
        self.numbers = itertools.count(1)
        self.objects: dict[str, dict[str, Json]] = {}
        self.keys: dict[str, tuple[datetime, tuple[str, str, bytes], int, Json]] = {}
        self.log: list[tuple[str, str, bytes, str]] = []
        self.events: list[Json] = []
        self.numbered: dict[str, str] = {}
        self.met: dict[str, int] = {}
        self.wrong_total = 0
        self.charged_min = 0
        """Less than this is never charged: it is paid at once and added to what the customer owes next."""
        handler = type("Handler", (_Handler,), {"fake": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    # ---- what tests look at and do

    def all(self, kind: str) -> list[Json]:
        """Give all objects of a kind."""
        with self.lock:
            return [dict(one) for one in self.objects.get(kind, {}).values()]

    def pay_on_page(self, invoice: str) -> None:
        """Pay an open invoice on its page."""
        with self.lock:
            self._paid(self.objects["invoices"][invoice])

    def give_card(self, customer: str, *, declined: bool = False) -> str:
        """Attach a card to a customer and make it the default, as the provider's portal does."""
        with self.lock:
            name = self._attach(customer, declined=declined)
            self._default(customer, name)
            return name

    def detach(self, method: str) -> None:
        """Take a card away from its customer, as the portal does; nothing tells of its default but the customer."""
        with self.lock:
            card = self.objects["payment_methods"][method]
            customer, card["customer"] = card["customer"], None
            settings = self.objects["customers"][customer]["invoice_settings"]
            if settings.get("default_payment_method") == method:
                settings["default_payment_method"] = None
            self._event("payment_method.detached", card, was={"customer": customer})

    def _attach(self, customer: str, *, declined: bool) -> str:
        card = self._new("payment_methods", "pm", {
            "object": "payment_method", "type": "card", "customer": customer, "declined": declined,
            "card": {"brand": "visa", "last4": "4242", "exp_month": 12, "exp_year": 2030},
        })  # fmt: skip
        self._event("payment_method.attached", card)
        return str(card["id"])

    def _default(self, customer: str, method: str) -> None:
        self.objects["customers"][customer]["invoice_settings"] = {"default_payment_method": method}
        self._event("customer.updated", self.objects["customers"][customer])

    def dispute(self, invoice: str, status: str, *, currency: str = "usd", fees: tuple[int, ...] = ()) -> str:
        """Have an invoice's payer dispute its payment, or its bank go on with that; give the dispute's id."""
        with self.lock:
            paid = self.objects["invoices"][invoice]
            name = f"du_{invoice}"
            about = self.objects.setdefault("disputes", {}).setdefault(name, {
                "id": name, "object": "dispute", "created": int(self.clock().timestamp()), "reason": "fraudulent",
                "amount": paid["amount_paid"], "currency": currency, "payment_intent": paid["payment_intent"],
                "evidence_details": {"due_by": int(self.clock().timestamp()) + 86_400},
            })  # fmt: skip
            about["status"] = status
            about["balance_transactions"] = [{"fee": fee, "currency": currency} for fee in fees]
            self._event(f"charge.dispute.{'closed' if status in ('won', 'lost') else 'updated'}", about)
            return name

    def signed(self, event: Json, *, secret: str = SECRET, at: datetime | None = None) -> tuple[str, bytes]:
        """Give an event's header and bytes."""
        body = json.dumps(event).encode()
        stamp = str(int((at or self.clock()).timestamp()))
        good = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        return f"t={stamp},v1={'0' * 64},v1={good}", body

    # ---- serving

    def answer(self, method: str, target: str, body: bytes, key: str) -> tuple[int, Json] | None:
        """Answer a request; None: cut the connection without a word."""
        with self.lock:
            self.log.append((method, target, body, key))
            fault = self.chance.choice(self.faults) if self.chance.random() < self.rate else ""
            self.met[fault] = self.met.get(fault, 0) + 1
            if fault == "cut-before":
                return None
            if fault in ("409", "429"):
                return int(fault), _error("busy")
            stored = self.keys.get(key) if key else None
            if stored is not None and self.clock() - stored[0] < KEY_KEPT:
                if stored[1] != (method, target, body):
                    return 400, _error("Keys for idempotent requests can only be used with the same parameters")
                return None if fault == "cut-after" else (stored[2], stored[3])
            if fault == "500-before":
                status, said = 500, _error("something broke")
            else:
                status, said = self._do(method, target, body)
                if fault == "500-after":
                    status, said = 500, _error("something broke")
            if key:
                self.keys[key] = (self.clock(), (method, target, body), status, json.loads(json.dumps(said)))
            return None if fault == "cut-after" else (status, said)

    def _do(self, method: str, target: str, body: bytes) -> tuple[int, Json]:
        parts = urlsplit(target)
        fields = dict(parse_qsl(parts.query if method == "GET" else body.decode(), keep_blank_values=True))
        words = parts.path.strip("/").split("/")[1:]
        kind = "/".join(words[:2]) if words[0] in ("checkout", "billing_portal") else words[0]
        rest = words[2:] if "/" in kind else words[1:]
        try:
            if method == "GET":
                return self._get(kind, rest, fields)
            if method == "DELETE":
                return self._delete(rest[0])
            made = getattr(self, f"_post_{'_'.join([kind.replace('/', '_'), *rest[1:2]])}")
            return made(fields, *rest[:1])
        except KeyError as error:
            return 404, _error(f"No such object: {error}")

    def _get(self, kind: str, rest: list[str], fields: dict[str, str]) -> tuple[int, Json]:
        if rest[1:] == ["payment_methods"]:
            kind, rest, fields = "payment_methods", [], {**fields, "customer": rest[0]}
        if rest:
            return 200, self.objects[kind][rest[0]]
        limit, since = int(fields.pop("limit", "10")), int(fields.pop("created[gte]", "0"))
        after, wanted = fields.pop("starting_after", ""), list(fields.items())
        newest = reversed(self.objects.get(kind, {}).values())
        if after:
            next(one for one in newest if one["id"] == after)
        matching = (
            one for one in newest
            if one["created"] >= since and all(one.get(name) == value for name, value in wanted)
        )  # fmt: skip
        found = list(itertools.islice(matching, limit + 1))
        return 200, {"object": "list", "data": found[:limit], "has_more": len(found) > limit}

    def _delete(self, name: str) -> tuple[int, Json]:
        if self.objects["invoices"][name]["status"] != "draft":
            return 400, _error("only drafts can be deleted")
        del self.objects["invoices"][name]
        return 200, {"id": name, "deleted": True}

    def _new(self, kind: str, prefix: str, fields: Json) -> Json:
        one = {"id": f"{prefix}_{next(self.numbers)}", "created": int(self.clock().timestamp()), **fields}
        self.objects.setdefault(kind, {})[one["id"]] = one
        return one

    def _event(self, kind: str, about: Json, *, was: Json | None = None) -> None:
        data = {"object": about} if was is None else {"object": about, "previous_attributes": was}
        self.events.append({
            "id": f"evt_{next(self.numbers)}", "object": "event", "type": kind, "livemode": False,
            "data": json.loads(json.dumps(data)),
        })  # fmt: skip

    def _post_customers(self, fields: dict[str, str], *names: str) -> tuple[int, Json]:
        for name in names:
            method = fields["invoice_settings[default_payment_method]"]
            if self.objects["payment_methods"][method]["customer"] != name:
                return 400, _error("The customer does not have a payment method with this ID.")
            self._default(name, method)
            return 200, self.objects["customers"][name]
        return 200, self._new("customers", "cus", {
            "object": "customer", "name": fields["name"], "metadata": _metadata(fields), "invoice_settings": {},
        })  # fmt: skip

    def _post_invoices(self, fields: dict[str, str], *_: str) -> tuple[int, Json]:
        customer = self.objects["customers"][fields["customer"]]["id"]
        if self.numbered.get(fields["number"]) in self.objects.get("invoices", {}):
            return 400, _error("the number is taken")
        made = self._new("invoices", "in", {
            "object": "invoice", "customer": customer, "currency": fields["currency"], "status": "draft",
            "number": fields["number"], "auto_advance": fields["auto_advance"] == "true", "total": 0,
            "amount_due": 0, "amount_paid": 0, "metadata": _metadata(fields), "lines": {"data": []},
            "paid_out_of_band": False, "payment_intent": None, "hosted_invoice_url": None,
        })  # fmt: skip
        self.numbered[fields["number"]] = made["id"]
        return 200, made

    def _post_invoices_add_lines(self, fields: dict[str, str], name: str) -> tuple[int, Json]:
        invoice = self.objects["invoices"][name]
        if invoice["status"] != "draft":
            return 400, _error("the invoice is not a draft")
        for place in itertools.count():
            if f"lines[{place}][amount]" not in fields:
                break
            line = {
                "description": fields[f"lines[{place}][description]"],
                "amount": int(fields[f"lines[{place}][amount]"]),
            }
            invoice["lines"]["data"].append(line)
        invoice["total"] = sum(line["amount"] for line in invoice["lines"]["data"]) + self.wrong_total
        invoice["amount_due"] = invoice["total"]
        return 200, invoice

    def _post_invoices_finalize(self, _: dict[str, str], name: str) -> tuple[int, Json]:
        invoice = self.objects["invoices"][name]
        if invoice["status"] != "draft":
            return 400, _error("the invoice is finalized already")
        invoice["status"], invoice["hosted_invoice_url"] = "open", f"{self.url}/pay/{name}"
        self._event("invoice.finalized", invoice)
        if invoice["amount_due"] < self.charged_min:
            invoice["status"], invoice["amount_due"] = "paid", 0
            self._event("invoice.paid", invoice)
        return 200, invoice

    def _post_invoices_pay(self, fields: dict[str, str], name: str) -> tuple[int, Json]:
        invoice = self.objects["invoices"][name]
        if invoice["status"] != "open":
            return 400, _error(f"the invoice is {invoice['status']}")
        if fields.get("paid_out_of_band") == "true":
            invoice["paid_out_of_band"] = True
            return 200, self._paid(invoice)
        settings = self.objects["customers"][invoice["customer"]]["invoice_settings"]
        charged = fields.get("payment_method") or settings.get("default_payment_method")
        if not charged:
            return 400, _error("There is no `default_payment_method` set on this Customer or Invoice.")
        method = self.objects["payment_methods"][charged]
        if method["customer"] != invoice["customer"]:
            return 400, _error("The payment method does not belong to the customer.")
        if method["declined"]:
            self._event("invoice.payment_failed", invoice)
            return 402, _error("Your card was declined.")
        return 200, self._paid(invoice)

    def _paid(self, invoice: Json) -> Json:
        invoice.update(status="paid", amount_paid=invoice["amount_due"])
        if invoice["paid_out_of_band"] or not invoice["amount_due"]:
            self._event("invoice.paid", invoice)
            return invoice
        invoice["payment_intent"] = f"pi_{invoice['id']}"
        payment = {
            "id": invoice["payment_intent"], "object": "payment_intent", "invoice": invoice["id"],
            "amount_received": invoice["amount_due"],
        }  # fmt: skip
        self.objects.setdefault("payment_intents", {})[payment["id"]] = payment
        self._event("invoice.paid", invoice)
        return invoice

    def _post_invoices_void(self, _: dict[str, str], name: str) -> tuple[int, Json]:
        invoice = self.objects["invoices"][name]
        if invoice["status"] != "open":
            return 400, _error(f"the invoice is {invoice['status']}")
        invoice["status"] = "void"
        self._event("invoice.voided", invoice)
        return 200, invoice

    def _post_credit_notes(self, fields: dict[str, str], *_: str) -> tuple[int, Json]:
        invoice, amount = self.objects["invoices"][fields["invoice"]], int(fields["amount"])
        if invoice["status"] != "open" or amount > invoice["amount_due"]:
            return 400, _error("more than is due")
        invoice["amount_due"] -= amount
        if invoice["amount_due"] == 0:
            self._paid(invoice)
        return 200, self._new("credit_notes", "cn", {
            "object": "credit_note", "invoice": invoice["id"], "amount": amount, "metadata": _metadata(fields),
        })  # fmt: skip

    def _post_refunds(self, fields: dict[str, str], *_: str) -> tuple[int, Json]:
        payment = self.objects["payment_intents"][fields["payment_intent"]]
        payment["amount_received"] -= int(fields["amount"])
        if payment["amount_received"] < 0:
            payment["amount_received"] += int(fields["amount"])
            return 400, _error("Refund amount is greater than unrefunded amount on charge")
        return 200, self._new("refunds", "re", {
            "object": "refund", "payment_intent": fields["payment_intent"], "amount": int(fields["amount"]),
            "status": "succeeded", "metadata": _metadata(fields),
        })  # fmt: skip

    def _post_checkout_sessions(self, fields: dict[str, str], *_: str) -> tuple[int, Json]:
        session = self._new("checkout/sessions", "cs", {
            "object": "checkout.session", "mode": fields["mode"], "customer": fields["customer"], "status": "open",
        })  # fmt: skip
        session["url"] = f"{self.url}/c/{session['id']}"
        return 200, session

    def _post_billing_portal_sessions(self, fields: dict[str, str], *_: str) -> tuple[int, Json]:
        session = self._new("billing_portal/sessions", "bps", {"customer": fields["customer"]})
        session["url"] = f"{self.url}/p/{session['id']}"
        return 200, session

    def _post_payment_methods_detach(self, _: dict[str, str], name: str) -> tuple[int, Json]:
        if self.objects["payment_methods"][name]["customer"] is None:
            return 400, _error("The payment method is not attached to a customer.")
        self.detach(name)
        return 200, self.objects["payment_methods"][name]

    def complete(self, session: str, *, declined: bool = False) -> str:
        """Enter a card on a page; it is not made the default by that."""
        with self.lock:
            found = self.objects["checkout/sessions"][session]
            method = self._attach(found["customer"], declined=declined)
            setup = self._new("setup_intents", "seti", {"payment_method": method})
            found.update(status="complete", setup_intent=setup["id"])
            self._event("checkout.session.completed", found)
            return method


class _Handler(BaseHTTPRequestHandler):
    fake: FakeStripe
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = self.fake.answer(self.command, self.path, body, self.headers.get("Idempotency-Key") or "")
        if found is None:
            self.close_connection = True
            return
        text = json.dumps(found[1]).encode()
        head = f"HTTP/1.1 {found[0]} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        self.wfile.write(head.encode() + text)

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _error(message: str) -> Json:
    return {"error": {"type": "api_error", "message": message}}


def _metadata(fields: dict[str, str]) -> dict[str, str]:
    return {name[9:-1]: value for name, value in fields.items() if name.startswith("metadata[")}
