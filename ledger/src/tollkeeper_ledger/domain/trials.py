"""What a plan says of its trial: how long, whether the payer needs a payment method, what happens without. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.phases import CANCELLED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.domain.phases import Phase, SubscriptionSchedule

NOT_ASKED, AT_END, AT_START = "none", "at_end", "at_start"
PAYMENT_METHOD = (NOT_ASKED, AT_END, AT_START)
"""When a payment method has to be there."""
CANCEL, PAUSE, FALLBACK = "cancel", "pause", "fallback"
OTHERWISE = (CANCEL, PAUSE, FALLBACK)
"""What happens at a trial's end without one."""
NEEDS_METHOD = "begins its trial, or goes on after one that is over, only for a payer with a payment method"
"""Why a subscription is refused."""
BILL = "bill"
"""What happens with one, or where none is asked for."""
NOTICE_DAYS_DEFAULT = 3
NOTICE_DAYS_MAX = 30


@dataclass(frozen=True, slots=True)
class TrialTerms:
    """A plan's trial."""

    days: int = 0
    """0 = none, unless a subscription is given one of its own."""
    payment_method: str = NOT_ASKED
    """`none`: it goes on and is billed. `at_end`, `at_start`: the payer needs one by then, at the end in any case."""
    otherwise: str = CANCEL
    """What happens at its end where the payer needs a payment method and has none."""
    fallback_plan: str = ""
    """The plan that `fallback` moves to."""
    notice_days: int = NOTICE_DAYS_DEFAULT
    """How long before its end it is told of; 0 = not at all."""

    @property
    def asks(self) -> bool:
        """Whether its end depends on a payment method."""
        return self.payment_method != NOT_ASKED

    def needs_method(self, trial_end: datetime | None, *, now: datetime) -> bool:
        """Say whether a subscription begins only with a payment method: asked for then, or its trial is over by now."""
        is_over = trial_end is not None and trial_end <= now
        return trial_end is not None and (self.payment_method == AT_START or (self.asks and is_over))

    def notice_at(self, trial_end: datetime | None) -> datetime | None:
        """Give when its end is told of; None = not at all."""
        return trial_end - timedelta(days=self.notice_days) if trial_end is not None and self.notice_days else None


NO_TRIAL = TrialTerms()


def terms_from(definition: bytes) -> TrialTerms:
    """Read the trial of a stored plan version."""
    plan = json.loads(definition)
    return TrialTerms(days=plan.get("trial_days", 0), **plan.get("trial", {}))


def terms_to_json(terms: TrialTerms) -> JsonObject:
    """Give what a plan's definition says of its trial; what was never said is left out."""
    said: JsonObject = {"trial_days": terms.days} if terms.days else {}
    if terms != TrialTerms(days=terms.days):
        said["trial"] = {
            "payment_method": terms.payment_method,
            "otherwise": terms.otherwise,
            "fallback_plan": terms.fallback_plan,
            "notice_days": terms.notice_days,
        }
    return said


def trial_to_end(schedule: SubscriptionSchedule, now: datetime) -> tuple[Phase, Phase] | None:
    """Give the phases before and after a trial's end that is to come; None where none is, or nothing follows it."""
    for before, phase in pairwise(schedule.phases):
        if before.state == "trialing" != phase.state and phase.starts_at > now:
            return None if phase.state == CANCELLED else (before, phase)
    return None


def without_method(phases: Sequence[Phase], terms: TrialTerms, *, fallback_id: UUID | None) -> list[Phase]:
    """Give what is to come from a trial's end on, where the payer has no payment method by then."""
    if terms.otherwise == FALLBACK and fallback_id is not None:
        return [replace(phase, plan_version_id=fallback_id) for phase in phases]
    state = "paused" if terms.otherwise == PAUSE else CANCELLED
    return [phase if phase.state == CANCELLED else replace(phase, state=state) for phase in phases]
