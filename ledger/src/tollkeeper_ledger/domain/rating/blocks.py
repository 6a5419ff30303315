"""Prices by begun blocks: packages of one size, and blocks whose size grows from tier to tier."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import EXACT, exact
from tollkeeper_ledger.domain.rating.parts import ZERO, Part, part

if TYPE_CHECKING:
    from collections.abc import Sequence


_ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class BlockTier:
    """Blocks of one size at one price each, up to a number of them."""

    block_size: Decimal
    max_blocks: Decimal | None
    """None = without bound: the last tier."""
    block_price: Decimal


def begun(quantity: Decimal, size: Decimal) -> Decimal:
    """Count blocks of `size` that `quantity` has begun; none below or at zero."""
    if quantity <= ZERO:
        return ZERO
    whole, rest = EXACT.divmod(quantity, size)
    return EXACT.add(whole, _ONE) if rest else whole


def package(quantity: Decimal, *, size: Decimal, price: Decimal, free_units: Decimal = ZERO) -> tuple[Part, ...]:
    """Price every begun package; free units are taken off first. No part where no package is begun."""
    packages = begun(EXACT.subtract(quantity, free_units) if free_units else quantity, size)
    return (part("packages", packages, price, is_count=True),) if packages else ()


@exact
def graduated_blocks(quantity: Decimal, tiers: Sequence[BlockTier]) -> tuple[Part, ...]:
    """Fill each tier's blocks before the next tier's; every begun block is charged whole.

    What is beyond the last tier's blocks stays in that tier: nothing is free by overflow.
    """
    parts = []
    rest = quantity
    for number, tier in enumerate(tiers, start=1):
        if rest <= 0:
            break
        blocks = begun(rest, tier.block_size)
        if tier.max_blocks is not None and number < len(tiers):
            blocks = min(blocks, tier.max_blocks)
        parts.append(part(f"tier {number} blocks", blocks, tier.block_price, is_count=True))
        rest -= blocks * tier.block_size
    return tuple(parts)
