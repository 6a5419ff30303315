"""Recurring revenue by month, currency and plan, from the phases of subscriptions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.catalogue.canonical import bare_plan
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.phases import CANCELLED
from tollkeeper_ledger.domain.recurring import PaidStretch, RecurringBook, Worth, monthly_minor
from tollkeeper_ledger.services.what_if import month_of
from tollkeeper_ledger.store.billing_closes import read_definitions
from tollkeeper_ledger.store.recurring import read_phases

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.phases import Phase
    from tollkeeper_ledger.domain.rating.charges import PriceJson
    from tollkeeper_ledger.domain.recurring import Movements
    from tollkeeper_ledger.store.pool import Connection

MONTHS_DEFAULT = 12
MONTHS_MAX = 120
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class RecurringRow:
    """One month's movements in one currency, of one plan or of all."""

    month: str
    plan: str
    """Empty for all."""
    currency: str
    movements: Movements


async def recurring_revenue(
    conn: Connection, *, first: str, last: str, by_plan: bool, now: datetime
) -> list[RecurringRow]:
    """Give recurring revenue of the months from `first` to `last` in UTC; the running month as it stands now.

    `conn` is in a REPEATABLE READ transaction. Without `last` the running month is the last; without `first` twelve
    months are told. Raises InvalidFieldError: no month, one to come, or more months than a report takes.
    """
    months = _months(first, last, now=now)
    edges = [months[0][0], *(min(end, now + _TICK) for _, end in months)]
    book = RecurringBook(edges)
    plans: dict[UUID, PriceJson] = {}
    async for subscriptions in read_phases(conn, before=edges[-1]):
        missing = {phase.plan_version_id for phases in subscriptions for phase in phases} - plans.keys()
        if missing:
            for plan_version_id, found in (await read_definitions(conn, missing)).items():
                plans[plan_version_id] = json.loads(found.definition)
        book.add([stretch for phases in subscriptions for stretch in _paid(phases, plans)])
    return [
        RecurringRow(month=f"{months[place][0]:%Y-%m}", plan=plan, currency=currency, movements=movements)
        for place, currency, plan, movements in book.rows(by_plan=by_plan)
    ]


def _months(first: str, last: str, *, now: datetime) -> list[tuple[datetime, datetime]]:
    """Give the months asked for as spans, in order."""
    running = month_of(f"{now:%Y-%m}")
    end = month_of(last) if last else running
    if end[0] > now:
        raise InvalidFieldError("to", "is still to come", value=last, bound=f"up to {now:%Y-%m}")
    back = month_of(first)[0] if first else None
    months = [end]
    while (back is None and len(months) < MONTHS_DEFAULT) or (back is not None and months[-1][0] > back):
        if len(months) == MONTHS_MAX:
            raise InvalidFieldError("from", "lies too far before `to`", value=first, bound=f"{MONTHS_MAX} months")
        months.append(month_of(f"{months[-1][0] - _TICK:%Y-%m}"))
    if back is not None and back > end[0]:
        raise InvalidFieldError("from", "lies after `to`", value=first, bound=f"up to {end[0]:%Y-%m}")
    return months[::-1]


def _paid(phases: Sequence[Phase], plans: dict[UUID, PriceJson]) -> list[PaidStretch]:
    """Give the times in which a subscription is worth something; nothing comes after its end."""
    stretches: list[PaidStretch] = []
    for phase, following in pairwise([*phases, None]):
        if phase is None or phase.state == CANCELLED:
            break
        plan = plans[phase.plan_version_id]
        minor = monthly_minor(plan, quantity=phase.quantity) if phase.state == "active" else 0
        if minor:
            worth = Worth(plan=bare_plan(plan["name"]), currency=plan["currency"], minor=minor)
            stretches.append(PaidStretch(phase.starts_at, None if following is None else following.starts_at, worth))
    return stretches
