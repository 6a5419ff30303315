"""Put an invoice document into words and figures of a locale."""

from __future__ import annotations

from datetime import datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias
from zoneinfo import ZoneInfo

from babel.dates import format_date, format_datetime
from babel.numbers import format_currency, format_decimal

from tollkeeper_ledger.domain.money import EXACT, Currency
from tollkeeper_ledger.domain.rating.engine import LATE_SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Sequence

Json: TypeAlias = dict[str, Any]

LOCALE = "en"
_MINUS = "\N{MINUS SIGN}"


def invoice_texts(document: Json, *, digest: str, paper: str) -> Json:
    """Give everything that the template prints. Pure: depends on the document, not on clock or machine locale."""
    currency = Currency.from_code(document["currency"])
    seller, payer = document["seller"], document["billing_tenant"]
    number = document["number"] or "Preview"
    return {
        "paper": paper,
        "lang": LOCALE,
        "title": f"Invoice {number}",
        "heading": "Invoice",
        "number": number,
        "digest": digest,
        "seller": {"name": seller["name"], "rows": _filled(*seller["address"], seller["email"], seller["website"])},
        "bill_to": {
            "name": payer["name"],
            "rows": _filled(*payer["address"], f"Tax ID {payer['tax_id']}" if payer["tax_id"] else ""),
        },
        "labels": {"bill_to": "Bill to", "empty": "Nothing was used in this period."},
        "facts": _facts(document),
        "columns": ["Description", "Quantity", "Included", "Unit price", "Amount"],
        "lines": [_line(line, document, currency) for line in document["lines"]],
        "totals": [
            ["Subtotal", _money(document["subtotal_minor"], currency)],
            ["Tax", _money(document["tax_minor"], currency)],
        ],
        "total": [f"Total {currency.code}", _money(document["total_minor"], currency)],
        "notes": _notes(document),
        "footer": "  \N{MIDDLE DOT}  ".join(
            _filled(seller["name"], f"Tax ID {seller['tax_id']}" if seller["tax_id"] else "")
        ),
    }


def _filled(*texts: str) -> list[str]:
    return [text for text in texts if text]


def _facts(document: Json) -> list[list[str]]:
    zone = ZoneInfo(document["time_zone"])
    facts = []
    if document["finalised_at"]:
        at = datetime.fromisoformat(document["finalised_at"]).astimezone(zone)
        facts.append(["Invoice date", format_date(at, "d MMMM y", locale=LOCALE)])
    facts.append(["Billing period", period_text(document["period"], zone)])
    plan = document["plan"]
    facts.append(["Plan", f"{plan['name']}, version {plan['version']}"])
    facts.append(["Tenant", document["tenant"]["id"]])
    facts.append(["Usage records", format_decimal(document["record_count"], locale=LOCALE)])
    return facts


def period_text(period: Json, zone: ZoneInfo) -> str:
    """Write a period: whole days by their dates, the last day included; anything else to the minute."""
    start, end = (datetime.fromisoformat(period[name]).astimezone(zone) for name in ("start", "end"))
    dash = "\N{EN DASH}"
    if start.time() == end.time() == time(0):
        last = end.date().fromordinal(end.date().toordinal() - 1)
        if start.date() == last:
            return str(format_date(last, "d MMMM y", locale=LOCALE))
        first = format_date(start, "d MMM y", locale=LOCALE)
        return f"{first} {dash} {format_date(last, 'd MMM y', locale=LOCALE)}"
    first = format_datetime(start, "d MMM y, HH:mm", locale=LOCALE)
    pattern = "HH:mm zzz" if start.date() == end.date() else "d MMM y, HH:mm zzz"
    return f"{first} {dash} {format_datetime(end, pattern, locale=LOCALE)}"


def _line(line: Json, document: Json, currency: Currency) -> Json:
    if not line["meter"]:
        return {
            "description": _for_people(line["description"]),
            "notes": [],
            "quantity": "1",
            "included": "",
            "unit_price": _unit_price(line, currency),
            "per": "",
            "amount": _money(line["amount_minor"], currency),
        }
    unit = line["unit"]
    per = _units(line["price_per"], line)
    description, notes = line["description"], []
    if line["late"]:
        description = description.split(LATE_SEPARATOR)[0]
        notes.append(f"Adjustment for {period_text(line['period'], ZoneInfo(document['time_zone']))}")
    notes.extend(_part(part, currency) for part in line["parts"])
    return {
        "description": _for_people(description),
        "notes": notes,
        "quantity": f"{_units(line['quantity'], line)} {unit}",
        "included": _units(line["included"], line) if line["included"] else "",
        "unit_price": _unit_price(line, currency),
        "per": "" if line["parts"] else f"per {per} {unit}" if per != "1" else f"per {unit}",
        "amount": _money(line["amount_minor"], currency),
    }


def _for_people(name: str) -> str:
    """Write a meter's or fee's own name as words; a description of several words stays as it is."""
    words = name if " " in name else name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _units(quantity: int | Decimal, line: Json) -> str:
    value = EXACT.scaleb(Decimal(quantity), -line["scale"])
    return str(format_decimal(value, locale=LOCALE, decimal_quantization=False)).replace("-", _MINUS)


def _money(amount_minor: int, currency: Currency) -> str:
    amount = EXACT.scaleb(Decimal(amount_minor), -currency.digits)
    pattern = f"\N{CURRENCY SIGN}#,##0{'.' if currency.digits else ''}{'0' * currency.digits}"
    return str(format_currency(amount, currency.code, pattern, locale=LOCALE, currency_digits=False)).replace(
        "-", _MINUS
    )


def _part(part: Json, currency: Currency) -> str:
    """Write one tier, package count or flat fee, exact to what a reader can check."""
    times = _units(Decimal(part["quantity"]), part)
    per = _units(Decimal(part["per"]), part)
    if per != "1":
        times = f"{times} / {per}"
    name = part["name"][:1].upper() + part["name"][1:]
    price, amount = (_exact_price(Decimal(part[field]), currency) for field in ("unit_price", "amount"))
    return f"{name}: {times} \N{MULTIPLICATION SIGN} {price} = {amount}"


def _unit_price(line: Json, currency: Currency) -> str:
    if not line["unit_price"]:
        return "by tier" if len(line["parts"]) > 1 else ""
    return _exact_price(Decimal(line["unit_price"]), currency)


def _exact_price(price: Decimal, currency: Currency) -> str:
    return str(format_currency(price, currency.code, locale=LOCALE, currency_digits=False, decimal_quantization=False))


def _notes(document: Json) -> Sequence[Sequence[str]]:
    notes = []
    seller = document["seller"]
    if seller["payment_note"]:
        notes.append(["Payment", seller["payment_note"]])
    if seller["tax_note"]:
        notes.append(["Tax", seller["tax_note"]])
    elif not document["tax_minor"]:
        notes.append(["Tax", "No tax has been charged on this invoice."])
    if any(line["late"] for line in document["lines"]):
        notes.append(
            [
                "Adjustments",
                "Usage that arrived after its period had been closed is rated with the prices of that period.",
            ]
        )
    return notes
