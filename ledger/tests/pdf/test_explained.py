"""Usage lines as rated from plans: what is printed is enough to come to the amount by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pdf_support import document, line
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json, plan_to_json
from tollkeeper_ledger.domain.invoice_lines import summed
from tollkeeper_ledger.domain.rating.charges import LateUsage, SubscriptionFacts, Total, Usage
from tollkeeper_ledger.domain.rating.engine import ENGINE_VERSION, rate
from tollkeeper_ledger.services.catalogue import read_catalogue
from tollkeeper_ledger.services.pdf.texts import invoice_texts

START, END = datetime(2031, 5, 1, tzinfo=UTC), datetime(2031, 6, 1, tzinfo=UTC)
CATALOGUE = """version: 1
seller: {{id: s, name: Seller, currency: USD}}
meters: [{{name: units, unit: {unit}}}]
plans: [{{name: p, billing_interval: month, prices: [{{meter: units, {price}}}]}}]
"""
X = "\N{MULTIPLICATION SIGN}"
MINUS = "\N{MINUS SIGN}"


def definition_of(price: str, unit: str) -> bytes:
    """Give a plan of one price."""
    catalogue = read_catalogue(CATALOGUE.format(price=price, unit=unit), source_name="x")
    return canonical_json(plan_to_json(catalogue.plans[0]))


def printed(price: str, units: int, unit: str, *, locale: str = "en", late: bool = False, records: int = 1) -> Any:
    """Rate usage of one price as an invoice does, and give the line that is printed."""
    definition = definition_of(price, unit)
    total = Total(meter="units", unit=unit, scale=0, units=units, events=((units // records, records),))
    came_late = LateUsage(definition=definition, period_start=START, period_end=END, before=(), added=(total,))
    usage = Usage(totals=(), late=(came_late,)) if late else Usage(totals=(total,))
    facts = SubscriptionFacts(period_start=START, period_end=END)
    charges = rate(definition, usage, facts, engine_version=ENGINE_VERSION)
    terms = {"locale": locale, "paper": "a4", "due_days": 14, "tax_mode": "exclusive", "taxes": []}
    sums = summed(charges, {"billing": terms, "items": []}, engine_version=ENGINE_VERSION)
    (shown,) = invoice_texts(document(line(), **{**sums, "billing": terms}), digest="", paper="a4")["lines"]
    return shown


@pytest.mark.parametrize(
    ("price", "units", "unit", "amount", "notes"),
    [
        (
            'unit_price: "0.10", convert: {divide_by: 1000000000}', 25_500_000_000, "bytes",
            "$2.55", [f"Converted: 25.5 {X} $0.10 = $2.55"],
        ),
        (
            'unit_price: "0.10", discount_percent: 20', 100, "calls",
            "$8.00", [f"Discount 20\N{NO-BREAK SPACE}%: {MINUS}$2.00"],
        ),
        ('unit_price: "0.10", minimum: "50"', 100, "calls", "$50.00", ["Minimum $50.00: $40.00"]),
        (
            'model: graduated, tiers: [{up_to: 100, unit_price: "0.10"}, {unit_price: "0.05"}], maximum: "20"', 1000,
            "calls", "$20.00",
            [f"Tier 1: 100 {X} $0.10 = $10.00", f"Tier 2: 900 {X} $0.05 = $45.00", f"Maximum $20.00: {MINUS}$35.00"],
        ),
        (
            'model: percentage, rate_percent: "2.9", convert: {divide_by: 100}', 1000, "cents",
            "$0.29", [f"Percentage: 10 {X} 2.9\N{NO-BREAK SPACE}% = $0.29"],
        ),
        (
            'model: percentage, rate_percent: "2.9", fixed_per_event: "0.30", convert: {divide_by: 100}', 1000, "cents",
            "$0.89",
            [f"2 of 2 records: 10 {X} 2.9\N{NO-BREAK SPACE}%, with what is due per record = $0.89"],
        ),
        ('model: package, size: 70, price: "0.33"', 100, "calls", "$0.66", [f"Packages: 2 {X} $0.33 = $0.66"]),
    ],
)  # fmt: skip
def test_a_line_shows_how_it_comes_to_its_amount(
    price: str, units: int, unit: str, amount: str, notes: list[str]
) -> None:
    """Conversions, discounts, bounds, percentages and packages stand under the line, each with what it comes to."""
    shown = printed(price, units, unit, records=2 if "fixed" in price else 1)
    assert (shown["amount"], shown["notes"]) == (amount, notes)


def test_no_price_is_said_to_be_for_another_unit() -> None:
    """A price per GB of a meter in bytes is not printed as one per byte, in time or late; others keep their unit."""
    converted = 'unit_price: "0.10", convert: {divide_by: 1000000000}'
    shown = printed(converted, 10**9, "bytes")
    assert (shown["unit_price"], shown["per"]) == ("$0.10", "")
    shown = printed(converted, 10**9, "bytes", late=True)
    assert (shown["unit_price"], shown["per"], shown["amount"]) == ("", "", "$0.10")
    shown = printed('unit_price: "0.10", maximum: "1"', 100, "calls", late=True)
    assert (shown["unit_price"], shown["per"]) == ("$0.10", "per calls")


def test_bounds_and_conversions_speak_the_invoices_language() -> None:
    """German invoices say them in German."""
    price = 'unit_price: "0.10", convert: {divide_by: 10}, minimum: "50"'
    assert [note.split()[0] for note in printed(price, 10, "Stück", locale="de")["notes"]] == [
        "Umgerechnet:",
        "Mindestbetrag",
    ]
