"""Put an invoice document into words and figures of a locale."""

from __future__ import annotations

import unicodedata
from datetime import datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias
from zoneinfo import ZoneInfo

from babel.dates import format_date, format_datetime
from babel.numbers import format_currency, format_decimal

from tollkeeper_ledger.domain.invoiced import INVOICED_PREFIX
from tollkeeper_ledger.domain.money import EXACT, Currency
from tollkeeper_ledger.domain.rating.engine import LATE_SEPARATOR
from tollkeeper_ledger.services.pdf.words import LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.services.pdf.words import Words

Json: TypeAlias = dict[str, Any]

_MINUS = "\N{MINUS SIGN}"
_CREDIT_NOTE = "credit_note"


def invoice_texts(document: Json, *, digest: str, paper: str) -> Json:
    """Give everything that the template prints. Pure: depends on the document, not on clock or machine locale."""
    words = LANGUAGES[document["billing"]["locale"]]
    currency = Currency.from_code(document["currency"])
    seller, payer = _clean(document["seller"]), _clean(document["billing_tenant"])
    is_credit = document.get("kind") == _CREDIT_NOTE
    heading = words["Credit note" if is_credit else "Invoice"]
    number = document["number"] or words["Preview"]
    return {
        "paper": paper,
        "lang": words.locale,
        "title": f"{heading} {number}",
        "heading": heading,
        "number": number,
        "digest": digest,
        "seller": {"name": seller["name"], "rows": _filled(*seller["address"], seller["email"], seller["website"])},
        "bill_to": {"name": payer["name"], "rows": _filled(*payer["address"], _tax_id(payer, words))},
        "labels": {
            "bill_to": words["Bill to"],
            "empty": "" if is_credit else words["Nothing was used in this period."],
            "page": words["Page"],
            "of": words["of"],
        },
        "facts": _facts(document, words),
        "columns": [words[name] for name in ("Description", "Quantity", "Included", "Unit price", "Amount")],
        "lines": [_line(_clean(line), document, currency, words) for line in _lines(document, words)],
        "totals": _totals(document, currency, words),
        "total": [
            f"{words['Credited' if is_credit else 'Total']} {currency.code}",
            _money(document["total_minor"], currency, words),
        ],
        "notes": _notes(document, seller, words),
        "footer": "  \N{MIDDLE DOT}  ".join(_filled(seller["name"], _tax_id(seller, words))),
    }


def _clean(value: Any) -> Any:
    """Take control and format characters out of texts: an override of direction would show other figures."""
    if isinstance(value, dict):
        return {name: _clean(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, str):
        return "".join(one for one in value if unicodedata.category(one) not in ("Cf", "Cc"))
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
        date = format_date(at, words.day, locale=words.locale)
        facts.append([words["Date" if is_credit else "Invoice date"], date])
    if is_credit:
        facts.append([words["For invoice"], document["invoice"]])
    facts.append([words["Billing period"], period_text(document["period"], zone, words)])
    plan = document["plan"]
    facts.append([words["Plan"], f"{plan['name']}, {words['version']} {plan['version']}"])
    facts.append([words["Tenant"], document["tenant"]["id"]])
    if not is_credit:
        facts.append([words["Usage records"], format_decimal(document["record_count"], locale=words.locale)])
    return facts


def _totals(document: Json, currency: Currency, words: Words) -> list[list[str]]:
    """Give what stands above the total: the lines, what coupons take off, and each tax."""
    rows = [[words["Subtotal"], _money(document["lines_minor"], currency, words)]]
    if document["discount_minor"]:
        rows.append([words["Discount"], _money(-document["discount_minor"], currency, words)])
    contained = document["billing"]["tax_mode"] == "inclusive"
    if contained or document["discount_minor"]:
        rows.append([words["Net"], _money(document["subtotal_minor"], currency, words)])
    taxes = [tax for tax in document["taxes"] if tax["name"]]
    for tax in taxes:
        percent = format_decimal(Decimal(tax["percent"]), locale=words.locale, decimal_quantization=False)
        base = _money(tax["base_minor"], currency, words)
        label = f"{_clean(tax['name'])} {percent}\N{NO-BREAK SPACE}%" + (f" ({base})" if len(taxes) > 1 else "")
        rows.append([label, _money(tax["tax_minor"], currency, words)])
    if not taxes:
        rows.append([words["Tax"], _money(document["tax_minor"], currency, words)])
    return rows


def period_text(period: Json, zone: ZoneInfo, words: Words) -> str:
    """Write a period: whole days by their dates, the last day included; anything else to the minute."""
    start, end = (datetime.fromisoformat(period[name]).astimezone(zone) for name in ("start", "end"))
    dash = "\N{EN DASH}"
    if start.time() == end.time() == time(0):
        last = end.date().fromordinal(end.date().toordinal() - 1)
        if start.date() == last:
            return str(format_date(last, words.day, locale=words.locale))
        first = format_date(start, words.short_day, locale=words.locale)
        return f"{first} {dash} {format_date(last, words.short_day, locale=words.locale)}"
    first = format_datetime(start, f"{words.short_day}, HH:mm", locale=words.locale)
    pattern = "HH:mm zzz" if start.date() == end.date() else f"{words.short_day}, HH:mm zzz"
    return f"{first} {dash} {format_datetime(end, pattern, locale=words.locale)}"


def _line(line: Json, document: Json, currency: Currency, words: Words) -> Json:
    invoiced = [f"{words['Already invoiced']}: {', '.join(line['invoiced'])}"] if line.get("invoiced") else []
    if not line["meter"]:
        return {
            "description": _for_people(line["description"].removeprefix(INVOICED_PREFIX)),
            "notes": invoiced,
            "quantity": "1",
            "included": "",
            "unit_price": _unit_price(line, currency, words),
            "per": "",
            "amount": _money(line["amount_minor"], currency, words),
        }
    unit = line["unit"]
    per = _units(line["price_per"], line, words)
    per = unit if per == "1" else f"{per} {unit}"
    description, notes = line["description"].removeprefix(INVOICED_PREFIX), []
    if line["late"]:
        description = description.split(LATE_SEPARATOR)[0]
        period = period_text(line["period"], ZoneInfo(document["time_zone"]), words)
        notes.append(f"{words['Adjustment for']} {period}")
    notes.extend(f"{name}: {value}" for name, value in line.get("dimensions", {}).items())
    notes.extend(_part(part, currency, words) for part in line["parts"])
    notes.extend(invoiced)
    return {
        "description": _for_people(description),
        "notes": notes,
        "quantity": f"{_units(line['quantity'], line, words)} {unit}",
        "included": _units(line["included"], line, words) if line["included"] else "",
        "unit_price": _unit_price(line, currency, words),
        "per": "" if line["parts"] or invoiced else f"{words['per']} {per}",
        "amount": _money(line["amount_minor"], currency, words),
    }


def _for_people(name: str) -> str:
    """Write a meter's or fee's own name as words; a description of several words stays as it is."""
    words = name if " " in name else name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _units(quantity: int | Decimal, line: Json, words: Words) -> str:
    value = EXACT.scaleb(Decimal(quantity), -line["scale"])
    return str(format_decimal(value, locale=words.locale, decimal_quantization=False)).replace("-", _MINUS)


def _money(amount_minor: int, currency: Currency, words: Words) -> str:
    amount = EXACT.scaleb(Decimal(amount_minor), -currency.digits)
    digits = f"#,##0{'.' if currency.digits else ''}{'0' * currency.digits}"
    pattern = words.money.replace("#,##0", digits)
    return str(format_currency(amount, currency.code, pattern, locale=words.locale, currency_digits=False)).replace(
        "-", _MINUS
    )


def money_text(amount_minor: int, currency_code: str, words: Words) -> str:
    """Write an amount as the invoice does."""
    return _money(amount_minor, Currency.from_code(currency_code), words)


def _part(part: Json, currency: Currency, words: Words) -> str:
    """Write one tier, package count or flat fee, exact to what a reader can check."""
    times = _units(Decimal(part["quantity"]), part, words)
    per = _units(Decimal(part["per"]), part, words)
    if per != "1":
        times = f"{times} / {per}"
    name = part["name"][:1].upper() + part["name"][1:]
    price, amount = (_exact_price(Decimal(part[field]), currency, words) for field in ("unit_price", "amount"))
    return f"{name}: {times} \N{MULTIPLICATION SIGN} {price} = {amount}"


def _unit_price(line: Json, currency: Currency, words: Words) -> str:
    if not line["unit_price"]:
        return words["by tier"] if len(line["parts"]) > 1 else ""
    return _exact_price(Decimal(line["unit_price"]), currency, words)


def _exact_price(price: Decimal, currency: Currency, words: Words) -> str:
    return str(
        format_currency(price, currency.code, locale=words.locale, currency_digits=False, decimal_quantization=False)
    )


def _notes(document: Json, seller: Json, words: Words) -> Sequence[Sequence[str]]:
    notes = []
    billing = document["billing"]
    if document.get("kind") != _CREDIT_NOTE:
        if document["number"]:
            notes.append([words["Payment"], f"{words['Payable within']} {billing['due_days']} {words['days']}."])
        if seller["payment_note"]:
            notes.append([words["Payment"], seller["payment_note"]])
    if billing["tax_mode"] == "reverse_charge":
        notes.append([words["Tax"], words["Reverse charge: the customer accounts for the tax."]])
    elif seller["tax_note"]:
        notes.append([words["Tax"], seller["tax_note"]])
    elif not document["tax_minor"]:
        notes.append([words["Tax"], words["No tax has been charged on this invoice."]])
    if document.get("is_cut"):
        explained = "Usage so far; what comes until the period's end is invoiced later, less this invoice."
        notes.append([words["Billing period"], words[explained]])
    if any(line["late"] for line in document["lines"]):
        explained = "Usage that arrived after its period had been closed is rated with the prices of that period."
        notes.append([words["Adjustments"], words[explained]])
    return notes
