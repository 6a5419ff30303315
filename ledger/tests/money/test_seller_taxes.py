# ruff: noqa: SIM300 - expected first, then actual
"""Which of a seller's taxes a payer is charged: by place, by meter, or none where it accounts for the tax itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate, tax_for, taxes_from_json
from tollkeeper_ledger.domain.invoice_lines import summed
from tollkeeper_ledger.domain.money import Currency
from tollkeeper_ledger.domain.rating.charges import Charges
from tollkeeper_ledger.domain.rating.engine import ENGINE_VERSION
from tollkeeper_ledger.domain.seller_taxes import (
    NO_TAXES,
    NOWHERE,
    SellerTax,
    SellerTaxes,
    TaxPlace,
    frozen_terms,
    seller_taxes_from,
)

GERMAN = SellerTaxes(
    country="DE",
    reverse_charge="eu",
    rates=(
        SellerTax(name="GST", percent="0"),
        SellerTax(name="VAT", percent="19", country="DE"),
        SellerTax(name="VAT", percent="7", country="DE", meters=("books",)),
        SellerTax(name="TVA", percent="20", country="FR", mode="exclusive"),
        SellerTax(name="Sales tax", percent="4", country="US"),
        SellerTax(name="NY sales tax", percent="8.875", country="US", region="NY"),
    ),
)


def charged(place: TaxPlace, meter: str = "", profile: BillingProfile | None = None) -> tuple[str, str]:
    """Give mode and rate that a line of a meter is taxed by."""
    terms: dict[str, Any] = frozen_terms(profile or BillingProfile(), GERMAN, place)
    return terms["tax_mode"], tax_for(taxes_from_json(terms["taxes"]), meter).percent


@pytest.mark.parametrize(("place", "expected"), [
    (NOWHERE, ("exclusive", "19")),
    (TaxPlace("DE", "", "DE123456789"), ("exclusive", "19")),
    (TaxPlace("FR", "", ""), ("exclusive", "20")),
    (TaxPlace("FR", "", "FR 12 345678901"), ("reverse_charge", "20")),
    (TaxPlace("FR", "", "DE123456789"), ("exclusive", "20")),
    (TaxPlace("GR", "", "EL123456789"), ("reverse_charge", "0")),
    (TaxPlace("GR", "", "GR123456789"), ("exclusive", "0")),
    (TaxPlace("AT", "", "ATU12345678"), ("reverse_charge", "0")),
    (TaxPlace("AT", "", "AT"), ("exclusive", "0")),
    (TaxPlace("US", "", "US123456789"), ("exclusive", "4")),
    (TaxPlace("US", "NY", ""), ("exclusive", "8.875")),
    (TaxPlace("US", "CA", ""), ("exclusive", "4")),
    (TaxPlace("JP", "", ""), ("exclusive", "0")),
])  # fmt: skip
def test_payers_are_taxed_where_they_are(place: TaxPlace, expected: tuple[str, str]) -> None:
    """Region before country before anywhere; businesses of other EU countries by reverse charge, by their VAT id."""
    assert expected == charged(place)


def test_a_rate_that_names_a_meter_goes_first_in_its_place() -> None:
    """7 % for books, in whatever order they are declared; elsewhere it is not known."""
    turned = SellerTaxes(country="DE", rates=tuple(reversed(GERMAN.rates)))
    for taxes in (GERMAN, turned):
        found = taxes_from_json(frozen_terms(BillingProfile(), taxes, NOWHERE)["taxes"])
        assert ["7", "19"] == [tax_for(found, meter).percent for meter in ("books", "calls")]
    assert ("exclusive", "20") == charged(TaxPlace("FR", "", ""), "books")


@pytest.mark.parametrize(("profile", "expected"), [
    (BillingProfile(taxes=(TaxRate("Own", "5"),)), ("exclusive", "5")),
    (BillingProfile(tax_mode="reverse_charge"), ("reverse_charge", "0")),
    (BillingProfile(tax_mode="exempt"), ("exclusive", "0")),
    (BillingProfile(tax_mode="inclusive"), ("inclusive", "0")),
    (BillingProfile(email="a@example.com", due_days=30), ("exclusive", "19")),
])  # fmt: skip
def test_a_payers_own_word_goes_first(profile: BillingProfile, expected: tuple[str, str]) -> None:
    """A profile that says something of taxes is all that counts; one that says other things changes nothing."""
    assert expected == charged(NOWHERE, profile=profile)


@pytest.mark.parametrize(("tax_id", "expected"), [
    ("", (10_000, 2_000, 12_000)),
    ("FR12345678901", (12_000, 0, 12_000)),
])  # fmt: skip
def test_a_business_pays_the_price_as_it_stands(tax_id: str, expected: tuple[int, int, int]) -> None:
    """120.00, 20 % in it for others: to a business that accounts for the tax itself 120.00 is the price without it."""
    french = SellerTax(name="TVA", percent="20", country="FR", mode="inclusive")
    taxes = replace(GERMAN, rates=(french, *GERMAN.rates))
    item = {"item_id": "i", "description": "Licence", "amount_minor": 12_000}
    stored = {
        "billing": frozen_terms(BillingProfile(), taxes, TaxPlace("FR", "", tax_id)),
        "items": [item],
        "period": {},
    }
    found = summed(Charges(currency=Currency.from_code("EUR"), lines=()), stored, engine_version=ENGINE_VERSION)
    assert expected == (found["subtotal_minor"], found["tax_minor"], found["total_minor"])


def test_what_is_stored_is_what_was_declared() -> None:
    """Also of a seller that never said a word."""
    assert GERMAN == seller_taxes_from(GERMAN.to_json())
    assert NO_TAXES == seller_taxes_from({}) == seller_taxes_from(NO_TAXES.to_json())
    assert BillingProfile().frozen() == frozen_terms(BillingProfile(), NO_TAXES, TaxPlace("DE", "", "DE123456789"))
