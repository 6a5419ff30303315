"""Close billing periods: cut their usage and keep the sums, in one transaction that has their tenants alone."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tollkeeper_ledger.domain.catalogue.canonical import canonical_json
from tollkeeper_ledger.domain.closing import grace_of, judge
from tollkeeper_ledger.domain.invoice import check_billable, digests_of, inputs_to_json
from tollkeeper_ledger.domain.phases import CANCELLED
from tollkeeper_ledger.domain.rating.engine import is_free
from tollkeeper_ledger.services.billing_facts import OPENING, Settling, read_plans_of, settle_reductions
from tollkeeper_ledger.services.close_inputs import Gathered, PeriodAsked, gather
from tollkeeper_ledger.services.fairness import in_turns
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.billing_closes import CloseKey, ClosingSpan, NewClose
from tollkeeper_ledger.store.billing_segments import NewSegment, SegmentKey, put_segments, read_schedules
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.money import take_items
from tollkeeper_ledger.store.tenant_locks import lock_tenants

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.closing import ProducerState
    from tollkeeper_ledger.domain.invoice import RatedInputs
    from tollkeeper_ledger.domain.periods import Period
    from tollkeeper_ledger.domain.rating.period import PeriodFacts
    from tollkeeper_ledger.services.billing_facts import PeriodPlans
    from tollkeeper_ledger.store.pool import Connection

RATED_PER_TURN = 2
"""Periods that are rated before the event loop has a turn; one takes about half a millisecond. The batch that has the
numbers waits for that at each of a dozen statements, and all other batches for it."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A period that this call closed."""

    key: CloseKey
    billable: bool
    is_draft: bool
    """It waits until somebody finalises it."""
    rated: RatedInputs | None
    """None where nothing can be charged."""


@dataclass(frozen=True, slots=True)
class Held:
    """A period that is due and stays open: it waits for producers, or no invoice can be made of it."""

    reason: str


Outcome: TypeAlias = "Closed | Held | None"
"""None: nothing is due."""


async def count_due(conn: Connection, tenant_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Count, per subscription of these tenants, openings and open periods that are due; none = not in the answer."""
    now = await ledger_now(conn)
    schedules = [one for one in await read_schedules(conn, tenant_ids) if one.is_open]
    plans = await read_plans_of(conn, schedules)
    openings = await _openings(conn, plans, now=now)
    counts: dict[UUID, int] = {}
    for schedule in schedules:
        found = plans[schedule.subscription_id]
        due = 1 if schedule.subscription_id in openings else 0
        for period in schedule.open_periods():
            if now < period.end + grace_of(found.terms_at(period.start)):
                break
            due += 1
        if due:
            counts[schedule.subscription_id] = due
    return counts


async def _openings(conn: Connection, plans: Mapping[UUID, PeriodPlans], *, now: datetime) -> dict[UUID, Period]:
    """Give the first periods of those of these subscriptions whose first fees in advance are due and not yet billed."""
    openings = {name: first for name, found in plans.items() if (first := found.opening(now=now)) is not None}
    if not openings:
        return {}
    opened = await closes.read_opened(conn, {plans[name].schedule.tenant_id for name in openings})
    return {name: first for name, first in openings.items() if name not in opened}


async def close_due(
    conn: Connection, subscriptions: Sequence[tuple[UUID, UUID]], *, new_id: Callable[[], UUID] = uuid.uuid4
) -> list[Outcome]:
    """Close each subscription's earliest open period where it is due and nobody holds it; outcomes in the order given.

    `subscriptions` are (tenant id, subscription id), at most one of a tenant. `conn` is in a transaction of the billing
    role. It waits for running appends of the tenants and holds off later ones until it commits; usage of the periods
    that comes then is late. A subscription with fees in advance is opened first: a close of no time, which bills the
    first of them. What can't be billed stays open and holds up nobody else.
    """
    tenant_ids = [tenant_id for tenant_id, _ in subscriptions]
    if len(set(tenant_ids)) < len(tenant_ids):
        raise ValueError("one close at a time of a tenant: the next depends on it")
    await lock_tenants(conn, tenant_ids)
    now = await ledger_now(conn)
    asked, outcomes = await _due(conn, subscriptions, now=now)
    await _ensure_bases(conn, [one for one in asked if not one.is_opening], new_id)
    outcomes |= await keep(conn, asked, at=now)
    return [outcomes.get(subscription_id) for _, subscription_id in subscriptions]


async def keep(conn: Connection, asked: Sequence[PeriodAsked], *, at: datetime) -> dict[UUID, Closed | Held]:
    """Close periods, or cuts of them, with their usage as it stands, by subscription; what can't be billed is held.

    At most one of a tenant. The transaction has the tenants alone.
    """
    gathered = await gather(conn, asked, at=at) if asked else {}
    outcomes: dict[UUID, Closed | Held] = {}
    closing: list[_Closing] = []
    async for one in in_turns(asked, each=RATED_PER_TURN):
        name = one.found.schedule.subscription_id
        found = gathered[name]
        made = await _rated(conn, one, found) if isinstance(found, Gathered) else found
        if isinstance(made, ValueError):
            outcomes[name] = Held(reason=f"can't be billed: {made}")
            continue
        closing.append(made)
        outcomes[name] = Closed(made.key, made.billable, made.gathered.profile.review, made.rated)
    if closing:
        await _keep(conn, closing, at=at)
    return outcomes


async def _due(
    conn: Connection, subscriptions: Sequence[tuple[UUID, UUID]], *, now: datetime
) -> tuple[list[PeriodAsked], dict[UUID, Outcome]]:
    """Give what may close now, and why the rest of what is due may not."""
    tenant_ids = [tenant_id for tenant_id, _ in subscriptions]
    schedules = {one.subscription_id: one for one in await read_schedules(conn, tenant_ids) if one.is_open}
    plans = await read_plans_of(conn, [schedules[name] for _, name in subscriptions if name in schedules])
    openings = await _openings(conn, plans, now=now)
    producers = await closes.read_producers(conn, tenant_ids)
    topics = await closes.read_topic_states(conn)
    asked: list[PeriodAsked] = []
    outcomes: dict[UUID, Outcome] = {}
    for name, found in plans.items():
        if name in openings:
            asked.append(PeriodAsked(found, openings[name], is_opening=True))
            continue
        judged = _judged(found, [*producers.get(found.schedule.tenant_id, ()), *topics], now=now)
        if isinstance(judged, PeriodAsked):
            asked.append(judged)
        else:
            outcomes[name] = judged
    return asked, outcomes


def _judged(found: PeriodPlans, producers: Sequence[ProducerState], *, now: datetime) -> PeriodAsked | Held | None:
    period = next(found.schedule.open_periods())
    grace = grace_of(found.terms_at(period.start))
    verdict = judge(period_end=period.end, grace=grace, now=now, producers=producers)
    if verdict.may_close:
        return PeriodAsked(found, period, not_waited_for=verdict.not_waited_for)
    return Held(reason="; ".join(verdict.held_by)) if verdict.held_by else None


@dataclass(frozen=True, slots=True)
class _Closing:
    """A period that is about to be closed."""

    key: CloseKey
    period_end: datetime
    gathered: Gathered
    inputs: bytes
    billable: bool
    rated: RatedInputs | None

    @property
    def facts(self) -> PeriodFacts:
        return self.gathered.inputs.facts

    @property
    def span(self) -> ClosingSpan:
        return ClosingSpan(self.key, self.period_end)


async def _rated(conn: Connection, asked: PeriodAsked, gathered: Gathered) -> _Closing | ValueError:
    """Rate a period's inputs, so that what can't be billed stays open; the error where it can't."""
    found, schedule = gathered.inputs, asked.found.schedule
    stored = inputs_to_json(found)
    definitions = {one.plan.digest: one.definition for one in asked.found.plans.values()}
    missing = digests_of(found) - definitions.keys()
    if missing:
        definitions |= await closes.read_definitions_by_digest(conn, missing)
    is_in_force = not found.facts.stretches or any(one.state == "active" for one in found.facts.stretches)
    billable = bool(found.items) or not all(is_free(definitions[digest]) for digest in digests_of(found))
    rated = None
    if billable:
        try:
            rated = check_billable(stored, definitions)
        except ValueError as error:
            return error
        billable = bool(found.items) or is_in_force or bool(rated.rated.charges.lines)
    # An opening is the close of the microsecond before the first period; a cut that of the one before it.
    start, end = found.period.start, found.period.end
    if asked.is_opening:
        start, end = start - OPENING, start
    elif asked.cut_at is not None:
        start = end - OPENING
    key = CloseKey(schedule.tenant_id, schedule.subscription_id, start)
    inputs = canonical_json(stored) if rated is None else rated.inputs
    return _Closing(key, end, gathered, inputs, billable, rated)


async def _keep(conn: Connection, closing: Sequence[_Closing], *, at: datetime) -> None:
    """Close the segments, keep the closes, and take what they used."""
    with_usage = [one.span for one in closing if one.facts.stretches and not one.facts.is_cut]
    if with_usage:
        await closes.close_segments(conn, with_usage, at=at)
    # What a cut takes of coupons and grants is in its amounts alone: the period's own close settles the whole.
    settled = [
        Settling(one.key.tenant_id, one.facts, one.rated.rated, one.gathered.known.grants)
        for one in closing
        if one.rated is not None and not one.facts.is_cut
    ]
    await settle_reductions(conn, settled, at=at)
    kept = [
        NewClose(one.span, one.billable, one.gathered.profile.review, one.facts.is_cut, one.inputs) for one in closing
    ]
    await closes.add_closes(conn, kept, at=at)
    items = [(uuid.UUID(item["item_id"]), one.key) for one in closing for item in one.gathered.inputs.items]
    await take_items(conn, items)


async def _ensure_bases(conn: Connection, asked: Sequence[PeriodAsked], new_id: Callable[[], UUID]) -> None:
    """Have a segment of each stretch, also where nothing was used: usage that comes later is late for it."""
    segments = [
        NewSegment(
            key=SegmentKey(
                tenant_id=one.found.schedule.tenant_id,
                subscription_id=one.found.schedule.subscription_id,
                plan_version_id=phase.plan_version_id,
                period_start=span.start,
                late_for=None,
            ),
            segment_id=new_id(),
            period_end=span.end,
            closed_at=None,
        )
        for one in asked
        for span, phase in one.found.schedule.stretches(one.period)
        if phase.state != CANCELLED
    ]
    if segments:
        await put_segments(conn, segments)
