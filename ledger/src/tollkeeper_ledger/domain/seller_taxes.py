"""Taxes that a seller declares for its payers: by country, region and meter, and who accounts for them itself. Pure.

A payer whose profile says something of taxes is taxed by that alone. All others are taxed by where they are: by the
seller's rates of their region, then those of their country, then those of no country, in each those that name meters
first; the first that names a line's meter, or names none, applies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate, taxes_to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.billing_profile import Json

EU = frozenset({
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IT", "LT", "LU", "LV",
    "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
})  # fmt: skip
"""Countries that tax each other's businesses by reverse charge."""
COUNTRY = re.compile(r"[A-Z]{2}")
REGION = re.compile(r"[A-Z0-9]{1,3}")
MODES = ("exclusive", "inclusive")
REVERSE_CHARGE = ("none", "eu")
SELLER_TAXES_MAX = 256
_VAT_ID = re.compile(r"([A-Z]{2})[0-9A-Z+*]{2,12}")
_PUNCTUATION = str.maketrans("", "", " .-")


@dataclass(frozen=True, slots=True)
class SellerTax:
    """One rate of a seller."""

    name: str
    percent: str
    country: str = ""
    """ISO 3166-1, two letters; empty = wherever no other is declared."""
    region: str = ""
    """ISO 3166-2 without the country, `NY`; empty = the whole country."""
    meters: tuple[str, ...] = ()
    """Lines of these meters only; none = every line."""
    mode: str = "exclusive"
    """`inclusive`: prices for payers there include it."""


@dataclass(frozen=True, slots=True)
class SellerTaxes:
    """What a seller says of taxes."""

    country: str = ""
    """Where it is; payers that say nothing are there as well."""
    rates: tuple[SellerTax, ...] = ()
    reverse_charge: str = "none"
    """`eu`: payers in other countries of the EU that have a VAT id account for the tax themselves."""

    def to_json(self) -> Json:
        """Give it as it is stored."""
        rates = [
            {
                "name": rate.name,
                "percent": rate.percent,
                "country": rate.country,
                "region": rate.region,
                "meters": list(rate.meters),
                "mode": rate.mode,
            }
            for rate in self.rates
        ]
        return {"country": self.country, "rates": rates, "reverse_charge": self.reverse_charge}


NO_TAXES = SellerTaxes()


def seller_taxes_from(stored: Json) -> SellerTaxes:
    """Read it as it is stored."""
    rates = tuple(SellerTax(**{**rate, "meters": tuple(rate["meters"])}) for rate in stored.get("rates", ()))
    return SellerTaxes(
        country=stored.get("country", ""), rates=rates, reverse_charge=stored.get("reverse_charge", "none")
    )


@dataclass(frozen=True, slots=True)
class TaxPlace:
    """Where a payer is taxed."""

    country: str
    region: str
    tax_id: str


NOWHERE = TaxPlace(country="", region="", tax_id="")


def has_own_taxes(profile: BillingProfile) -> bool:
    """Whether a payer's profile says itself how it is taxed."""
    return bool(profile.taxes) or profile.tax_mode != BillingProfile().tax_mode


def rates_at(taxes: SellerTaxes, country: str, region: str) -> tuple[SellerTax, ...]:
    """Give a seller's rates for a place, the nearest first."""
    there = [rate for rate in taxes.rates if rate.country in ("", country) and rate.region in ("", region)]
    return tuple(sorted(there, key=lambda rate: (not rate.region, not rate.country, not rate.meters)))


def is_reverse_charge(taxes: SellerTaxes, place: TaxPlace) -> bool:
    """Whether a payer accounts for the tax itself: a business of another country of the EU, by its VAT id."""
    country = place.country or taxes.country
    if taxes.reverse_charge != "eu" or country == taxes.country or not {country, taxes.country} <= EU:
        return False
    match = _VAT_ID.fullmatch(place.tax_id.upper().translate(_PUNCTUATION))
    return match is not None and match[1] == ("EL" if country == "GR" else country)


def frozen_terms(profile: BillingProfile, taxes: SellerTaxes, place: TaxPlace) -> Json:
    """Give what goes into an invoice's inputs of a payer's terms: its own taxes, or its seller's for where it is."""
    terms = profile.frozen()
    if has_own_taxes(profile):
        return terms if profile.tax_mode != "exempt" else {**terms, "tax_mode": "exclusive", "taxes": []}
    rates = rates_at(taxes, place.country or taxes.country, place.region)
    if is_reverse_charge(taxes, place):
        return {**terms, "tax_mode": "reverse_charge", "taxes": _shown(rates)}
    return {**terms, "tax_mode": rates[0].mode if rates else profile.tax_mode, "taxes": _shown(rates)}


def _shown(rates: Sequence[SellerTax]) -> list[Json]:
    return taxes_to_json([TaxRate(name=rate.name, percent=rate.percent, meters=rate.meters) for rate in rates])
