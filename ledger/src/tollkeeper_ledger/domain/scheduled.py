"""Changes of a subscription that are to come: when one may be, what stands in its way, what is left without it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.phases import CANCELLED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from tollkeeper_ledger.domain.phases import Phase, SubscriptionSchedule

AHEAD_MAX = timedelta(days=3660)
"""How long before it is in force a change may be scheduled."""
FIELD = "at_time"


def check_to_come(schedule: SubscriptionSchedule, instant: datetime, *, now: datetime) -> None:
    """Refuse an instant at which nothing can be scheduled. Raises InvalidFieldError."""
    earliest = max(now, schedule.started_at)
    if not earliest < instant <= now + AHEAD_MAX:
        bound = f"after {earliest.isoformat()}, up to {AHEAD_MAX.days} days ahead"
        raise _refused("is out of range", instant, bound=bound, reason="FIELD_OUT_OF_RANGE")
    if schedule.ended_at is not None and instant >= schedule.ended_at:
        bound = f"before {schedule.ended_at.isoformat()}"
        raise _refused("lies after the subscription's end", instant, bound=bound, remedy="`subscription resume` first")


def check_free(
    schedule: SubscriptionSchedule, instant: datetime, *, plan: bool = False, seats: bool = False, state: bool = False
) -> None:
    """Refuse a change at an instant, where one of the same thing is to come from then on. Raises InvalidFieldError.

    What periods are counted by goes with the plan. Changes of other things stay beside it.
    """
    for there in _changing(schedule, instant, plan=plan, seats=seats, state=state):
        problem = f"has a change of the same thing behind it, at {there.isoformat()}"
        raise _refused(problem, instant, remedy=f"`subscription unschedule --at {there.isoformat()}` first")


def _changing(
    schedule: SubscriptionSchedule, instant: datetime, *, plan: bool, seats: bool, state: bool
) -> Iterator[datetime]:
    if plan:
        yield from (era.started_at for era in schedule.eras[1:] if era.started_at >= instant)
    for before, phase in pairwise(schedule.phases):
        if phase.state == CANCELLED:
            return
        differs = (
            (plan and phase.plan_version_id != before.plan_version_id)
            or (seats and phase.quantity != before.quantity)
            or (state and phase.state != before.state)
        )
        if differs and phase.starts_at >= instant:
            yield phase.starts_at


def without(schedule: SubscriptionSchedule, instant: datetime, *, now: datetime) -> list[Phase]:
    """Give the phases to put where nothing is to change at an instant: the one of then, and later ones like it.

    Later phases that have a plan, seats or a pause from it have those of before; the end of a trial stays. Raises
    InvalidFieldError: nothing is scheduled for then; it is the end; what is to come later counts on it.
    """
    ends = [phase.starts_at for phase in schedule.phases if phase.state == CANCELLED]
    places = [place for place, phase in enumerate(schedule.phases) if phase.starts_at == instant and place]
    if not places or instant <= now or (ends and ends[0] < instant):
        raise _refused("has no change scheduled", instant, remedy="`subscription scheduled` lists them")
    before, gone, *later = schedule.phases[places[0] - 1 :]
    if gone.state == CANCELLED:
        raise _refused("is the subscription's end", instant, remedy="`subscription resume` takes it back")
    is_counted_anew = any(era.started_at == instant for era in schedule.eras)
    later_eras = [era.started_at for era in schedule.eras if era.started_at > instant]
    if later_eras and is_counted_anew:
        problem = f"has another count of periods behind it, at {later_eras[0].isoformat()}"
        raise _refused(problem, instant, remedy=f"`subscription unschedule --at {later_eras[0].isoformat()}` first")
    pauses = gone.state == "paused" and before.state != "paused"
    terms = replace(before, starts_at=instant, state=before.state if pauses else gone.state)
    if terms == gone and not is_counted_anew:
        raise _refused("is the trial's end, which stays", instant)
    return [terms, *_following(later, gone, terms)]


def _following(later: Sequence[Phase], gone: Phase, terms: Phase) -> Iterator[Phase]:
    """Give later phases with other terms, as far as they have theirs from the phase that is gone."""
    plan, seats, state = True, True, gone.state != terms.state
    for phase in later:
        plan = plan and phase.plan_version_id == gone.plan_version_id
        seats = seats and phase.quantity == gone.quantity
        state = state and phase.state == gone.state
        yield replace(
            phase,
            plan_version_id=terms.plan_version_id if plan else phase.plan_version_id,
            quantity=terms.quantity if seats else phase.quantity,
            state=terms.state if state else phase.state,
        )


def trial_end_after(schedule: SubscriptionSchedule, instant: datetime) -> datetime | None:
    """Give when a trial ends that runs at an instant, or ends just then; None = none does."""
    for before, phase in pairwise(schedule.phases):
        if before.state == "trialing" != phase.state and phase.starts_at >= instant:
            return phase.starts_at
    return None


def phase_in_force(schedule: SubscriptionSchedule, instant: datetime) -> Phase:
    """Give the phase in force at an instant: after an end, the end."""
    ends = [phase for phase in schedule.phases if phase.state == CANCELLED and phase.starts_at <= instant]
    return ends[0] if ends else schedule.phase_at(instant)


def idle_phases(schedule: SubscriptionSchedule, *, now: datetime) -> list[datetime]:
    """Give the times to come at which a phase begins, but nothing changes."""
    eras = {era.started_at for era in schedule.eras}
    return [
        phase.starts_at
        for before, phase in pairwise(schedule.phases)
        if phase.starts_at > now
        and phase.starts_at not in eras
        and before.state != CANCELLED
        and replace(before, starts_at=phase.starts_at) == phase
    ]


def _refused(
    problem: str, instant: datetime, *, bound: str = "", remedy: str = "", reason: str = "FIELD_INVALID"
) -> InvalidFieldError:
    return InvalidFieldError(FIELD, problem, value=instant.isoformat(), bound=bound, remedy=remedy, reason=reason)
