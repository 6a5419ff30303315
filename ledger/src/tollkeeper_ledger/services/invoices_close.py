"""Close a billing period: cut its usage and keep the sums, in one transaction that has the tenant alone."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.closing import grace_of, judge
from tollkeeper_ledger.domain.invoice import (
    CloseInputs,
    check_billable,
    digests_named,
    inputs_to_bytes,
)
from tollkeeper_ledger.domain.phases import CANCELLED
from tollkeeper_ledger.domain.rating.engine import ENGINE_VERSION, is_free
from tollkeeper_ledger.services.billing_facts import (
    OPENING,
    PeriodPlans,
    opening_facts,
    period_facts,
    read_invoiced,
    read_plans_of,
    settle_reductions,
)
from tollkeeper_ledger.services.period_usage import read_period_usage
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.billing_profiles import read_profile
from tollkeeper_ledger.store.billing_segments import NewSegment, SegmentKey, add_segments, read_schedules
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.money import read_waiting_items, take_items
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.periods import Period
    from tollkeeper_ledger.domain.phases import SubscriptionSchedule
    from tollkeeper_ledger.domain.rating.period import PeriodFacts
    from tollkeeper_ledger.store.billing_closes import CloseKey
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class Closed:
    """A period that this call closed."""

    key: CloseKey
    billable: bool
    is_draft: bool
    """It waits until somebody finalises it."""


class UnbillableError(Exception):
    """Say that no invoice can be made of a period's usage; whoever catches it rolls the close back."""


@dataclass(frozen=True, slots=True)
class Held:
    """A period that is due and waits for producers."""

    reason: str


async def count_due(conn: Connection, tenant_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Count, per subscription of these tenants, openings and open periods that are due; none = not in the answer."""
    now = await ledger_now(conn)
    schedules = [one for one in await read_schedules(conn, tenant_ids) if one.is_open]
    versions = {phase.plan_version_id for schedule in schedules for phase in schedule.phases}
    definitions = await closes.read_definitions(conn, versions)
    graces = {version: grace_of(json.loads(found.definition)) for version, found in definitions.items()}
    opened = await closes.read_opened(conn, tenant_ids)
    counts: dict[UUID, int] = {}
    for schedule in schedules:
        opening = PeriodPlans(schedule, definitions).opening(now=now)
        due = 1 if opening is not None and schedule.subscription_id not in opened else 0
        for period in schedule.open_periods():
            if now < period.end + graces[schedule.plan_version_at(period.start)]:
                break
            due += 1
        if due:
            counts[schedule.subscription_id] = due
    return counts


async def close_next(
    conn: Connection,
    tenant_id: UUID,
    subscription_id: UUID,
    *,
    new_id: Callable[[], UUID] = uuid.uuid4,
) -> Closed | Held | None:
    """Close the subscription's earliest open period where it is due and nobody holds it; None where nothing is due.

    `conn` is in a transaction of the billing role. It waits for running appends of the tenant and holds off later
    ones until it commits; usage of the period that comes then is late. A subscription with fees in advance is opened
    first: a close of no time, which bills the first of them.
    """
    await lock_tenant(conn, tenant_id)
    schedule = await find_schedule(conn, tenant_id, subscription_id)
    if schedule is None:
        return None
    now = await ledger_now(conn)
    found = await read_plans_of(conn, schedule)
    opened = await _open(conn, found, now=now)
    if opened is not None:
        return opened
    period = next(schedule.open_periods())
    verdict = judge(
        period_end=period.end,
        grace=grace_of(json.loads(found.plans[schedule.plan_version_at(period.start)].definition)),
        now=now,
        producers=await closes.read_producers(conn, tenant_id),
    )
    if not verdict.may_close:
        return Held(reason="; ".join(verdict.held_by)) if verdict.held_by else None
    key = closes.CloseKey(tenant_id, subscription_id, period.start)
    await _ensure_bases(conn, schedule, period, new_id)
    await closes.close_segments(conn, key, period_end=period.end, at=now)
    facts = await period_facts(conn, found, period)
    inputs = await _inputs(conn, found, facts, at=now, not_waited_for=verdict.not_waited_for)
    return await keep(conn, key, inputs, at=now, period_end=period.end)


async def _open(conn: Connection, found: PeriodPlans, *, now: datetime) -> Closed | None:
    """Bill the first fees in advance, once; None where there are none or they are billed."""
    first = found.opening(now=now)
    if first is None:
        return None
    schedule = found.schedule
    if await closes.read_inputs_ending(conn, schedule.tenant_id, schedule.subscription_id, first.start) is not None:
        return None
    key = closes.CloseKey(schedule.tenant_id, schedule.subscription_id, first.start - OPENING)
    facts = await opening_facts(conn, found, first)
    inputs = await empty_inputs(conn, found, facts, at=now)
    return await keep(conn, key, inputs, at=now, period_end=first.start)


async def keep(conn: Connection, key: CloseKey, found: CloseInputs, *, at: datetime, period_end: datetime) -> Closed:
    """Keep a close with its inputs. Raises UnbillableError where no invoice can be made of them."""
    inputs = inputs_to_bytes(found)
    definitions = await closes.read_definitions_by_digest(conn, digests_named(inputs))
    is_in_force = not found.facts.stretches or any(one.state == "active" for one in found.facts.stretches)
    billable = bool(found.items) or not all(is_free(one) for one in definitions.values())
    if billable:
        # Rated here as well, so that what can't be billed stays open and is named, and holds up nobody else.
        try:
            rated = check_billable(inputs, definitions)
        except ValueError as error:
            raise UnbillableError(str(error)) from error
        billable = bool(found.items) or is_in_force or bool(rated.charges.lines)
        # What a cut takes of coupons and grants is in its amounts alone: the period's own close settles the whole.
        if not found.facts.is_cut:
            await settle_reductions(conn, found.facts, rated, key.tenant_id, at=at)
    items = [uuid.UUID(item["item_id"]) for item in found.items]
    profile = await read_profile(conn, uuid.UUID(found.parties.billing_tenant["tenant_id"]))
    await closes.add_close(
        conn,
        key,
        period_end=period_end,
        at=at,
        billable=billable,
        is_draft=profile.review,
        inputs=inputs,
        is_cut=found.facts.is_cut,
    )
    await take_items(conn, key.tenant_id, items, subscription_id=key.subscription_id, period_start=key.period_start)
    return Closed(key=key, billable=billable, is_draft=profile.review)


async def running_inputs(conn: Connection, tenant_id: UUID, *, now: datetime) -> CloseInputs | None:
    """Give the inputs of the running period as they stand; None without a subscription.

    Changes nothing. `conn` is in a REPEATABLE READ transaction, so that all sums are of one moment.
    """
    schedules = [one for one in await read_schedules(conn, [tenant_id]) if one.ended_at is None or one.ended_at > now]
    if not schedules:
        return None
    schedule = schedules[-1]
    period = schedule.period_at(now) or next(schedule.open_periods())
    found = await read_plans_of(conn, schedule)
    return await _inputs(conn, found, await period_facts(conn, found, period), at=now, not_waited_for=())


async def find_schedule(conn: Connection, tenant_id: UUID, subscription_id: UUID) -> SubscriptionSchedule | None:
    """Read a subscription that has a period left to close; None for any other."""
    for schedule in await read_schedules(conn, [tenant_id]):
        if schedule.subscription_id == subscription_id:
            return schedule if schedule.is_open else None
    return None


async def _ensure_bases(
    conn: Connection, schedule: SubscriptionSchedule, period: Period, new_id: Callable[[], UUID]
) -> None:
    """Have a segment of each stretch, also where nothing was used: usage that comes later is late for it."""
    segments = [
        NewSegment(
            key=SegmentKey(
                tenant_id=schedule.tenant_id,
                subscription_id=schedule.subscription_id,
                plan_version_id=phase.plan_version_id,
                period_start=span.start,
                late_for=None,
            ),
            segment_id=new_id(),
            period_end=span.end,
            closed_at=None,
        )
        for span, phase in schedule.stretches(period)
        if phase.state != CANCELLED
    ]
    if segments:
        await add_segments(conn, segments)


async def empty_inputs(conn: Connection, found: PeriodPlans, facts: PeriodFacts, *, at: datetime) -> CloseInputs:
    """Give the inputs of a period without its usage."""
    schedule = found.schedule
    last = facts.stretches[-1].span.start if facts.stretches else facts.period.start
    plan = found.plans[schedule.plan_version_at(last)]
    currency = json.loads(plan.definition)["currency"]
    parties = await closes.read_parties(conn, schedule.tenant_id)
    profile = await read_profile(conn, uuid.UUID(parties.billing_tenant["tenant_id"]))
    return CloseInputs(
        parties=parties,
        subscription_id=str(schedule.subscription_id),
        time_zone=schedule.era_at(facts.period.start).time_zone,
        period=facts.period,
        plan=plan.plan,
        facts=facts,
        engine_version=ENGINE_VERSION,
        segments=(),
        late=(),
        chain_heads=await closes.read_chain_heads(conn),
        not_waited_for=(),
        closed_at=at,
        billing=profile.frozen(),
        items=await read_waiting_items(conn, schedule.tenant_id, currency=currency),
        invoiced=await read_invoiced(conn, found, facts),
    )


async def _inputs(
    conn: Connection, found: PeriodPlans, facts: PeriodFacts, *, at: datetime, not_waited_for: tuple[str, ...]
) -> CloseInputs:
    """Sum what the period's segments hold."""
    inputs = await empty_inputs(conn, found, facts, at=at)
    segments, late = await read_period_usage(conn, found, facts.period)
    return replace(inputs, segments=segments, late=late, not_waited_for=not_waited_for)
