"""A percentage of an amount that records carry, with a fixed part per event, free events and bounds per event.

What is priced per event depends on their order: event time, then id.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import exact
from tollkeeper_ledger.domain.rating.parts import ZERO, Part, part

if TYPE_CHECKING:
    from collections.abc import Sequence

_PERCENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Percentage:
    """The price. None = does not apply."""

    rate_percent: Decimal
    fixed_per_event: Decimal = ZERO
    free_events: int | None = None
    free_total: Decimal | None = None
    per_event_min: Decimal | None = None
    per_event_max: Decimal | None = None


@exact
def percentage_of_events(price: Percentage, values: Sequence[Decimal]) -> tuple[Part, ...]:
    """Price events one by one, in the order given.

    An event is free while both allowances, as far as they are set, still cover it; the event that exceeds `free_total`
    is charged for what is beyond. The bounds hold for rate and fixed part together.
    """
    parts = []
    spent = ZERO
    for number, value in enumerate(values):
        left = _allowance(price, event_number=number, spent=spent)
        covered = value if left is None else min(value, left)
        spent += covered
        if covered == value and left != 0:
            continue
        amount = (value - covered) * price.rate_percent * _PERCENT + price.fixed_per_event
        if price.per_event_min is not None:
            amount = max(amount, price.per_event_min)
        if price.per_event_max is not None:
            amount = min(amount, price.per_event_max)
        parts.append(
            Part(name=f"event {number + 1}", quantity=value - covered, unit_price=price.rate_percent, amount=amount)
        )
    return tuple(parts)


@exact
def percentage_of_total(
    price: Percentage, quantity: Decimal, *, events: int, running_total: Sequence[Decimal] = ()
) -> tuple[Part, ...]:
    """Price a sum of which only the first events' running totals are known.

    Free are the units of the first `free_events` events, at most `free_total`; the fixed part is due for every event
    that is not free. Nothing is due for a sum of zero.
    """
    if not quantity:
        return ()
    free_units = _free_units(price, running_total)
    free_events = _free_events(price, running_total)
    parts = [part("percentage", max(quantity - free_units, ZERO), price.rate_percent * _PERCENT)]
    if price.fixed_per_event and events > free_events:
        parts.append(part("per event", Decimal(events - free_events), price.fixed_per_event))
    return tuple(parts)


def _allowance(price: Percentage, *, event_number: int, spent: Decimal) -> Decimal | None:
    """Give what of an event's value would be free, None = all of it; events count from 0."""
    if price.free_events and event_number >= price.free_events:
        return ZERO
    if price.free_total:
        return price.free_total - spent
    return None if price.free_events else ZERO


def _free_units(price: Percentage, running_total: Sequence[Decimal]) -> Decimal:
    if not running_total or not (price.free_events or price.free_total):
        return ZERO
    covered = running_total[-1]
    if price.free_events:
        covered = running_total[min(price.free_events, len(running_total)) - 1]
    return min(covered, price.free_total) if price.free_total else covered


def _free_events(price: Percentage, running_total: Sequence[Decimal]) -> int:
    counts = [price.free_events] if price.free_events else []
    if price.free_total:
        free_total = price.free_total
        counts.append(sum(1 for each in running_total if each < free_total))
    return min(counts, default=0)
