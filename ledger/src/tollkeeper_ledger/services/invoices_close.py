"""Close a billing period: cut its usage and keep the sums, in one transaction that has the tenant alone."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.closing import grace_of, judge
from tollkeeper_ledger.domain.invoice import (
    CloseInputs,
    LateInput,
    SegmentInput,
    check_billable,
    digests_named,
    inputs_to_bytes,
    merge_totals,
)
from tollkeeper_ledger.domain.periods import period_at, periods_from
from tollkeeper_ledger.domain.rating.engine import ENGINE_VERSION, is_free
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.billing_segments import NewSegment, SegmentKey, add_segments, read_schedules
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.periods import Period
    from tollkeeper_ledger.store.billing_closes import CloseKey, PeriodSegment, PlanDefinition
    from tollkeeper_ledger.store.billing_segments import SubscriptionSchedule
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class Closed:
    """A period that this call closed."""

    key: CloseKey
    billable: bool


class UnbillableError(Exception):
    """Say that no invoice can be made of a period's usage; whoever catches it rolls the close back."""


@dataclass(frozen=True, slots=True)
class Held:
    """A period that is due and waits for producers."""

    reason: str


async def count_due(conn: Connection, tenant_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Count, per subscription of these tenants, the open periods whose grace is over; none = not in the answer."""
    now = await ledger_now(conn)
    schedules = [one for one in await read_schedules(conn, tenant_ids) if _is_open(one)]
    versions = {phase.plan_version_id for schedule in schedules for phase in schedule.phases}
    definitions = await closes.read_definitions(conn, versions)
    graces = {version: grace_of(json.loads(found.definition)) for version, found in definitions.items()}
    counts: dict[UUID, int] = {}
    for schedule in schedules:
        for period in _open_periods(schedule):
            if now < period.end + graces[schedule.plan_version_at(period.start)]:
                break
            counts[schedule.subscription_id] = counts.get(schedule.subscription_id, 0) + 1
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
    ones until it commits; usage of the period that comes then is late.
    """
    await lock_tenant(conn, tenant_id)
    schedule = await _schedule(conn, tenant_id, subscription_id)
    if schedule is None:
        return None
    period = next(_open_periods(schedule))
    definition = await _definition(conn, schedule, period)
    now = await ledger_now(conn)
    verdict = judge(
        period_end=period.end,
        grace=grace_of(json.loads(definition.definition)),
        now=now,
        producers=await closes.read_producers(conn, tenant_id),
    )
    if not verdict.may_close:
        return Held(reason="; ".join(verdict.held_by)) if verdict.held_by else None
    key = closes.CloseKey(tenant_id, subscription_id, period.start)
    await _ensure_base(conn, schedule, period, new_id)
    await closes.close_segments(conn, key, at=now)
    found, billable = await _inputs(conn, schedule, period, definition, at=now, not_waited_for=verdict.not_waited_for)
    inputs = inputs_to_bytes(found)
    if billable:
        # Rated here as well, so that what can't be billed stays open and is named, and holds up nobody else.
        definitions = await closes.read_definitions_by_digest(conn, digests_named(inputs))
        try:
            check_billable(inputs, definitions)
        except ValueError as error:
            raise UnbillableError(str(error)) from error
    await closes.add_close(conn, key, period_end=period.end, at=now, billable=billable, inputs=inputs)
    return Closed(key=key, billable=billable)


async def running_inputs(conn: Connection, tenant_id: UUID, *, now: datetime) -> tuple[CloseInputs, bytes] | None:
    """Give the inputs of the running period as they stand and its plan version's bytes; None without a subscription.

    Changes nothing. `conn` is in a REPEATABLE READ transaction, so that all sums are of one moment.
    """
    schedules = [one for one in await read_schedules(conn, [tenant_id]) if one.ended_at is None]
    if not schedules:
        return None
    schedule = schedules[-1]
    period = period_at(schedule.schedule, now) or next(_open_periods(schedule))
    definition = await _definition(conn, schedule, period)
    inputs, _ = await _inputs(conn, schedule, period, definition, at=now, not_waited_for=())
    return inputs, definition.definition


async def _schedule(conn: Connection, tenant_id: UUID, subscription_id: UUID) -> SubscriptionSchedule | None:
    for schedule in await read_schedules(conn, [tenant_id]):
        if schedule.subscription_id == subscription_id:
            return schedule if _is_open(schedule) else None
    return None


def _is_open(schedule: SubscriptionSchedule) -> bool:
    return schedule.ended_at is None or schedule.billed_until < schedule.ended_at


def _open_periods(schedule: SubscriptionSchedule) -> Iterator[Period]:
    return periods_from(schedule.schedule, schedule.billed_until)


async def _definition(conn: Connection, schedule: SubscriptionSchedule, period: Period) -> PlanDefinition:
    plan_version_id = schedule.plan_version_at(period.start)
    return (await closes.read_definitions(conn, [plan_version_id]))[plan_version_id]


async def _ensure_base(
    conn: Connection, schedule: SubscriptionSchedule, period: Period, new_id: Callable[[], UUID]
) -> None:
    """Have the period's segment, also where nothing was used: usage that comes later is late for it."""
    key = SegmentKey(
        tenant_id=schedule.tenant_id,
        subscription_id=schedule.subscription_id,
        plan_version_id=schedule.plan_version_at(period.start),
        period_start=period.start,
        late_for=None,
    )
    await add_segments(conn, [NewSegment(key=key, segment_id=new_id(), period_end=period.end, closed_at=None)])


async def _inputs(
    conn: Connection,
    schedule: SubscriptionSchedule,
    period: Period,
    definition: PlanDefinition,
    *,
    at: datetime,
    not_waited_for: tuple[str, ...],
) -> tuple[CloseInputs, bool]:
    """Sum what the period's segments hold; say as well whether an invoice is to be made of it."""
    tenant_id = schedule.tenant_id
    key = closes.CloseKey(tenant_id, schedule.subscription_id, period.start)
    segments = await closes.read_period_segments(conn, key)
    late = [segment for segment in segments if segment.late_for is not None]
    before = await closes.read_billed_before(
        conn, tenant_id, {segment.late_for for segment in late if segment.late_for}, before=period.start
    )
    wanted = {segment.segment_id for segment in segments} | {one for group in before.values() for one in group}
    totals = await closes.read_totals(conn, tenant_id, wanted)
    counts = await closes.count_records(conn, tenant_id, segments)

    def summed(segment: PeriodSegment) -> SegmentInput:
        return SegmentInput(
            segment_id=str(segment.segment_id),
            record_count=counts.get(segment.segment_id, 0),
            totals=totals.get(segment.segment_id, ()),
        )

    inputs = CloseInputs(
        parties=await closes.read_parties(conn, tenant_id),
        subscription_id=str(schedule.subscription_id),
        time_zone=schedule.schedule.time_zone,
        period=period,
        plan=definition.plan,
        engine_version=ENGINE_VERSION,
        segments=tuple(summed(segment) for segment in segments if segment.late_for is None),
        late=tuple(
            LateInput(
                segment=summed(segment),
                late_for=str(segment.late_for),
                period=segment.own,
                plan=segment.plan,
                before=merge_totals([totals.get(one, ()) for one in before.get(segment.late_for, ())]),
            )
            for segment in late
            if segment.late_for is not None
        ),
        chain_heads=await closes.read_chain_heads(conn),
        not_waited_for=not_waited_for,
        closed_at=at,
    )
    plans = await closes.read_definitions_by_digest(conn, {segment.plan.digest for segment in late})
    billable = not all(is_free(one) for one in (definition.definition, *plans.values()))
    return inputs, billable
