"""Requests to the provider as exact bytes, and what its answers mean. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tollkeeper_ledger.domain.provider_work import Work

Json: TypeAlias = dict[str, Any]

KEY_TRUSTED = timedelta(hours=20)
"""Age beyond which an idempotency key is not relied on; the provider forgets keys after 24 hours."""

COUNTED_OTHERWISE = frozenset({"ISK", "MGA", "UGX"})
"""Currencies whose amounts the provider takes in other units than ISO 4217 names: a hundredth or a hundredfold of ours.

Source: docs.stripe.com/currencies, zero-decimal currencies and special cases.
"""

_OK, _ERRORS, _SERVER_ERRORS = 200, 400, 500
_DECLINED, _CONFLICT, _TOO_MANY = 402, 409, 429


@dataclass(frozen=True, slots=True)
class Request:
    """One request: what is sent, to the byte."""

    method: str
    path: str
    body: bytes
    key: str = ""
    """Idempotency key; empty for reads."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    body: bytes
    retry_after_s: int = 0

    def read(self) -> Json:
        """Give the body as JSON; empty where it is none."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def problem(self) -> str:
        """Give what the provider says is wrong."""
        error = self.read().get("error")
        said = error.get("message", "") if isinstance(error, dict) else ""
        return f"{self.status}: {said}"[:500]


class Meaning(Enum):
    """What to do after an answer."""

    DONE = "the effect is there"
    AGAIN = "send the same bytes under the same key later"
    BURNT = "the key answers with an error for ever: look, then a new attempt"
    DECLINED = "the payment was refused"
    REFUSED = "the request is wrong; nobody can repeat it"


def meaning_of(reply: Reply | None) -> Meaning:
    """Say what an answer means; None = none came, so the effect is unknown."""
    if reply is None or reply.status in (_CONFLICT, _TOO_MANY):
        return Meaning.AGAIN
    if reply.status >= _SERVER_ERRORS:
        return Meaning.BURNT
    if reply.status == _DECLINED:
        return Meaning.DECLINED
    return Meaning.DONE if _OK <= reply.status < _ERRORS else Meaning.REFUSED


def is_too_many(reply: Reply) -> bool:
    """Say whether an answer refuses a request for how many there are; one object that is busy is not meant by that."""
    if reply.status != _TOO_MANY:
        return False
    error = reply.read().get("error")
    return not isinstance(error, dict) or error.get("code") != "lock_timeout"


def form(fields: Mapping[str, object]) -> bytes:
    """Encode fields in their order."""
    return urlencode([(name, str(value)) for name, value in fields.items()]).encode("ascii")


def key_of(*parts: object) -> str:
    """Give the idempotency key of (account, invoice, version, step, attempt)."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()


def customer_request(work: Work) -> Request:
    """Make the payer known to the provider."""
    fields = {"name": work.payer_name, "metadata[tollkeeper_tenant]": work.payer_id}
    if work.email:
        fields["email"] = work.email
    return Request("POST", "/v1/customers", form(fields))


def draft_request(work: Work) -> Request:
    """Make an empty draft that nothing advances but us."""
    fields = {
        "customer": work.facts["customer"],
        "currency": work.currency.lower(),
        "auto_advance": "false",
        "collection_method": "charge_automatically",
        "pending_invoice_items_behavior": "exclude",
        "number": work.number,
        "metadata[tollkeeper_invoice]": work.invoice_id,
    }
    return Request("POST", "/v1/invoices", form(fields))


def lines_request(work: Work) -> Request:
    """Put all final lines on the draft, at once."""
    fields: dict[str, object] = {}
    for place, (description, amount_minor) in enumerate(work.lines):
        fields[f"lines[{place}][description]"] = description
        fields[f"lines[{place}][amount]"] = amount_minor
    return Request("POST", f"{_invoice(work)}/add_lines", form(fields))


def finalise_request(work: Work) -> Request:
    """Finalise the draft; we advance it from there."""
    return Request("POST", f"{_invoice(work)}/finalize", form({"auto_advance": "false"}))


def pay_request(work: Work) -> Request:
    """Charge the payer's method by its name while nobody is there."""
    return Request("POST", f"{_invoice(work)}/pay", form({"off_session": "true", "payment_method": work.method}))


def settled_request(work: Work) -> Request:
    """Say that it was paid elsewhere."""
    return Request("POST", f"{_invoice(work)}/pay", form({"paid_out_of_band": "true"}))


def discard_request(work: Work) -> Request:
    """Delete a draft that is not what the ledger says."""
    return Request("DELETE", _invoice(work), b"")


def void_request(work: Work) -> Request:
    """Void a finalised invoice."""
    return Request("POST", f"{_invoice(work)}/void", b"")


def credit_request(work: Work) -> Request:
    """Lower what is due on a finalised invoice."""
    fields = {
        "invoice": work.facts["invoice"],
        "amount": work.amount_minor,
        "metadata[tollkeeper_credit_note]": work.subject_id,
    }
    return Request("POST", "/v1/credit_notes", form(fields))


def refund_request(work: Work) -> Request:
    """Send money back to where it came from."""
    fields = {
        "payment_intent": work.facts["payment"],
        "amount": work.amount_minor,
        "metadata[tollkeeper_refund]": work.subject_id,
    }
    return Request("POST", "/v1/refunds", form(fields))


def default_request(customer: str, method: str) -> Request:
    """Make a method what a customer's invoices are charged to. Without a key: done twice, it is as done once."""
    fields = {"invoice_settings[default_payment_method]": method}
    return Request("POST", object_path("customers", customer), form(fields))


def read_request(path: str, **fields: object) -> Request:
    """Read something."""
    query = form({name.replace("_gte", "[gte]"): value for name, value in fields.items()}).decode()
    return Request("GET", f"{path}?{query}" if query else path, b"")


def object_path(kind: str, name: str) -> str:
    """Give the path of one object, its id quoted."""
    return f"/v1/{kind}/{quote(name, safe='')}"


def _invoice(work: Work) -> str:
    return object_path("invoices", work.facts["invoice"])
