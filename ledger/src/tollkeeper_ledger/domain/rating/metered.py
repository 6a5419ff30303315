"""Rate one price of a plan: included units off, converted, priced by its model, discounted and bounded.

Cumulative: it is always given the period's whole quantity, so how usage is cut into runs never matters.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import plain, plain_amount
from tollkeeper_ledger.domain.rating.bounds import UNBOUNDED, bound_parts, bounded
from tollkeeper_ledger.domain.rating.charges import Rated
from tollkeeper_ledger.domain.rating.parts import ZERO, Part, total
from tollkeeper_ledger.domain.rating.plan_models import parts_of_events, values_of
from tollkeeper_ledger.domain.rating.quantity import converted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.money import Currency
    from tollkeeper_ledger.domain.rating.charges import PriceJson
    from tollkeeper_ledger.domain.rating.plan_models import Pricing
    from tollkeeper_ledger.domain.rating.terms import PriceTerms

_AMOUNTS = ("unit_price", "price", "minimum", "amount", "multiplier", "rate_percent", "fixed_per_event",
            "per_event_min")  # fmt: skip
_TIER_AMOUNTS = ("unit_price", "flat", "block_price", "price", "rate_percent")


def rate_terms(
    terms: PriceTerms, quantity: int, currency: Currency, *, events: Sequence[tuple[int, int]] = (), granted: int = 0
) -> Rated:
    """Rate all units of one meter in one period, in the EXACT context that its caller has entered.

    Raises ValueError for a model that this version does not have.

    `events` are (units, how many records in a row), in order of event time and id, for prices that need them; they add
    up to the quantity. `granted` units beyond the included ones cost nothing.
    """
    pricing, included, code = terms.pricing, terms.included, currency.code
    if pricing is None:
        raise ValueError(f"no price model {terms.price['model']!r} in this engine version")
    free = included + granted
    charged = quantity - free if quantity > free else 0
    steps = [f"used: {quantity:,}"]
    if free:
        words = f"included {included:,} and granted {granted:,}" if granted else f"included {included:,}"
        steps.append(f"less {words}: {charged:,} to charge")
    if terms.conversion is None and not terms.is_per_event:
        parts = pricing(Decimal(charged))
    else:
        parts = _parts(terms, pricing, charged, events, steps)
    if terms.is_per_event:
        steps.extend([_step_per_event(each, currency) for each in parts])
    else:
        _say_parts(parts, code, steps)
    if len(parts) == 1:
        amount = parts[0].amount
    else:
        amount = total(parts)
        if parts:
            steps.append(f"together {plain_amount(amount)} {code}")
    limited: tuple[Part, ...] = ()
    if terms.bounds is not UNBOUNDED:
        result = bounded(amount, terms.bounds, billed_before=ZERO, is_period_end=True)
        amount, limited = result.amount, bound_parts(result, terms.bounds)
        if result.discount:
            steps.append(f"less discount and maximum: -{plain_amount(result.discount)} {code}")
        if result.true_up:
            steps.append(f"up to the minimum of {terms.price['minimum']}: +{plain_amount(result.true_up)} {code}")
    return Rated(free, charged, terms.unit_price, terms.price_per, amount, tuple(steps), currency, parts, limited)


def _parts(
    terms: PriceTerms, pricing: Pricing, charged: int, events: Sequence[tuple[int, int]], steps: list[str]
) -> tuple[Part, ...]:
    """Give what the charged units, or single records, are made of, and say where they are converted."""
    conversion = terms.conversion
    if conversion is None:
        return parts_of_events(terms.price, [Decimal(units) for units in values_of(events)])
    priced = converted(Decimal(charged), conversion)
    steps.append(f"converted: {plain(priced)}")
    if terms.is_per_event:
        values = [converted(Decimal(units), conversion) for units in values_of(events)]
        parts = parts_of_events(terms.price, values)
    else:
        parts = pricing(priced)
    return tuple(each._replace(is_count=True) for each in parts)


def is_price_free(price: PriceJson) -> bool:
    """Whether a price can't charge anything, whatever is used."""
    amounts = [price.get(name) or "0" for name in _AMOUNTS]
    for tier in price.get("tiers", ()):
        amounts += [tier.get(name, "0") for name in _TIER_AMOUNTS]
    return not any(Decimal(amount) for amount in amounts)


def _say_parts(parts: Sequence[Part], code: str, steps: list[str]) -> None:
    for name, quantity, unit_price, amount, per, _ in parts:
        at = _price_text(unit_price, per, code)
        said = f"{quantity:,}{at}{plain_amount(amount)} {code}"
        steps.append(f"{name}: {said}" if name else said)


@lru_cache(maxsize=4096)
def _price_text(unit_price: Decimal, per: int, code: str) -> str:
    """Say a unit price; plans have few, and every line says them again. 2.5 and 2.50 are written alike."""
    shared = "" if per == 1 else f" / {per:,}"
    return f"{shared} x {plain(unit_price, digits_min=2)} {code} = "


def _step_per_event(each: Part, currency: Currency) -> str:
    name = f"{each.name}: " if each.name else ""
    due = f"{plain_amount(each.amount)} {currency.code}"
    return f"{name}{each.quantity:,} at {plain(each.unit_price)}, with what is due per record = {due}"
