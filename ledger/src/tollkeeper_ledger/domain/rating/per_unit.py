"""Per unit: `unit_price` for every `per` units beyond `included`, parts of `per` in proportion."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import EXACT, plain
from tollkeeper_ledger.domain.rating.charges import Rated

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.money import Currency
    from tollkeeper_ledger.domain.rating.charges import PriceJson


def rate_per_unit(price: PriceJson, quantity: int, currency: Currency) -> Rated:
    """Rate all units of a period. Cumulative: what came earlier in the period is part of `quantity`."""
    included, per = int(price["included"]), int(price["per"])
    unit_price = Decimal(price["unit_price"])
    charged = max(quantity - included, 0)
    amount = EXACT.divide(EXACT.multiply(Decimal(charged), unit_price), Decimal(per))
    steps = [f"used: {quantity:,}"]
    if included:
        steps.append(f"less included {included:,}: {charged:,} to charge")
    each = f"{price['unit_price']} {currency.code}"
    rate = f"{charged:,} x {each}" if per == 1 else f"{charged:,} / {per:,} x {each}"
    steps.append(f"{rate} = {plain(amount.quantize(Decimal('1e-15'), context=EXACT))} {currency.code}")
    return Rated(
        included=included,
        charged=charged,
        unit_price=price["unit_price"],
        price_per=per,
        amount=amount,
        steps=tuple(steps),
    )
