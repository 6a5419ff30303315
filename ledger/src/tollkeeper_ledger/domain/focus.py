"""An invoice as rows shaped like FOCUS 1.0, the FinOps Foundation's columns for cost. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, TypeAlias

from tollkeeper_ledger.domain.money import EXACT, Currency, major, plain

Json: TypeAlias = dict[str, Any]

_CATEGORIES = {"fee": "Purchase", "commitment": "Purchase", "credit": "Credit", "item": "Adjustment"}

COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart",
    "ConsumedQuantity", "ConsumedUnit", "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice",
    "PricingQuantity", "PricingUnit", "ProviderName", "ServiceName", "SkuId", "SubAccountId",
)  # fmt: skip
"""Columns of a row, in order."""


def focus_rows(document: Json) -> list[dict[str, str]]:
    """Give a row per line and one per tax; BilledCost of all rows is the invoice's total."""
    currency = Currency.from_code(document["currency"])
    is_contained = document["billing"]["tax_mode"] == "inclusive"
    rows = [_line_row(document, line, currency, is_contained=is_contained) for line in document["lines"]]
    for tax in document["taxes"]:
        row = _common(document)
        row.update(
            ChargeCategory="Tax",
            ChargeDescription=f"{tax['name']} {tax['percent']} %",
            BilledCost=major(tax["tax_minor"], currency),
            ListCost=major(tax["tax_minor"], currency),
            ChargePeriodStart=document["period"]["start"],
            ChargePeriodEnd=document["period"]["end"],
        )
        rows.append(row)
    return [{name: row.get(name, "") for name in COLUMNS} for row in rows]


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
    if line["meter"]:
        quantity, charged = (
            plain(EXACT.scaleb(Decimal(line[name]), -line["scale"])) for name in ("quantity", "charged")
        )
        row.update(
            ConsumedQuantity=quantity,
            ConsumedUnit=line["unit"],
            PricingQuantity=charged,
            PricingUnit=line["unit"],
            ListUnitPrice=line["unit_price"],
            SkuId=line["meter"],
        )
    return row
