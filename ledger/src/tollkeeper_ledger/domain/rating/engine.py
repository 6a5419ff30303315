"""Rate a period: the plan version's fees and prices applied to its usage."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from tollkeeper_ledger.domain.money import Currency, exact, major, round_line, rounded_line
from tollkeeper_ledger.domain.rating.charges import (
    Attributes,
    Charge,
    Charges,
    LateUsage,
    Rated,
    SubscriptionFacts,
    Total,
)
from tollkeeper_ledger.domain.rating.dimensions import NOTHING, priced, with_dimensions
from tollkeeper_ledger.domain.rating.fees import Share, fee_line
from tollkeeper_ledger.domain.rating.metered import is_price_free, rate_terms
from tollkeeper_ledger.domain.rating.paid import usage_given_back
from tollkeeper_ledger.domain.rating.plan_bytes import plan_of
from tollkeeper_ledger.domain.rating.terms import terms_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tollkeeper_ledger.domain.rating.charges import Usage
    from tollkeeper_ledger.domain.rating.terms import PlanTerms, PriceTerms

PriceRater: TypeAlias = "Callable[..., Rated]"
"""Rates all units of one meter in one period: terms, units, currency; by name `events` and `granted`."""

ENGINE_VERSION = 2
"""Version that new invoices are rated with.

1: the tax of a rate's lines is cut by the size of their amounts, whatever their sign; every coupon of a period is used
up by any line above zero. 2: a line's tax is its own to less than a minor unit; what took nothing off is not used.
"""

LATE_SEPARATOR = ", late usage of "
"""Stands in a line's description between what was used and the period that it belongs to."""


# A new model is one entry in its version's table; a changed model is a new engine version with its own rate_terms.
_ENGINES: Mapping[int, PriceRater] = MappingProxyType({1: rate_terms, 2: rate_terms})


def rate(definition: bytes, usage: Usage, facts: SubscriptionFacts, *, engine_version: int) -> Charges:
    """Give the charges of one whole period under one plan version. Pure.

    Usage of meters that the plan has no price for costs nothing and makes no line. A price without usage makes a line
    only where it costs something all the same: a first tier's flat fee, or a minimum. Late usage makes a line for the
    difference between what its own period costs with and without it. Raises ValueError for an engine version or a price
    model that does not exist.
    """
    plan = plan_of(definition)
    currency = Currency.from_code(plan["currency"])
    lines = [fee_line(fee, Share(facts.period_start, facts.period_end), currency) for fee in plan["fees"]]
    lines.extend(rate_usage(terms_of(plan), usage.totals, facts, engine_version=engine_version))
    lines.extend(rate_late(usage.late, currency, engine_version=engine_version))
    return Charges(currency=currency, lines=tuple(lines))


def _engine(version: int) -> PriceRater:
    if version not in _ENGINES:
        raise ValueError(f"no engine version {version}; there are {sorted(_ENGINES)}")
    return _ENGINES[version]


@exact
def rate_usage(
    plan: PlanTerms,
    totals: Sequence[Total],
    facts: SubscriptionFacts,
    *,
    engine_version: int,
    granted: dict[str, int] | None = None,
) -> list[Charge]:
    """Give the lines of a plan's prices. `granted` has units per meter that grants pay for: what is used is taken off.

    Raises ValueError as `rate` does.
    """
    rate_one = _engine(engine_version)
    currency = plan.currency
    lines = []
    for terms, attributes, total in priced(plan, totals):
        rated = rate_one(terms, total.units, currency, events=total.events)
        free = min(granted.get(total.meter, 0), rated.charged) if granted else 0
        if granted and free and not terms.is_per_event:
            granted[total.meter] -= free
            rated = rate_one(terms, total.units, currency, events=total.events, granted=free)
        if (total.units or rated.amount) and not terms.is_at_the_end:
            lines.append(_usage_line(terms, attributes, total, rated, facts))
    return lines


@exact
def rate_late(lates: Sequence[LateUsage], currency: Currency, *, engine_version: int) -> list[Charge]:
    """Give the lines of usage that came after its own period was closed. Raises ValueError as `rate` does."""
    rate_one = _engine(engine_version)
    return [line for late in lates for line in _late_lines(late, rate_one, currency)]


def _usage_line(
    terms: PriceTerms, attributes: Attributes, total: Total, rated: Rated, facts: SubscriptionFacts
) -> Charge:
    included, charged, unit_price, price_per, amount, steps, currency, parts, bounds = rated
    meter, unit, scale, units, _, _ = total
    amount_minor, amount_text = rounded_line(amount, currency)
    shown = parts if terms.shows_parts else ()
    explained = (*steps, f"rounded half up: {amount_text} {currency.code}")
    # By place: a line has so many fields that naming them takes as long as rounding it.
    return Charge._make((
        with_dimensions(terms, attributes) if attributes else terms.name, meter, unit, scale, units, included, charged,
        unit_price, price_per, amount_minor, explained, facts.period_start, facts.period_end, False,
        (*shown, *bounds) if bounds else shown, 0, "", "", "usage", attributes, None,
    ))  # fmt: skip


def _late_lines(late: LateUsage, rate_one: PriceRater, currency: Currency) -> list[Charge]:
    plan = plan_of(late.definition)
    if plan["currency"] != currency.code:
        raise ValueError(f"late usage is priced in {plan['currency']}, the invoice in {currency.code}")
    read = terms_of(plan)
    before = {(terms.meter, attributes): total for terms, attributes, total in priced(read, late.before)}
    lines = []
    for terms, attributes, total in priced(read, late.added):
        if not total.units:
            continue
        billed = before.get((terms.meter, attributes), NOTHING)
        # Below 0 where levels fell by more than they rose: that bills nothing.
        old = rate_one(terms, max(0, billed.units), currency, events=billed.events)
        new = rate_one(terms, max(0, billed.units + total.units), currency, events=(*billed.events, *total.events))
        line = _late_line(late, terms, attributes, total, old=old, new=new)
        if late.paid is None or line.amount_minor >= 0:
            lines.append(line)
        elif not late.paid.is_void:
            lines.append(usage_given_back(line, late.paid, currency))
    return lines


def _late_line(
    late: LateUsage, terms: PriceTerms, attributes: Attributes, total: Total, *, old: Rated, new: Rated
) -> Charge:
    currency = new.currency
    old_minor, new_minor = round_line(old.amount, currency), round_line(new.amount, currency)
    period = f"{late.period_start:%Y-%m-%d %H:%M} to {late.period_end:%Y-%m-%d %H:%M} UTC"
    return Charge(
        description=f"{with_dimensions(terms, attributes)}{LATE_SEPARATOR}{period}",
        meter=total.meter,
        unit=total.unit,
        scale=total.scale,
        quantity=total.units,
        included=total.units - (new.charged - old.charged),
        charged=new.charged - old.charged,
        # One for another unit than the quantity's explains nothing without its steps.
        unit_price="" if new.is_converted else new.unit_price,
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
        dimensions=attributes,
    )


def is_free(definition: bytes) -> bool:
    """Whether a plan version can't charge anything: no fee, no commitment and no price above zero."""
    plan = plan_of(definition)
    amounts = [fee["amount"] for fee in plan["fees"]] + [plan.get("commitment", "0")]
    return not any(amount.strip("0.") for amount in amounts) and all(map(is_price_free, plan["prices"]))
