"""Cut whole minor units into shares that add up."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import EXACT, exact

if TYPE_CHECKING:
    from collections.abc import Sequence


@exact
def cut(amount_minor: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Cut an amount in proportion to weights; what is left goes to the largest remainders, the first one on a tie.

    Source: the method of Hare and Niemeyer. All weights zero: the first takes everything. Raises ValueError for no
    weight at all, or a negative one.
    """
    if not weights or min(weights) < 0:
        raise ValueError("shares need weights, none below zero")
    whole = sum(weights)
    if whole == 0:
        return (amount_minor, *(0 for _ in weights[1:]))
    quotas = [EXACT.divide(Decimal(amount_minor) * weight, Decimal(whole)) for weight in weights]
    shares = [int(quota.quantize(Decimal(1), rounding=ROUND_FLOOR)) for quota in quotas]
    order = sorted(range(len(weights)), key=lambda place: (shares[place] - quotas[place], place))
    for place in order[: amount_minor - sum(shares)]:
        shares[place] += 1
    return tuple(shares)
