"""Read where sellers and tenants are taxed, and sellers' taxes."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import plain
from tollkeeper_ledger.domain.seller_taxes import (
    COUNTRY,
    EU,
    MODES,
    REGION,
    REVERSE_CHARGE,
    SELLER_TAXES_MAX,
    SellerTax,
    SellerTaxes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.catalogue.reader import Fields

_TAX_FIELDS = frozenset({"name", "percent", "country", "region", "meters", "mode"})
_PERCENT_MAX = Decimal(100)
_NAME_CHARS_MAX = 64


def read_country(fields: Fields) -> str:
    """Read a country's code; "" where it is missing or malformed."""
    code = fields.text("country")
    if code and COUNTRY.fullmatch(code) is None:
        fields.fault("country", "is not a country", value=code, bound="ISO 3166 codes of two letters like DE")
        return ""
    return code


def read_region(fields: Fields) -> str:
    """Read a region's code; "" where it is missing or malformed. It belongs to a country."""
    code = fields.text("region")
    if code and REGION.fullmatch(code) is None:
        fields.fault("region", "is not a region", value=code, bound="ISO 3166-2 without the country, like NY")
        return ""
    if code and not fields.has("country"):
        fields.fault("region", "needs a country", value=code, remedy="add `country: …`")
    return code


def read_seller_taxes(fields: Fields) -> SellerTaxes:
    """Read a seller's country, its taxes, and who accounts for them itself."""
    country = read_country(fields)
    rates = tuple(_read_tax(inner) for inner in fields.tables("taxes", names=_TAX_FIELDS))
    if len(rates) > SELLER_TAXES_MAX:
        fields.fault("taxes", "are too many", value=str(len(rates)), bound=f"at most {SELLER_TAXES_MAX}")
    _check_modes(fields, rates)
    reverse_charge = fields.choice("reverse_charge", REVERSE_CHARGE, default="none")
    if reverse_charge == "eu" and country not in EU:
        fields.fault("reverse_charge", "needs a seller in the EU", value=country, remedy="name its `country`")
    return SellerTaxes(country=country, rates=rates, reverse_charge=reverse_charge)


def _read_tax(fields: Fields) -> SellerTax:
    percent = fields.decimal("percent")
    if percent > _PERCENT_MAX:
        fields.fault("percent", "is out of range", value=f"{percent:f}", bound="a decimal from 0 to 100")
    return SellerTax(
        name=fields.text("name", required=True, length_max=_NAME_CHARS_MAX),
        percent=plain(percent),
        country=read_country(fields),
        region=read_region(fields),
        meters=fields.names("meters", refers_to="meter"),
        mode=fields.choice("mode", MODES, default="exclusive"),
    )


def _check_modes(fields: Fields, rates: Sequence[SellerTax]) -> None:
    """Refuse rates of one place of which some are in the prices and some on top."""
    modes: dict[str, set[str]] = {}
    for rate in rates:
        modes.setdefault(rate.country, set()).add(rate.mode)
    everywhere = modes.get("", set())
    for country, found in modes.items():
        if len(found | everywhere) > 1:
            fields.fault(
                "taxes",
                "are partly in the prices and partly on top",
                value=country or "without country",
                bound="one mode for all that may stand on one invoice",
            )
