"""Flat: the same amount every period, in arrears."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.rating.charges import Rated

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.money import Currency
    from tollkeeper_ledger.domain.rating.charges import PriceJson


def rate_flat(fee: PriceJson, currency: Currency) -> Rated:
    """Rate a fee for one whole period."""
    return Rated(
        included=0,
        charged=1,
        unit_price=fee["amount"],
        price_per=1,
        amount=Decimal(fee["amount"]),
        steps=(f"flat fee per period: {fee['amount']} {currency.code}",),
    )
