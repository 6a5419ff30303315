"""Overage: what is used beyond what a plan includes, now and projected to the period's end, and what it costs.

A projection lets each plan's usage go on at the pace that it had, for as long as the plan is in force in the period.
It is rated like any usage, so that tiers, packages and minimums are what they will be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import EXACT, round_minor
from tollkeeper_ledger.domain.periods import to_us

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from tollkeeper_ledger.domain.invoice import SegmentInput
    from tollkeeper_ledger.domain.rating.charges import Charges, Total
    from tollkeeper_ledger.domain.rating.period import Stretch


@dataclass(slots=True)
class Over:
    """What is over under one price: units, and minor units before coupons, credit and tax."""

    description: str
    meter: str
    unit: str
    scale: int
    quantity: int = 0
    charged: int = 0
    """Of the quantity, what is not included."""
    amount_minor: int = 0
    projected_quantity: int = 0
    projected_charged: int = 0
    projected_amount_minor: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a plan has been in force in a period, and how long it will have been at its end, in microseconds."""

    passed_us: int
    whole_us: int

    def grown(self, count: int) -> int:
        """Give what a count that came in the time passed grows to, rounded half away from zero."""
        return round_minor(EXACT.divide(Decimal(count * self.whole_us), Decimal(self.passed_us)))


def paces(stretches: Sequence[Stretch], *, now: datetime) -> dict[str, Pace]:
    """Give the pace per plan digest that was in force in the period before now; trials, which are free, left out."""
    found: dict[str, Pace] = {}
    for stretch in stretches:
        if stretch.state == "trialing":
            continue
        whole_us = to_us(stretch.span.end) - to_us(stretch.span.start)
        passed_us = min(max(to_us(now) - to_us(stretch.span.start), 0), whole_us)
        before = found.get(stretch.plan, Pace(0, 0))
        found[stretch.plan] = Pace(before.passed_us + passed_us, before.whole_us + whole_us)
    return {plan: pace for plan, pace in found.items() if pace.passed_us}


def projected(segments: Iterable[SegmentInput], by_plan: Mapping[str, Pace]) -> tuple[SegmentInput, ...]:
    """Give segments with the usage that they will have had at the period's end."""
    return tuple(
        replace(segment, totals=tuple(_grown(total, by_plan[segment.plan]) for total in segment.totals))
        if segment.plan in by_plan
        else segment
        for segment in segments
    )


def _grown(total: Total, pace: Pace) -> Total:
    """Grow a sum; records of a price per record come as often again, so that each still has its own price."""
    if not total.events:
        return total._replace(units=pace.grown(total.units))
    events: list[tuple[int, int]] = []
    seen = given = 0
    for units, count in total.events:
        seen += count
        more = pace.grown(seen) - given
        given += more
        events.append((units, more))
    return total._replace(units=sum(units * count for units, count in events), events=tuple(events))


def overs(now: Charges, then: Charges) -> list[Over]:
    """Give what is over, or will be, per price in order of lines. Late usage belongs to another period."""
    found: dict[tuple[str, str], Over] = {}
    for charges, is_projected in ((now, False), (then, True)):
        for line in charges.lines:
            if line.kind != "usage" or line.late:
                continue
            over = found.setdefault(
                (line.meter, line.description), Over(line.description, line.meter, line.unit, line.scale)
            )
            if is_projected:
                over.projected_quantity += line.quantity
                over.projected_charged += line.charged
                over.projected_amount_minor += line.amount_minor
            else:
                over.quantity += line.quantity
                over.charged += line.charged
                over.amount_minor += line.amount_minor
    return [one for one in found.values() if one.projected_charged or one.projected_amount_minor or one.charged]
