"""Cut whole minor units into shares that add up."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction
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


def cut_steadily(amount_minor: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Cut an amount in proportion to weights so that no share falls when the amount rises, as one of `cut` may.

    The sum of the weights is cut into the weights. Of either sign; all weights zero, and errors, as in `cut`.
    Source: the method of Webster and Sainte-Laguë, whose steps begin at rounded quotas.
    """
    if amount_minor < 0:
        return tuple(-share for share in cut_steadily(-amount_minor, weights))
    whole = sum(weights)
    if not weights or min(weights) < 0 or whole == 0:
        return cut(amount_minor, weights)
    shares = [(2 * amount_minor * weight + whole) // (2 * whole) for weight in weights]
    places = [place for place, weight in enumerate(weights) if weight]
    while (missing := amount_minor - sum(shares)) > 0:
        shares[min(places, key=lambda place: (Fraction(2 * shares[place] + 1, weights[place]), place))] += 1
    for _ in range(-missing):
        shares[max(places, key=lambda place: (Fraction(2 * shares[place] - 1, weights[place]), place))] -= 1
    return tuple(shares)


@exact
def rounded_to(whole_minor: int, exacts: Sequence[Decimal]) -> tuple[int, ...]:
    """Round exact shares of either sign to whole minor units that add up to `whole_minor`, which is their sum, rounded.

    Each is cut to its whole units; what is missing is added to those that lost most of it, the first one on a tie. So
    each is less than one from exact, and none has another sign.
    """
    shares = [int(share) for share in exacts]
    missing = whole_minor - sum(shares)
    step = 1 if missing > 0 else -1
    order = sorted(range(len(shares)), key=lambda place: (step * (shares[place] - exacts[place]), place))
    for place in order[: abs(missing)]:
        shares[place] += step
    return tuple(shares)
