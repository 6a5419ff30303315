"""Prices that differ by attribute value: which price is for which usage, and which usage is a line of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.rating.charges import Total
from tollkeeper_ledger.domain.rating.plan_bytes import plan_of
from tollkeeper_ledger.domain.rating.plan_models import needs_events

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tollkeeper_ledger.domain.rating.charges import Attributes, PriceJson
    from tollkeeper_ledger.domain.rating.terms import PlanTerms, PriceTerms

NOTHING = Total(meter="", unit="", scale=0, units=0)


@dataclass(frozen=True, slots=True)
class Demand:
    """What prices need to know of a meter's usage beyond its sum."""

    attributes: tuple[str, ...]
    """Names whose values must be told apart, in order."""
    events: bool
    """Single records in order of event time and id."""


def demands_of(definitions: Iterable[bytes]) -> dict[str, Demand]:
    """Give what these plan versions demand, by meter; meters whose sum is enough are left out."""
    found: dict[str, Demand] = {}
    for definition in definitions:
        for price in plan_of(definition)["prices"]:
            names = {*price.get("match", {}), *price.get("group_by", ())}
            known = found.get(price["meter"], Demand((), events=False))
            demand = Demand(
                attributes=tuple(sorted({*known.attributes, *names})), events=known.events or needs_events(price)
            )
            if demand.attributes or demand.events:
                found[price["meter"]] = demand
    return found


def meters_priced(definitions: Iterable[bytes]) -> set[str]:
    """Give the meters that these plan versions price."""
    return {price["meter"] for definition in definitions for price in plan_of(definition)["prices"]}


def priced(plan: PlanTerms, totals: Sequence[Total]) -> list[tuple[PriceTerms, Attributes, Total]]:
    """Give each price its usage, in the prices' order; a price without usage has a total of zero.

    Usage goes to the first price of its meter that matches its attribute values. A price with `group_by` has its usage
    split by these values, in order of value.
    """
    by_meter = {total.meter: total for total in totals}
    if plan.is_plain and len(by_meter) == len(totals):
        # One price and one sum for each meter, as in most plans.
        return [(terms, (), by_meter.get(terms.meter) or _unused(terms)) for terms in plan.prices]
    prices = [terms.price for terms in plan.prices]
    of_meter: dict[str, list[int]] = {}
    for place_of_price, terms in enumerate(plan.prices):
        of_meter.setdefault(terms.meter, []).append(place_of_price)
    found: list[dict[Attributes, Total]] = [{} for _ in prices]
    for total in totals:
        place = _place_of(prices, of_meter.get(total.meter, ()), total)
        if place is None:
            continue
        groups, key = found[place], _line_key(prices[place], total)
        before = groups.get(key)
        groups[key] = total if before is None else added(before, total)
    lines: list[tuple[PriceTerms, Attributes, Total]] = []
    for terms, groups in zip(plan.prices, found, strict=True):
        if len(groups) == 1:
            lines.extend((terms, key, total) for key, total in groups.items())
        elif groups:
            lines.extend((terms, key, total) for key, total in sorted(groups.items()))
        else:
            lines.append((terms, tuple(sorted(terms.price.get("match", {}).items())), _unused(terms)))
    return lines


def _unused(terms: PriceTerms) -> Total:
    return Total(meter=terms.meter, unit="", scale=0, units=0)


def added(first: Total, second: Total) -> Total:
    """Add two sums of one meter up; records of the second come after those of the first."""
    return first._replace(units=first.units + second.units, events=(*first.events, *second.events))


def _place_of(prices: Sequence[PriceJson], places: Sequence[int], total: Total) -> int | None:
    """Give the first of these places whose price takes a total of its meter."""
    for place in places:
        match = prices[place].get("match")
        if not match:
            return place
        values = dict(total.attributes)
        if all(values.get(name, "") == value for name, value in match.items()):
            return place
    return None


def _line_key(price: PriceJson, total: Total) -> Attributes:
    if "match" not in price and "group_by" not in price:
        return ()
    names = {*price.get("match", ()), *price.get("group_by", ())}
    values = dict(total.attributes)
    return tuple((name, values.get(name, "")) for name in sorted(names))


def with_dimensions(terms: PriceTerms, attributes: Attributes) -> str:
    """Name a line for people: its price, and the values that it is for where the price's name doesn't say them."""
    if not attributes:
        return terms.name
    price = terms.price
    shown = [
        f"{name} {value or '(none)'}"
        for name, value in attributes
        if name in price.get("group_by", ()) or not price["description"]
    ]
    return ", ".join([price["description"] or price["meter"], *shown])
