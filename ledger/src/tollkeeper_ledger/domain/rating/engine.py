"""Rate a period: the plan version's fees and prices applied to its usage."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from tollkeeper_ledger.domain.money import Currency, major, round_line
from tollkeeper_ledger.domain.rating.charges import Charge, Charges, LateUsage, PriceJson, Rated, Total
from tollkeeper_ledger.domain.rating.flat import rate_flat
from tollkeeper_ledger.domain.rating.metered import is_price_free, rate_price

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tollkeeper_ledger.domain.rating.charges import SubscriptionFacts, Usage

PriceRater: TypeAlias = "Callable[[PriceJson, int, Currency], Rated]"
"""Rates all units of one meter in one period."""

ENGINE_VERSION = 1
"""Version that new invoices are rated with."""

LATE_SEPARATOR = ", late usage of "
"""Stands in a line's description between what was used and the period that it belongs to."""


# A new model is one entry in its version's table; a changed model is a new engine version with its own rate_price.
_ENGINES: Mapping[int, PriceRater] = MappingProxyType({1: rate_price})


def rate(definition: bytes, usage: Usage, facts: SubscriptionFacts, *, engine_version: int) -> Charges:
    """Give the charges of one period. Pure.

    Usage of meters that the plan has no price for costs nothing and makes no line. A price without usage makes a line
    only where it costs something all the same: a first tier's flat fee, or a minimum. Late usage makes a line for the
    difference between what its own period costs with and without it. Raises ValueError for an engine version or a price
    model that does not exist.
    """
    if engine_version not in _ENGINES:
        raise ValueError(f"no engine version {engine_version}; there are {sorted(_ENGINES)}")
    rate_one = _ENGINES[engine_version]
    plan = json.loads(definition)
    currency = Currency.from_code(plan["currency"])
    lines = [_fee_line(fee, facts, currency) for fee in plan["fees"]]
    totals = {total.meter: total for total in usage.totals}
    for price in plan["prices"]:
        total = totals.get(price["meter"], Total(meter=price["meter"], unit="", scale=0, units=0))
        rated = rate_one(price, total.units, currency)
        if total.units or rated.amount:
            lines.append(_usage_line(price, total, rated, facts, currency))
    for late in usage.late:
        lines.extend(_late_lines(late, rate_one, currency))
    return Charges(currency=currency, lines=tuple(lines))


def _rounding_step(rated: Rated, amount_minor: int, currency: Currency) -> tuple[str, ...]:
    return (*rated.steps, f"rounded half up: {major(amount_minor, currency)} {currency.code}")


def _fee_line(fee: PriceJson, facts: SubscriptionFacts, currency: Currency) -> Charge:
    rated = rate_flat(fee, currency)
    amount_minor = round_line(rated.amount, currency)
    return Charge(
        description=fee["name"],
        meter="",
        unit="",
        scale=0,
        quantity=1,
        included=0,
        charged=1,
        unit_price=rated.unit_price,
        price_per=1,
        amount_minor=amount_minor,
        explanation=_rounding_step(rated, amount_minor, currency),
        period_start=facts.period_start,
        period_end=facts.period_end,
        late=False,
    )


def _usage_line(price: PriceJson, total: Total, rated: Rated, facts: SubscriptionFacts, currency: Currency) -> Charge:
    amount_minor = round_line(rated.amount, currency)
    return Charge(
        description=price["description"] or price["meter"],
        meter=total.meter,
        unit=total.unit,
        scale=total.scale,
        quantity=total.units,
        included=rated.included,
        charged=rated.charged,
        unit_price=rated.unit_price,
        price_per=rated.price_per,
        amount_minor=amount_minor,
        explanation=_rounding_step(rated, amount_minor, currency),
        period_start=facts.period_start,
        period_end=facts.period_end,
        late=False,
        parts=() if rated.unit_price else rated.parts,
    )


def _late_lines(late: LateUsage, rate_one: PriceRater, currency: Currency) -> Sequence[Charge]:
    plan = json.loads(late.definition)
    if plan["currency"] != currency.code:
        raise ValueError(f"late usage is priced in {plan['currency']}, the invoice in {currency.code}")
    before = {total.meter: total.units for total in late.before}
    added = {total.meter: total for total in late.added}
    lines = []
    for price in plan["prices"]:
        total = added.get(price["meter"])
        if total is not None and total.units:
            billed = before.get(total.meter, 0)
            # Below 0 where levels fell by more than they rose: that bills nothing.
            old = rate_one(price, max(0, billed), currency)
            new = rate_one(price, max(0, billed + total.units), currency)
            lines.append(_late_line(late, price, total, old=old, new=new, currency=currency))
    return lines


def _late_line(
    late: LateUsage, price: PriceJson, total: Total, *, old: Rated, new: Rated, currency: Currency
) -> Charge:
    old_minor, new_minor = round_line(old.amount, currency), round_line(new.amount, currency)
    period = f"{late.period_start:%Y-%m-%d %H:%M} to {late.period_end:%Y-%m-%d %H:%M} UTC"
    return Charge(
        description=f"{price['description'] or price['meter']}{LATE_SEPARATOR}{period}",
        meter=total.meter,
        unit=total.unit,
        scale=total.scale,
        quantity=total.units,
        included=total.units - (new.charged - old.charged),
        charged=new.charged - old.charged,
        unit_price=new.unit_price,
        price_per=new.price_per,
        amount_minor=new_minor - old_minor,
        explanation=(
            f"the period with late usage: {'; '.join(new.steps)}; rounded {major(new_minor, currency)}",
            f"billed before: {'; '.join(old.steps)}; rounded {major(old_minor, currency)}",
            f"difference: {major(new_minor - old_minor, currency)} {currency.code}",
        ),
        period_start=late.period_start,
        period_end=late.period_end,
        late=True,
    )


def is_free(definition: bytes) -> bool:
    """Whether a plan version can't charge anything: no fee and no price above zero."""
    plan = json.loads(definition)
    return not any(fee["amount"].strip("0.") for fee in plan["fees"]) and all(map(is_price_free, plan["prices"]))
