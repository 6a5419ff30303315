"""Rate one price of a plan: included units off, converted, priced by its model, discounted and bounded.

Cumulative: it is always given the period's whole quantity, so how usage is cut into runs never matters.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import exact, plain
from tollkeeper_ledger.domain.rating.blocks import BlockTier, graduated_blocks, package
from tollkeeper_ledger.domain.rating.bounds import Bounds, bounded
from tollkeeper_ledger.domain.rating.charges import Rated
from tollkeeper_ledger.domain.rating.parts import ZERO, Part, part, total
from tollkeeper_ledger.domain.rating.quantity import Conversion, converted
from tollkeeper_ledger.domain.rating.tiers import Tier, graduated, volume

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tollkeeper_ledger.domain.money import Currency
    from tollkeeper_ledger.domain.rating.charges import PriceJson

_SHOWN = Decimal("1e-15")


def _per_unit(price: PriceJson, quantity: Decimal) -> tuple[Part, ...]:
    return (part("", quantity, Decimal(price["unit_price"]), per=int(price["per"])),)


def _tiers(price: PriceJson) -> tuple[Tier, ...]:
    return tuple(
        Tier(
            up_to=None if tier["up_to"] is None else Decimal(tier["up_to"]),
            unit=Decimal(tier["unit_price"]),
            flat=Decimal(tier["flat"]),
        )
        for tier in price["tiers"]
    )


def _graduated(price: PriceJson, quantity: Decimal) -> tuple[Part, ...]:
    return graduated(quantity, _tiers(price), per=int(price["per"]))


def _volume(price: PriceJson, quantity: Decimal) -> tuple[Part, ...]:
    return volume(quantity, _tiers(price), per=int(price["per"]))


def _package(price: PriceJson, quantity: Decimal) -> tuple[Part, ...]:
    return package(quantity, size=Decimal(price["size"]), price=Decimal(price["price"]))


def _blocks(price: PriceJson, quantity: Decimal) -> tuple[Part, ...]:
    tiers = [
        BlockTier(
            block_size=Decimal(tier["block_size"]),
            max_blocks=None if tier["max_blocks"] is None else Decimal(tier["max_blocks"]),
            block_price=Decimal(tier["block_price"]),
        )
        for tier in price["tiers"]
    ]
    return graduated_blocks(quantity, tiers)


MODELS_V1: Mapping[str, Callable[[PriceJson, Decimal], tuple[Part, ...]]] = MappingProxyType(
    {
        "per_unit": _per_unit,
        "graduated": _graduated,
        "volume": _volume,
        "package": _package,
        "graduated_blocks": _blocks,
    }
)
"""Price models of engine version 1: all parts of a period for its whole priced quantity."""


@exact
def rate_price(price: PriceJson, quantity: int, currency: Currency) -> Rated:
    """Rate all units of one meter in one period. Raises ValueError for a model that this version does not have."""
    if price["model"] not in MODELS_V1:
        raise ValueError(f"no price model {price['model']!r} in this engine version")
    included = int(price["included"])
    charged = max(quantity - included, 0)
    steps = [f"used: {quantity:,}"]
    if included:
        steps.append(f"less included {included:,}: {charged:,} to charge")
    priced = converted(Decimal(charged), _conversion(price))
    if "convert" in price:
        steps.append(f"converted: {plain(priced)}")
    parts = MODELS_V1[price["model"]](price, priced)
    if "convert" in price:
        parts = tuple(replace(each, is_count=True) for each in parts)
    steps.extend(_step(each, currency) for each in parts)
    gross = total(parts)
    result = bounded(gross, _bounds(price), billed_before=ZERO, is_period_end=True)
    if len(parts) > 1:
        steps.append(f"together {_amount(gross, currency)}")
    if result.discount:
        steps.append(f"less discount and maximum: -{_amount(result.discount, currency)}")
    if result.true_up:
        steps.append(f"up to the minimum of {price['minimum']}: +{_amount(result.true_up, currency)}")
    is_one_price = price["model"] == "per_unit"
    return Rated(
        included=included,
        charged=charged,
        unit_price=price["unit_price"] if is_one_price else "",
        price_per=int(price["per"]) if is_one_price else 1,
        amount=result.amount,
        steps=tuple(steps),
        parts=parts,
    )


def is_price_free(price: PriceJson) -> bool:
    """Whether a price can't charge anything, whatever is used."""
    amounts = [price.get(name, "0") for name in ("unit_price", "price", "minimum")]
    for tier in price.get("tiers", ()):
        amounts += [tier.get(name, "0") for name in ("unit_price", "flat", "block_price")]
    return not any(Decimal(amount) for amount in amounts)


def _conversion(price: PriceJson) -> Conversion | None:
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


def _bounds(price: PriceJson) -> Bounds:
    return Bounds(
        minimum=Decimal(price["minimum"]) if "minimum" in price else None,
        maximum=Decimal(price["maximum"]) if "maximum" in price else None,
        discount_percent=Decimal(price.get("discount_percent", "0")),
    )


def _amount(amount: Decimal, currency: Currency) -> str:
    return f"{plain(amount.quantize(_SHOWN))} {currency.code}"


def _step(each: Part, currency: Currency) -> str:
    name = f"{each.name}: " if each.name else ""
    count = f"{each.quantity:,}" if each.per == 1 else f"{each.quantity:,} / {each.per:,}"
    return f"{name}{count} x {plain(each.unit_price, digits_min=2)} {currency.code} = {_amount(each.amount, currency)}"
