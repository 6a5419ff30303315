"""Read the terms of a price as definitions have them, and price a period's quantity by its model.

The one reader of price fields: plans and worked cases both come through here.
"""

from __future__ import annotations

from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from tollkeeper_ledger.domain.money import EXACT, exact
from tollkeeper_ledger.domain.rating.blocks import BlockTier, graduated_blocks, package
from tollkeeper_ledger.domain.rating.bounds import UNBOUNDED, Bounds
from tollkeeper_ledger.domain.rating.parts import ZERO, Part, part, share_of
from tollkeeper_ledger.domain.rating.percentage import Percentage, percentage_of_events
from tollkeeper_ledger.domain.rating.quantity import Conversion
from tollkeeper_ledger.domain.rating.tiers import Tier, graduated, volume

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tollkeeper_ledger.domain.rating.charges import PriceJson

Pricing: TypeAlias = "Callable[[Decimal], tuple[Part, ...]]"
"""Gives all parts of a period for its whole priced quantity."""

_PERCENT = Decimal("0.01")
_multiply = EXACT.multiply
_PER_EVENT_TERMS = ("fixed_per_event", "free_events", "free_total", "per_event_min", "per_event_max")


def conversion_of(price: PriceJson) -> Conversion | None:
    """Read what turns the meter's unit into the priced one."""
    convert = price.get("convert")
    if convert is None:
        return None
    is_divided = "divide_by" in convert
    return Conversion(
        divide=is_divided,
        factor=Decimal(convert["divide_by" if is_divided else "multiply_by"]),
        round=convert["round"],
        digits=convert["digits"],
    )


def _amount(price: PriceJson, name: str) -> Decimal | None:
    term = price.get(name)
    return None if term is None else Decimal(term)


def bounds_of(price: PriceJson) -> Bounds:
    """Read discount, minimum and maximum."""
    if "minimum" not in price and "maximum" not in price and "discount_percent" not in price:
        return UNBOUNDED
    return Bounds(
        minimum=_amount(price, "minimum"),
        maximum=_amount(price, "maximum"),
        discount_percent=Decimal(price.get("discount_percent") or "0"),
    )


def percentage_of(price: PriceJson) -> Percentage:
    """Read a percentage with what is due or free per record."""
    free_events = _amount(price, "free_events")
    return Percentage(
        rate_percent=Decimal(price["rate_percent"]),
        fixed_per_event=_amount(price, "fixed_per_event") or ZERO,
        free_events=None if free_events is None else int(free_events),
        free_total=_amount(price, "free_total"),
        per_event_min=_amount(price, "per_event_min"),
        per_event_max=_amount(price, "per_event_max"),
    )


def needs_events(price: PriceJson) -> bool:
    """Whether the price depends on single records and their order, not on their sum alone."""
    return price["model"] == "percentage" and any(price.get(name) is not None for name in _PER_EVENT_TERMS)


def _tiers(price: PriceJson, unit: str = "unit_price", flat: str = "flat") -> tuple[Tier, ...]:
    return tuple(
        Tier(
            up_to=_amount(tier, "up_to"),
            unit=Decimal(tier.get(unit) or "0") or ZERO,
            flat=Decimal(tier.get(flat) or "0") or ZERO,
        )
        for tier in price["tiers"]
    )


def _per_unit(price: PriceJson) -> Pricing:
    unit_price, per = Decimal(price["unit_price"]), int(price["per"])
    of_one = share_of(unit_price, per) if price.get("convert") is None else None
    if of_one is None:
        return lambda quantity: (part("", quantity, unit_price, per=per),)
    return lambda quantity: (Part("", quantity, unit_price, _multiply(quantity, of_one), per),)


def _graduated(price: PriceJson) -> Pricing:
    tiers, per = _tiers(price), int(price["per"])
    return lambda quantity: graduated(quantity, tiers, per=per)


def _volume(price: PriceJson) -> Pricing:
    tiers, per = _tiers(price), int(price["per"])
    return lambda quantity: volume(quantity, tiers, per=per)


def _graduated_percentage(price: PriceJson) -> Pricing:
    tiers = _tiers(price, "rate_percent")
    return lambda quantity: graduated(quantity, tiers, percent=True)


def _stair_step(price: PriceJson) -> Pricing:
    tiers = _tiers(price, "", "price")
    return lambda quantity: volume(quantity, tiers)


def _package(price: PriceJson) -> Pricing:
    size, each, free_units = Decimal(price["size"]), Decimal(price["price"]), _amount(price, "free_units") or ZERO
    return lambda quantity: package(quantity, size=size, price=each, free_units=free_units)


def _blocks(price: PriceJson) -> Pricing:
    tiers = [
        BlockTier(
            block_size=Decimal(tier["block_size"]),
            max_blocks=_amount(tier, "max_blocks"),
            block_price=Decimal(tier["block_price"]),
        )
        for tier in price["tiers"]
    ]
    return lambda quantity: graduated_blocks(quantity, tiers)


def _percentage(price: PriceJson) -> Pricing:
    rate = EXACT.multiply(Decimal(price["rate_percent"]), _PERCENT)
    return lambda quantity: (part("percentage", quantity, rate, is_count=True),)


def _dynamic(price: PriceJson) -> Pricing:
    multiplier = Decimal(price["multiplier"])
    return lambda quantity: (part("carried amounts", quantity, multiplier, is_count=True),) if quantity else ()


def _flat(price: PriceJson) -> Pricing:
    flat = (part("flat", Decimal(1), Decimal(price["amount"]), is_count=True),)
    return lambda quantity: flat if quantity else ()


MODELS_V1: Mapping[str, Callable[[PriceJson], Pricing]] = MappingProxyType(
    {
        "per_unit": _per_unit,
        "graduated": _graduated,
        "volume": _volume,
        "graduated_percentage": _graduated_percentage,
        "stair_step": _stair_step,
        "package": _package,
        "graduated_blocks": _blocks,
        "percentage": _percentage,
        "dynamic": _dynamic,
        "flat": _flat,
    }
)
"""Price models of engine version 1: each reads a price's terms, once however much is priced by them."""


@exact
def parts_of_events(price: PriceJson, values: Sequence[Decimal]) -> tuple[Part, ...]:
    """Price records one by one, in the order given, and give one part for all that are charged."""
    charged = percentage_of_events(percentage_of(price), values)
    if not charged:
        return ()
    return (
        Part(
            name=f"{len(charged)} of {len(values)} records",
            quantity=sum((each.quantity for each in charged), ZERO),
            unit_price=Decimal(price["rate_percent"]) * _PERCENT,
            amount=sum((each.amount for each in charged), ZERO),
            is_count=True,
        ),
    )


def values_of(events: Sequence[tuple[int, int]]) -> list[int]:
    """Give the units of single records; a count below 0 takes the last ones of these units back."""
    values: list[int] = []
    for units, count in events:
        if count > 0:
            values.extend([units] * count)
        for _ in range(-count):
            if units in values:
                del values[len(values) - 1 - values[::-1].index(units)]
    return values
