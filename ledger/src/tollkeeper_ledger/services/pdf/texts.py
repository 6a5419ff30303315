"""Put an invoice document into words and figures of a locale."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime, timedelta
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias
from zoneinfo import ZoneInfo

from tollkeeper_ledger.domain.catalogue.canonical import bare_plan
from tollkeeper_ledger.domain.money import Currency
from tollkeeper_ledger.services.pdf.figures import day_text, money_text, number_text, percent_text, period_text
from tollkeeper_ledger.services.pdf.lines import line_text
from tollkeeper_ledger.services.pdf.words import LANGUAGES

if TYPE_CHECKING:
    from tollkeeper_ledger.services.pdf.words import Words

Json: TypeAlias = dict[str, Any]

_CREDIT_NOTE = "credit_note"
_BREAK = "\N{ZERO WIDTH SPACE}"
_LONG_WORD = re.compile(r"\S{25,}")
_LONG_CHARS = 6


def invoice_texts(document: Json, *, digest: str, paper: str, is_void: bool = False) -> Json:
    """Give everything that the template prints. Pure: depends on what it is given, not on clock or machine locale.

    `is_void`: says on the page that the invoice counts no more.
    """
    words = LANGUAGES[document["billing"]["locale"]]
    currency = Currency.from_code(document["currency"])
    seller, payer = _clean(document["seller"]), _clean(document["billing_tenant"])
    is_credit = document.get("kind") == _CREDIT_NOTE
    heading = words["Credit note" if is_credit else "Invoice"]
    number = document["number"] or words["Preview"]
    lines = _lines(document, words)
    shown = [_breakable(line_text(_clean(line), document, currency, words)) for line in lines]
    if _is_reverse_charge(document):
        shown = [{**line, "tax": ""} for line in shown]
    return {
        "paper": paper,
        "lang": words.locale,
        "title": f"{heading} {number}",
        "heading": heading,
        "number": number,
        "stamp": words["Void"] if is_void else "",
        "digest": digest,
        "seller": _breakable(
            {"name": seller["name"], "rows": _filled(*seller["address"], seller["email"], seller["website"])}
        ),
        "bill_to": _breakable({"name": payer["name"], "rows": _filled(*payer["address"], _tax_id(payer, words))}),
        "labels": {
            "bill_to": words["Credit to" if is_credit else "Bill to"],
            "empty": "" if is_credit else words["Nothing was used in this period."],
            "page": words["Page"],
            "of": words["of"],
            "carried": words["Carried forward"],
            "brought": words["Brought forward"],
        },
        "facts": _breakable(_facts(document, words)),
        "columns": _columns(shown, words),
        "lines": shown,
        "carried": [
            money_text(sum_minor, currency.code, words)
            for sum_minor in accumulate((line["amount_minor"] for line in lines), initial=0)
        ],
        "totals": _breakable(_totals(document, words)),
        "total": [
            f"{words['Credited' if is_credit else 'Total']} {currency.code}",
            money_text(document["total_minor"], currency.code, words),
        ],
        "notes": _breakable(_notes(document, seller, words)),
        "footer": _breakable("  \N{MIDDLE DOT}  ".join(_filled(seller["name"], _tax_id(seller, words)))),
    }


def _columns(lines: list[Json], words: Words) -> list[list[str]]:
    """Give the columns of the table as name and heading; those that no line fills are left out."""
    optional = {"included", "unit_price", "tax"}
    names = {
        "description": "Description",
        "quantity": "Quantity",
        "included": "Included",
        "unit_price": "Unit price",
        "tax": "Tax",
        "amount": "Amount",
    }
    return [
        [name, words[phrase]]
        for name, phrase in names.items()
        if name not in optional or any(line[name] for line in lines)
    ]


def _breakable(value: Any) -> Any:
    """Let words that are longer than a column break, so that nothing runs over an edge."""
    if isinstance(value, dict):
        return {name: _breakable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_breakable(one) for one in value]
    return _LONG_WORD.sub(_broken, value) if isinstance(value, str) else value


def _broken(found: re.Match[str]) -> str:
    word = found[0]
    return _BREAK.join(word[place : place + _LONG_CHARS] for place in range(0, len(word), _LONG_CHARS))


def _clean(value: Any) -> Any:
    """Take control and format characters out of texts: an override of direction would show other figures."""
    if isinstance(value, dict):
        return {name: _clean(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, str):
        return (
            value
            if value.isprintable()
            else "".join(one for one in value if unicodedata.category(one) not in ("Cf", "Cc"))
        )
    return value


def _filled(*texts: str) -> list[str]:
    return [text for text in texts if text]


def _tax_id(party: Json, words: Words) -> str:
    return f"{words['Tax ID']} {party['tax_id']}" if party["tax_id"] else ""


def _lines(document: Json, words: Words) -> list[Json]:
    """Give the lines; a credit note has one, which says why."""
    if document.get("kind") != _CREDIT_NOTE:
        return list(document["lines"])
    return [
        {
            "description": document["note"] or words["Credit note"],
            "meter": "",
            "unit_price": "",
            "parts": [],
            "amount_minor": document["lines_minor"],
        }
    ]


def _facts(document: Json, words: Words) -> list[list[str]]:
    zone = ZoneInfo(document["time_zone"])
    is_credit = document.get("kind") == _CREDIT_NOTE
    facts = []
    if document["finalised_at"]:
        at = datetime.fromisoformat(document["finalised_at"]).astimezone(zone)
        facts.append([words["Date" if is_credit else "Invoice date"], day_text(at, words)])
    due = _due_date(document, words)
    if due:
        facts.append([words["Due date"], due])
    if is_credit:
        facts.append([words["For invoice"], document["invoice"]])
    if document.get("replaces"):
        facts.append([words["Replaces invoice"], document["replaces"]])
    facts.append([words["Billing period"], period_text(document["period"], zone, words)])
    plan = document["plan"]
    facts.append([words["Plan"], f"{bare_plan(plan['name'])}, {words['version']} {plan['version']}"])
    facts.append([words["Tenant"], document["tenant"]["id"]])
    if not is_credit:
        facts.append([words["Usage records"], number_text(document["record_count"], words)])
    return facts


def _due_date(document: Json, words: Words) -> str:
    """Give until when an invoice is to be paid; nothing where nothing is to pay, or not yet."""
    if document.get("kind") == _CREDIT_NOTE or not document["finalised_at"] or document["total_minor"] <= 0:
        return ""
    finalised_at = datetime.fromisoformat(document["finalised_at"])
    due_at = finalised_at + timedelta(days=document["billing"]["due_days"])
    return day_text(due_at.astimezone(ZoneInfo(document["time_zone"])), words)


def _totals(document: Json, words: Words) -> list[list[str]]:
    """Give what stands above the total: the lines, what coupons take off, and each tax."""

    def money(amount_minor: int) -> str:
        return money_text(amount_minor, document["currency"], words)

    rows = [[words["Subtotal"], money(document["lines_minor"])]]
    if document["discount_minor"]:
        rows.append([words["Discount"], money(-document["discount_minor"])])
    contained = document["billing"]["tax_mode"] == "inclusive"
    if contained or document["discount_minor"]:
        rows.append([words["Net"], money(document["subtotal_minor"])])
    # The customer accounts for the tax of an invoice by reverse charge, but not for one that it paid and gets back.
    is_shown = itemgetter("tax_minor") if _is_reverse_charge(document) else itemgetter("name")
    taxes = [tax for tax in document["taxes"] if tax["name"] and is_shown(tax)]
    for tax in taxes:
        base = f" {words['on']} {money(tax['base_minor'])}" if len(taxes) > 1 else ""
        rows.append([
            f"{_clean(tax['name'])} {percent_text(tax['percent'], words)}{base}",
            money(tax["tax_minor"]),
        ])  # fmt: skip
    if not taxes:
        rows.append([words["Tax"], money(document["tax_minor"])])
    return rows


def _is_reverse_charge(document: Json) -> bool:
    return bool(document["billing"]["tax_mode"] == "reverse_charge")


def _notes(document: Json, seller: Json, words: Words) -> list[list[str]]:
    notes = []
    if document.get("kind") != _CREDIT_NOTE:
        how = seller["payment_note"] if document["total_minor"] > 0 else ""
        payment = " ".join(_filled(_payment(document, words), how))
        if payment:
            notes.append([words["Payment"], payment])
    if _is_reverse_charge(document):
        notes.append([words["Tax"], words["Reverse charge: the customer accounts for the tax."]])
    elif seller["tax_note"]:
        notes.append([words["Tax"], seller["tax_note"]])
    elif not document["tax_minor"] and not any(tax["name"] for tax in document["taxes"]):
        notes.append([words["Tax"], words["No tax has been charged on this invoice."]])
    if document.get("is_cut"):
        explained = "Usage so far; what comes until the period's end is invoiced later, less this invoice."
        notes.append([words["Billing period"], words[explained]])
    if any(line["late"] for line in document["lines"]):
        explained = "Usage that arrived after its period had been closed is rated with the prices of that period."
        notes.append([words["Adjustments"], words[explained]])
    return notes


def _payment(document: Json, words: Words) -> str:
    """Say what is to be done about the total."""
    if not document["number"]:
        return ""
    if document["total_minor"] > 0:
        return f"{words['Payable by']} {_due_date(document, words)}."
    if document["total_minor"] < 0:
        return words["This amount is in your favour; it pays your next invoices."]
    return words["Nothing is to pay."]
