"""An invoice, and what credits it, as rows shaped like FOCUS 1.0, the FinOps Foundation's columns for cost. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.money import EXACT, Currency, exact, major, plain, round_line

if TYPE_CHECKING:
    from collections.abc import Iterable

Json: TypeAlias = dict[str, Any]

_CATEGORIES = {"fee": "Purchase", "commitment": "Purchase", "credit": "Credit", "item": "Adjustment"}

COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart",
    "ConsumedQuantity", "ConsumedUnit", "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice",
    "PricingQuantity", "PricingUnit", "ProviderName", "ServiceName", "SkuId", "SubAccountId",
)  # fmt: skip
"""Columns of a row, in order."""
_WHOLE_DIGITS_MAX, _FRACTION_DIGITS_MAX = 20, 18
"""What a decimal of 38 digits holds, as tables of money have it."""


def focus_rows(document: Json) -> list[dict[str, str]]:
    """Give a row per line and one per tax that takes something; BilledCost of all rows is the invoice's total.

    ListUnitPrice x PricingQuantity is ListCost to the last digit, before a line is rounded, wherever ListUnitPrice
    stands. It is empty where one price doesn't explain a line: tiers, packages, percentages, conversions, bounds,
    prorated fees, prices with tax in them, and where either has more than 20 digits before the point or 18 behind it.
    ListCost is then the rounded amount.
    """
    currency = Currency.from_code(document["currency"])
    is_contained = document["billing"]["tax_mode"] == "inclusive"
    rows = [_line_row(document, line, currency, is_contained=is_contained) for line in document["lines"]]
    return _in_columns([*rows, *_tax_rows(document, currency, sign=1)])


def credit_note_rows(document: Json) -> list[dict[str, str]]:
    """Give a row for what a credit note takes off without tax and one per tax; BilledCost of all is minus its total.

    InvoiceId is the credit note's own number; its description names the invoice.
    """
    currency = Currency.from_code(document["currency"])
    said = f": {document['note']}" if document["note"] else ""
    credit = _row(document, -document["subtotal_minor"], currency)
    credit.update(ChargeCategory="Credit", ChargeDescription=f"Credit note on {document['invoice']}{said}")
    rows = (credit, *_tax_rows(document, currency, sign=-1))
    return _in_columns([row | {"ChargeClass": "Correction"} for row in rows])


def _in_columns(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: row.get(name, "") for name in COLUMNS} for row in rows]


def _tax_rows(document: Json, currency: Currency, *, sign: int) -> list[dict[str, str]]:
    """Leave out what takes nothing, such as the taxes of who accounts for them under reverse charge."""
    return [_tax_row(document, tax, currency, sign=sign) for tax in document["taxes"] if tax["tax_minor"]]


def _tax_row(document: Json, tax: Json, currency: Currency, *, sign: int) -> dict[str, str]:
    row = _row(document, sign * tax["tax_minor"], currency)
    row.update(ChargeCategory="Tax", ChargeDescription=f"{tax['name'] or 'Tax'} {tax['percent']} %")
    return row


def _row(document: Json, amount_minor: int, currency: Currency) -> dict[str, str]:
    """Give a row for the whole period of a document."""
    row = _common(document)
    row.update(
        BilledCost=major(amount_minor, currency),
        ListCost=major(amount_minor, currency),
        ChargePeriodStart=document["period"]["start"],
        ChargePeriodEnd=document["period"]["end"],
    )
    return row


def _common(document: Json) -> dict[str, str]:
    return {
        "BillingAccountId": document["billing_tenant"]["id"],
        "BillingAccountName": document["billing_tenant"]["name"],
        "BillingCurrency": document["currency"],
        "BillingPeriodStart": document["period"]["start"],
        "BillingPeriodEnd": document["period"]["end"],
        "InvoiceId": document["number"],
        "InvoiceIssuerName": document["seller"]["name"],
        "ProviderName": document["seller"]["name"],
        "ServiceName": document["plan"]["name"],
        "SubAccountId": document["tenant"]["id"],
    }


def _line_row(document: Json, line: Json, currency: Currency, *, is_contained: bool) -> dict[str, str]:
    contained = line["tax"]["tax_minor"] if is_contained else 0
    row = _common(document)
    row.update(
        ChargeCategory=_CATEGORIES.get(line["kind"], "Usage"),
        ChargeClass="Correction" if line["late"] else "",
        ChargeDescription=line["description"],
        ChargePeriodStart=line["period"]["start"],
        ChargePeriodEnd=line["period"]["end"],
        BilledCost=major(line["amount_minor"] - line["discount_minor"] - contained, currency),
        ListCost=major(line["amount_minor"] - contained, currency),
    )
    if line["unit"]:
        row.update(_priced(line, currency, contained_minor=contained))
    if line["meter"]:
        row.update(ConsumedQuantity=_scaled(line, "quantity"), ConsumedUnit=line["unit"], SkuId=line["meter"])
    return row


def _scaled(line: Json, name: str) -> str:
    return plain(EXACT.scaleb(Decimal(line[name]), -line["scale"]))


@exact
def _priced(line: Json, currency: Currency, *, contained_minor: int) -> dict[str, str]:
    """Give what was charged, and the unit price with the exact list cost where both together explain the line."""
    priced = {"PricingQuantity": _scaled(line, "charged"), "PricingUnit": line["unit"]}
    if not line["unit_price"] or line["parts"] or contained_minor:
        return priced
    per, unit_price = line["price_per"], Decimal(line["unit_price"])
    list_cost = EXACT.divide(Decimal(line["charged"]) * unit_price, Decimal(per))
    whole_price = unit_price.scaleb(line["scale"])
    price = EXACT.divide(whole_price, Decimal(per))
    if price * per != whole_price or round_line(list_cost, currency) != line["amount_minor"]:
        return priced
    shown = {"ListUnitPrice": plain(price), "ListCost": plain(list_cost, digits_min=currency.digits)}
    return priced | shown if all(map(_fits, shown.values())) else priced


def _fits(shown: str) -> bool:
    whole, _, fraction = shown.lstrip("-").partition(".")
    return len(whole) <= _WHOLE_DIGITS_MAX and len(fraction) <= _FRACTION_DIGITS_MAX
