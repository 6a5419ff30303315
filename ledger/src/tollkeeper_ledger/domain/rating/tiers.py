"""Tiered prices: each tier prices its own units (graduated), or the reached tier prices all of them (volume).

A tier's upper bound is inclusive, so the first fraction beyond it is in the next tier. The first tier's flat fee is
charged at zero use as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from tollkeeper_ledger.domain.money import EXACT
from tollkeeper_ledger.domain.rating.parts import ZERO, Part, part

_PERCENT = Decimal("0.01")
_ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class Tier:
    """So much each and so much once, for units up to and including a bound."""

    up_to: Decimal | None
    """None = without bound: the last tier."""
    unit: Decimal
    """Major units for each unit, or for each percent where the tiers are percentages."""
    flat: Decimal


def check_tiers(tiers: tuple[Tier, ...]) -> None:
    """Raise ValueError unless the bounds rise from above zero and the last tier, and only it, has none."""
    if not tiers or tiers[-1].up_to is not None:
        raise ValueError("the last tier must have no upper bound")
    last = ZERO
    for number, tier in enumerate(tiers[:-1], start=1):
        if tier.up_to is None:
            raise ValueError(f"tier {number} has no upper bound but is not the last")
        if tier.up_to <= last:
            raise ValueError(f"tier {number} ends at {tier.up_to}, not above {last} where it begins")
        last = tier.up_to


def graduated(quantity: Decimal, tiers: tuple[Tier, ...], *, per: int = 1, percent: bool = False) -> tuple[Part, ...]:
    """Price each tier's own units at its own price for each `per`; a tier's flat fee is due once it is entered.

    With `percent` the units are money and each tier's `unit` is a percentage of it.
    """
    parts: list[Part] = []
    lower = ZERO
    for number, tier in enumerate(tiers, start=1):
        is_first = number == 1
        if not is_first and quantity <= lower:
            break
        up_to = tier.up_to
        inside = EXACT.subtract(quantity if up_to is None or quantity <= up_to else up_to, lower)
        if is_first or tier.unit:
            unit = EXACT.multiply(tier.unit, _PERCENT) if percent else tier.unit
            parts.append(part(f"tier {number}", inside, unit, per=per))
        if tier.flat:
            parts.append(part(f"tier {number} flat", _ONE, tier.flat, is_count=True))
        if up_to is not None:
            lower = up_to
    return tuple(parts)


def volume(quantity: Decimal, tiers: tuple[Tier, ...], *, per: int = 1) -> tuple[Part, ...]:
    """Price all units at the price, for each `per`, of the tier that the whole quantity reaches, plus its flat fee."""
    for number, tier in enumerate(tiers, start=1):
        if tier.up_to is not None and quantity > tier.up_to:
            continue
        parts = []
        if quantity and tier.unit:
            parts.append(part(f"tier {number}", quantity, tier.unit, per=per))
        if tier.flat:
            parts.append(part(f"tier {number} flat", _ONE, tier.flat, is_count=True))
        return tuple(parts)
    raise ValueError("the last tier must have no upper bound")
