"""A subscription over time: phases in which plan, state and seats stay as they are, and the periods that they cut."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.periods import Period, boundary_period, period_at, periods_from

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.periods import Schedule

CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Phase:
    """Say what rates the time from `starts_at` on, until the next phase."""

    starts_at: datetime
    plan_version_id: UUID
    state: str = "active"
    """`trialing`, `active`, `paused`, or `cancelled`, which ends the subscription."""
    quantity: int = 1


@dataclass(frozen=True, slots=True)
class SubscriptionSchedule:
    """Hold what a subscription's periods and what rates them depend on."""

    tenant_id: UUID
    subscription_id: UUID
    eras: tuple[Schedule, ...]
    """What periods are counted by, in time order, each from its own start on; the first begins with the subscription.
    A period is cut where another era begins."""
    ended_at: datetime | None
    """Also where the end is still to come."""
    billed_until: datetime
    phases: tuple[Phase, ...]
    """In time order; the first begins with the subscription."""
    has_late: bool = False
    """Whether late usage waits for an invoice."""

    @property
    def started_at(self) -> datetime:
        """When the subscription begins."""
        return self.eras[0].started_at

    def era_at(self, instant: datetime) -> Schedule:
        """Give what periods are counted by at an instant; the first one before all of them."""
        return next((era for era in reversed(self.eras) if era.started_at <= instant), self.eras[0])

    @property
    def is_open(self) -> bool:
        """Whether there is a period left to close; after the end, only for usage that came too late."""
        return self.ended_at is None or self.billed_until < self.ended_at or self.has_late

    def phase_at(self, instant: datetime) -> Phase:
        """Give the phase in force at an instant; the first one before all of them."""
        for phase in reversed(self.phases):
            if phase.starts_at <= instant:
                return phase
        return self.phases[0]

    def plan_version_at(self, instant: datetime) -> UUID:
        """Give the plan version that rates what is used at an instant."""
        return self.phase_at(instant).plan_version_id

    def open_periods(self) -> Iterator[Period]:
        """Give the periods that are not closed yet, cut where the subscription ends; without end where it has none.

        Late usage of a subscription that is over and billed has one more, up to the next boundary.
        """
        if self.ended_at is not None and self.billed_until >= self.ended_at:
            if self.has_late:
                yield self._after_the_end()
            return
        for place, era in enumerate(self.eras):
            until = self._until(place)
            if until is None or until > self.billed_until:
                yield from _cut(periods_from(era, self.billed_until), until)

    def _until(self, place: int) -> datetime | None:
        """Give where an era stops: where the next begins, or with the subscription."""
        following = self.eras[place + 1].started_at if place + 1 < len(self.eras) else None
        ends = [end for end in (following, self.ended_at) if end is not None]
        return min(ends, default=None)

    def late_period(self) -> Period:
        """Give the earliest period that is not closed: late usage is billed with it."""
        return next(self.open_periods(), None) or self._after_the_end()

    def _after_the_end(self) -> Period:
        return Period(start=self.billed_until, end=self.whole_period(self.billed_until).end)

    def period_at(self, instant: datetime) -> Period | None:
        """Give the period that holds an instant, cut at the end; None outside the subscription."""
        if self.ended_at is not None and instant >= self.ended_at:
            return None
        era = self.era_at(instant)
        period, until = period_at(era, instant), self._until(self.eras.index(era))
        if period is None or until is None:
            return period
        return Period(start=period.start, end=min(period.end, until))

    def whole_period(self, instant: datetime) -> Period:
        """Give the span between two boundaries that holds an instant, also beyond start and end."""
        return boundary_period(self.era_at(instant), instant)

    def stretches(self, period: Period) -> list[tuple[Period, Phase]]:
        """Cut a period where a phase begins."""
        cuts = [phase.starts_at for phase in self.phases if period.start < phase.starts_at < period.end]
        edges = [period.start, *cuts, period.end]
        return [(Period(start=start, end=end), self.phase_at(start)) for start, end in pairwise(edges)]

    def stretch_at(self, instant: datetime) -> Period | None:
        """Give the time around an instant in which nothing changes; None outside the subscription."""
        period = self.period_at(instant)
        if period is None:
            return None
        return next(span for span, _ in self.stretches(period) if instant < span.end)


def _cut(periods: Iterator[Period], until: datetime | None) -> Iterator[Period]:
    """Give periods up to an instant, the last one cut there."""
    for period in periods:
        if until is None or period.end < until:
            yield period
            continue
        if period.start < until:
            yield Period(start=period.start, end=until)
        return
