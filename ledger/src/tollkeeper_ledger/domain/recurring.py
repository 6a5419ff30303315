"""Recurring revenue: what subscriptions are worth a month, and how that moved from one month's end to the next.

A subscription is worth what its plan owes without any use: its flat fees for its seats, or its minimum commitment
where that is more, normalised to a month, before coupons, credit and tax. A trial, a pause and the time after an end
are worth nothing. Everything is compared at the ends of months, tenant by tenant and in one currency:

    opening + new + returned + expansion + moved - contraction - churned = closing

`moved` carries what changed its plan; it sums to zero over all plans.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import EXACT, Currency, exact, parse_decimal, round_line, round_minor
from tollkeeper_ledger.domain.periods import Interval, IntervalUnit
from tollkeeper_ledger.domain.rating.fees import fee_minor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from tollkeeper_ledger.domain.rating.charges import PriceJson

_MONTHS = 12
_DAYS = 365
# Periods of one unit in a month, as (numerator, denominator): a year has 12 months and 365 days.
_PER_MONTH = {
    IntervalUnit.HOUR: (24 * _DAYS, _MONTHS),
    IntervalUnit.DAY: (_DAYS, _MONTHS),
    IntervalUnit.WEEK: (_DAYS, 7 * _MONTHS),
    IntervalUnit.MONTH: (1, 1),
    IntervalUnit.YEAR: (1, _MONTHS),
}
SHARE_WHOLE = 10_000
"""Churn is told in ten-thousandths."""


@exact
def monthly_minor(plan: PriceJson, *, quantity: int) -> int:
    """Give what a plan owes a month without any use, rounded half up once, in minor units."""
    currency = Currency.from_code(plan["currency"])
    fees_minor = sum(fee_minor(fee, currency, quantity=quantity) for fee in plan["fees"])
    committed_minor = round_line(parse_decimal(plan.get("commitment", "0")), currency)
    stored = plan["billing_interval"]
    interval = Interval(unit=IntervalUnit(stored["unit"]), count=stored["count"])
    times, of = _PER_MONTH[interval.unit]
    period_minor = Decimal(max(fees_minor, committed_minor))
    return round_minor(EXACT.divide(period_minor * times, Decimal(of * interval.count)))


@dataclass(frozen=True, slots=True)
class Worth:
    """What a tenant's subscription is worth a month."""

    plan: str
    currency: str
    minor: int
    """Above 0."""


@dataclass(frozen=True, slots=True)
class PaidStretch:
    """A time in which a subscription is worth the same."""

    start: datetime
    end: datetime | None
    worth: Worth


@dataclass(slots=True)
class Movements:
    """Sums of one month, currency and plan: money in minor units, and how many tenants."""

    opening_minor: int = 0
    new_minor: int = 0
    returned_minor: int = 0
    expansion_minor: int = 0
    moved_minor: int = 0
    contraction_minor: int = 0
    churned_minor: int = 0
    closing_minor: int = 0
    opening_tenants: int = 0
    new_tenants: int = 0
    returned_tenants: int = 0
    churned_tenants: int = 0
    closing_tenants: int = 0

    def add(self, other: Movements) -> None:
        """Add another's sums to these."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def per_tenant_minor(self) -> int | None:
        """Give the closing revenue per tenant, rounded half up; None without tenants."""
        return _divided(self.closing_minor, self.closing_tenants)

    @property
    def churned_tenants_share(self) -> int | None:
        """Give how many of the opening tenants were lost, in ten-thousandths; None without any."""
        return _divided(self.churned_tenants * SHARE_WHOLE, self.opening_tenants)

    @property
    def lost_share(self) -> int | None:
        """Give how much of the opening revenue was lost to churn and contraction, in ten-thousandths."""
        return _divided((self.churned_minor + self.contraction_minor) * SHARE_WHOLE, self.opening_minor)


def _divided(amount: int, by: int) -> int | None:
    return round_minor(EXACT.divide(Decimal(amount), Decimal(by))) if by else None


class RecurringBook:
    """Sums movements of tenant after tenant. `edges` are the ends of the months before and of those that are told."""

    def __init__(self, edges: Sequence[datetime]) -> None:
        self._edges = edges
        self._sums: dict[tuple[int, str, str], Movements] = {}

    def add(self, stretches: Sequence[PaidStretch]) -> None:
        """Add one tenant, given everything that its subscriptions ever were worth; no two stretches overlap."""
        before = _worth_at(stretches, self._edges[0])
        for month, edge in enumerate(self._edges[1:]):
            after = _worth_at(stretches, edge)
            if before is not None and after is not None and before.currency == after.currency:
                self._kept(month, before, after)
            else:
                if before is not None:
                    self._lost(month, before)
                if after is not None:
                    self._won(month, after, stretches)
            before = after

    def rows(self, *, by_plan: bool) -> Iterator[tuple[int, str, str, Movements]]:
        """Give (month's place, currency, plan, sums) in this order; the plan is empty where all are summed."""
        if by_plan:
            for key in sorted(self._sums):
                yield (*key, self._sums[key])
            return
        summed: dict[tuple[int, str], Movements] = {}
        for (month, currency, _), found in self._sums.items():
            summed.setdefault((month, currency), Movements()).add(found)
        for month, currency in sorted(summed):
            yield month, currency, "", summed[month, currency]

    def _of(self, month: int, worth: Worth) -> Movements:
        return self._sums.setdefault((month, worth.currency, worth.plan), Movements())

    def _kept(self, month: int, before: Worth, after: Worth) -> None:
        old, new = self._of(month, before), self._of(month, after)
        old.opening_minor += before.minor
        old.opening_tenants += 1
        if before.plan != after.plan:
            old.moved_minor -= before.minor
            new.moved_minor += before.minor
        new.expansion_minor += max(after.minor - before.minor, 0)
        new.contraction_minor += max(before.minor - after.minor, 0)
        new.closing_minor += after.minor
        new.closing_tenants += 1

    def _lost(self, month: int, before: Worth) -> None:
        old = self._of(month, before)
        old.opening_minor += before.minor
        old.opening_tenants += 1
        old.churned_minor += before.minor
        old.churned_tenants += 1

    def _won(self, month: int, after: Worth, stretches: Sequence[PaidStretch]) -> None:
        """Count a tenant that pays now and did not a month ago: new where it never did until then."""
        new = self._of(month, after)
        opening = self._edges[month]
        if any(one.start < opening and one.worth.currency == after.currency for one in stretches):
            new.returned_minor += after.minor
            new.returned_tenants += 1
        else:
            new.new_minor += after.minor
            new.new_tenants += 1
        new.closing_minor += after.minor
        new.closing_tenants += 1


def _worth_at(stretches: Sequence[PaidStretch], edge: datetime) -> Worth | None:
    """Give what a tenant was worth at the last moment before an edge."""
    for one in stretches:
        if one.start < edge and (one.end is None or one.end >= edge):
            return one.worth
    return None
