"""Rate one price of a plan: included units off, converted, priced by its model, discounted and bounded.

Cumulative: it is always given the period's whole quantity, so how usage is cut into runs never matters.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import exact, plain, unscaled
from tollkeeper_ledger.domain.rating.bounds import UNBOUNDED, bound_parts, bounded
from tollkeeper_ledger.domain.rating.charges import Rated
from tollkeeper_ledger.domain.rating.parts import ZERO, Part, total
from tollkeeper_ledger.domain.rating.plan_models import (
    MODELS_V1,
    bounds_of,
    conversion_of,
    needs_events,
    parts_of_events,
    values_of,
)
from tollkeeper_ledger.domain.rating.quantity import converted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.money import Currency
    from tollkeeper_ledger.domain.rating.charges import PriceJson

_SHOWN = Decimal("1e-15")
_SHOWN_DIGITS = 15
_AMOUNTS = ("unit_price", "price", "minimum", "amount", "multiplier", "rate_percent", "fixed_per_event",
            "per_event_min")  # fmt: skip
_TIER_AMOUNTS = ("unit_price", "flat", "block_price", "price", "rate_percent")


@exact
def rate_price(
    price: PriceJson, quantity: int, currency: Currency, *, events: Sequence[tuple[int, int]] = (), granted: int = 0
) -> Rated:
    """Rate all units of one meter in one period. Raises ValueError for a model that this version does not have.

    `events` are (units, how many records in a row), in order of event time and id, for prices that need them; they add
    up to the quantity. `granted` units beyond the included ones cost nothing.
    """
    if price["model"] not in MODELS_V1:
        raise ValueError(f"no price model {price['model']!r} in this engine version")
    included = int(price["included"])
    charged = max(quantity - included - granted, 0)
    steps = [f"used: {quantity:,}"]
    if included or granted:
        free = f"included {included:,}" + (f" and granted {granted:,}" if granted else "")
        steps.append(f"less {free}: {charged:,} to charge")
    conversion = conversion_of(price) if "convert" in price else None
    priced = converted(Decimal(charged), conversion)
    if conversion is not None:
        steps.append(f"converted: {plain(priced)}")
    is_per_event = needs_events(price)
    if is_per_event:
        values = [converted(Decimal(units), conversion) for units in values_of(events)]
        parts = parts_of_events(price, values)
    else:
        parts = MODELS_V1[price["model"]](price, priced)
    if conversion is not None:
        parts = tuple(each._replace(is_count=True) for each in parts)
    steps.extend([_step(each, currency, is_per_event) for each in parts])
    gross = total(parts)
    if len(parts) > 1:
        steps.append(f"together {_amount(gross, currency)}")
    bounds, amount = bounds_of(price), gross
    limited: tuple[Part, ...] = ()
    if bounds is not UNBOUNDED:
        result = bounded(gross, bounds, billed_before=ZERO, is_period_end=True)
        amount, limited = result.amount, bound_parts(result, bounds)
        if result.discount:
            steps.append(f"less discount and maximum: -{_amount(result.discount, currency)}")
        if result.true_up:
            steps.append(f"up to the minimum of {price['minimum']}: +{_amount(result.true_up, currency)}")
    is_one_price = price["model"] == "per_unit"
    unit_price, per = (price["unit_price"], int(price["per"])) if is_one_price else ("", 1)
    return Rated(included + granted, charged, unit_price, per, amount, tuple(steps), currency, parts, limited)


def is_price_free(price: PriceJson) -> bool:
    """Whether a price can't charge anything, whatever is used."""
    amounts = [price.get(name) or "0" for name in _AMOUNTS]
    for tier in price.get("tiers", ()):
        amounts += [tier.get(name, "0") for name in _TIER_AMOUNTS]
    return not any(Decimal(amount) for amount in amounts)


def _amount(amount: Decimal, currency: Currency) -> str:
    whole, _, fraction = unscaled(amount).partition(".")
    if not fraction:
        return f"{whole} {currency.code}"
    if len(fraction) > _SHOWN_DIGITS:
        return f"{plain(amount.quantize(_SHOWN))} {currency.code}"
    fraction = fraction.rstrip("0")
    return f"{whole}.{fraction} {currency.code}" if fraction else f"{whole} {currency.code}"


@lru_cache(maxsize=4096)
def _price_text(unit_price: Decimal) -> str:
    """Write a unit price; plans have few, and every line writes them again. 2.5 and 2.50 are written alike."""
    return plain(unit_price, digits_min=2)


def _step(each: Part, currency: Currency, is_per_event: bool) -> str:  # noqa: FBT001 - one caller
    name = f"{each.name}: " if each.name else ""
    if is_per_event:
        return f"{name}{each.quantity:,} at {plain(each.unit_price)}, with what is due per record = " + _amount(
            each.amount, currency
        )
    count = f"{each.quantity:,}" if each.per == 1 else f"{each.quantity:,} / {each.per:,}"
    return f"{name}{count} x {_price_text(each.unit_price)} {currency.code} = {_amount(each.amount, currency)}"
