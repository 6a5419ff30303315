"""Change subscriptions: begin, move, pause, resume, end; limits follow at once or when their time comes.

Each change is one transaction that has the tenant alone: it puts a phase, cuts what is open there, lets limits follow
and takes the next change number last. What was used before stays billed as it was.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.catalogue.known import AddSubscription
from tollkeeper_ledger.domain.catalogue.subscribing import anchor_of, target_from, trial_end_of
from tollkeeper_ledger.domain.errors import AlreadyExistsError, InvalidFieldError, UnknownNameError
from tollkeeper_ledger.domain.periods import Schedule, same_date_from
from tollkeeper_ledger.domain.phases import CANCELLED, Phase
from tollkeeper_ledger.domain.scheduled import check_free, check_to_come, idle_phases, phase_in_force, trial_end_after
from tollkeeper_ledger.services import trials
from tollkeeper_ledger.services.plan_choice import plan_in
from tollkeeper_ledger.store import subscriptions as store
from tollkeeper_ledger.store.billing_closes import read_definitions
from tollkeeper_ledger.store.billing_segments import (
    cut_segments,
    has_segments_from,
    join_segments,
    read_schedules,
)
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit, add_subscriptions, last_segment_end
from tollkeeper_ledger.store.changes import record_changes
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.domain.periods import Interval
    from tollkeeper_ledger.domain.phases import SubscriptionSchedule
    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.pool import Connection, Pool

NOW, PERIOD_END = "now", "period_end"
_DUE_BATCH = 100
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class SubscriptionAsked:
    """A subscription to begin; what is left out is None or empty."""

    plan: str
    start: datetime | None
    anchor: str
    time_zone: str
    currency: str
    quantity: int
    trial_days: int | None


async def create_subscription(
    conn: Connection,
    tenant_id: UUID,
    tenant: str,
    asked: SubscriptionAsked,
    act: Act,
    *,
    new_id: Callable[[], UUID] = uuid.uuid4,
) -> None:
    """Subscribe a tenant that has no running subscription.

    Raises UnknownNameError: no such plan, or not in that currency; AlreadyExistsError: it is subscribed then;
    InvalidFieldError: it begins before the last one ended, or its trial, or what is after one that is over by now,
    only with a payment method.
    """
    await lock_tenant(conn, tenant_id)
    started_at = asked.start or act.now
    if await _live(conn, tenant_id, now=act.now) is not None:
        raise AlreadyExistsError(f"{tenant} has a running subscription", metadata={"tenant": tenant})
    last_end = await store.read_last_end(conn, tenant_id)
    if last_end is not None and started_at < last_end:
        raise InvalidFieldError(
            "start", "lies in another subscription", value=started_at.isoformat(), bound=f"from {last_end.isoformat()}"
        )
    found = await plan_in(conn, tenant_id, asked.plan, asked.currency)
    target = target_from(found.version, found.definition)
    time_zone = asked.time_zone or await store.read_seller_time_zone(conn, tenant_id)
    days = target.trial.days if asked.trial_days is None else asked.trial_days
    trial_end = trial_end_of(started_at, days, time_zone)
    if target.trial.needs_method(trial_end, now=act.now):
        await trials.need_method(conn, tenant_id, asked.plan)
    added = AddSubscription(
        tenant=tenant,
        plan=target.name,
        started_at=started_at,
        anchor=anchor_of(asked.anchor, trial_end or started_at, target.interval, time_zone),
        time_zone=time_zone,
        interval=target.interval,
        limits=[],
        quantity=asked.quantity,
        trial_end=trial_end,
    )
    await add_subscriptions(conn, [(new_id(), added)])
    after: JsonObject = {"plan": target.name, "version": target.version, "started_at": started_at.isoformat()}
    await announce(conn, tenant_id, "CreateSubscription", act, before=None, after=after)


@dataclass(frozen=True, slots=True)
class ChangeAsked:
    """What changes about a subscription; what is left out is None or empty, and stays."""

    plan: str = ""
    """Moves to its newest version, and to its billing interval."""
    plan_version_id: UUID | None = None
    """Instead of `plan`: moves to this version, which the subscription had before."""
    quantity: int | None = None
    """Seats."""
    anchor: str = ""
    """What periods are counted from: `start` = when the change is in force, `calendar`, or a date."""
    time_zone: str = ""
    at: str | datetime = NOW
    """`now`, `period_end`, or a time to come."""
    from_plan: str = ""
    """Refused where it is on another plan than this by then."""

    @property
    def names_plan(self) -> bool:
        """Whether the subscription moves to a plan that is named."""
        return bool(self.plan) or self.plan_version_id is not None


async def change_subscription(conn: Connection, tenant_id: UUID, asked: ChangeAsked, *, act: Act) -> None:
    """Move a subscription to a plan's newest version, a number of seats, another anchor or time zone.

    Where interval, anchor or zone change, the running period ends there and the next one goes up to the new count's
    next boundary; both are shares of whole periods. A change of the zone waits until both zones have the same date, so
    that no day is billed twice or to nobody. What was to change later about the same thing is replaced; by a change for
    a time to come nothing is. Raises UnknownNameError: no running subscription, no such plan; InvalidFieldError:
    another interval is scheduled and no plan is named; the time to come has something behind it, or is no such time.
    """
    schedule, instant = await _begin(conn, tenant_id, at=asked.at, act=act)
    before = schedule.era_at(instant)
    if asked.time_zone:
        try:
            instant = same_date_from(instant, before.time_zone, asked.time_zone)
        except ValueError as error:
            raise InvalidFieldError("time_zone", f"can't follow: {error}", value=asked.time_zone) from error
    if asked.at not in {NOW, PERIOD_END}:
        counts = asked.names_plan or bool(asked.anchor or asked.time_zone)
        check_to_come(schedule, instant, now=act.now)
        check_free(schedule, instant, plan=counts, seats=asked.quantity is not None)
    phase = schedule.phase_at(instant)
    plan_version_id, interval = phase.plan_version_id, before.interval
    if asked.from_plan:
        running = (await read_definitions(conn, [plan_version_id]))[plan_version_id].plan.name
        if running != asked.from_plan:
            raise InvalidFieldError("from_plan", f"is not its plan: it is on {running}", value=asked.from_plan)
    if asked.names_plan:
        plan_version_id, interval = await _target(conn, schedule, phase, asked)
    era = _era_of(asked, before, interval, instant)
    if era is not None:
        instant = await _free_of_usage(conn, schedule, era.started_at, asked, act)
        era = _era_of(asked, before, interval, instant)
    if asked.names_plan:
        await _check_unused(conn, schedule, plan_version_id, after=instant)
    await _drop_later(conn, schedule, asked, era, interval=interval, after=instant)
    phase = replace(
        phase,
        starts_at=instant,
        plan_version_id=plan_version_id,
        quantity=phase.quantity if asked.quantity is None else asked.quantity,
    )
    await store.change_later_phases(
        conn,
        schedule,
        after=instant,
        plan_version_id=plan_version_id if asked.names_plan else None,
        quantity=asked.quantity,
    )
    await _put(conn, schedule, phase, "ChangeSubscription", act, era=era)


async def _check_unused(
    conn: Connection, schedule: SubscriptionSchedule, plan_version_id: UUID, *, after: datetime
) -> None:
    """Refuse another plan where a later phase has usage already, by a producer whose clock is ahead."""
    for later in schedule.phases:
        is_other = later.starts_at > after and later.state != CANCELLED and later.plan_version_id != plan_version_id
        if is_other and await has_segments_from(conn, schedule.tenant_id, schedule.subscription_id, later.starts_at):
            at = later.starts_at.isoformat()
            raise InvalidFieldError("plan", f"has usage of {at} on recorded already", remedy=f"change it after {at}")


def _era_of(asked: ChangeAsked, before: Schedule, interval: Interval, instant: datetime) -> Schedule | None:
    """Give what periods are counted by from the change on; None where that stays.

    Another interval is counted from the change where no anchor is named; another zone from the same wall clock time.
    """
    zone = asked.time_zone or before.time_zone
    anchor = before.anchor
    if asked.anchor or interval != before.interval:
        anchor = anchor_of(asked.anchor, instant, interval, zone)
    era = Schedule(anchor=anchor, time_zone=zone, interval=interval, started_at=instant)
    return None if replace(era, started_at=before.started_at) == before else era


async def _free_of_usage(
    conn: Connection, schedule: SubscriptionSchedule, instant: datetime, asked: ChangeAsked, act: Act
) -> datetime:
    """Give when periods may be counted anew: not at a start that was billed ahead, nor before usage of a later one."""
    if instant == schedule.started_at and act.now >= instant:
        return instant + _TICK
    last_end = await last_segment_end(conn, schedule.tenant_id, schedule.subscription_id)
    return instant if asked.at != PERIOD_END or last_end is None else max(instant, last_end)


async def _drop_later(
    conn: Connection,
    schedule: SubscriptionSchedule,
    asked: ChangeAsked,
    era: Schedule | None,
    *,
    interval: Interval,
    after: datetime,
) -> None:
    """Take back scheduled counts of periods that this change replaces."""
    later = [one for one in schedule.eras if one.started_at > after]
    others = [one for one in later if one.interval != interval]
    if era is not None and others and not asked.names_plan:
        raise InvalidFieldError(
            "anchor" if asked.anchor else "time_zone",
            f"can't change: another billing interval is scheduled for {others[0].started_at.isoformat()}",
            remedy="name the plan as well",
        )
    dropped = others if asked.names_plan else []
    await store.drop_eras(conn, schedule, later if era is not None else dropped)


async def _target(
    conn: Connection, schedule: SubscriptionSchedule, phase: Phase, asked: ChangeAsked
) -> tuple[UUID, Interval]:
    """Find the version that was named, or the plan's newest one in the subscription's currency."""
    if asked.plan_version_id is not None:
        named = (await read_definitions(conn, [asked.plan_version_id]))[asked.plan_version_id]
        return asked.plan_version_id, target_from(named.plan.version, named.definition).interval
    running = (await read_definitions(conn, [phase.plan_version_id]))[phase.plan_version_id]
    currency = json.loads(running.definition)["currency"]
    found = await plan_in(conn, schedule.tenant_id, asked.plan, currency)
    return found.plan_version_id, target_from(found.version, found.definition).interval


async def activate_subscription(conn: Connection, tenant_id: UUID, *, act: Act) -> None:
    """End a trial now: fees and prices count from here on, and so do periods that were to be counted from its end.

    Raises UnknownNameError; InvalidFieldError: it is not in a trial.
    """
    schedule, instant = await _begin(conn, tenant_id, at=NOW, act=act)
    phase = schedule.phase_at(instant)
    _need_state(phase, "trialing")
    if instant == schedule.started_at and act.now >= instant:
        instant += _TICK
    era = None
    counted, trial_end = schedule.era_at(instant), trial_end_after(schedule, instant)
    if trial_end is not None and counted.anchor == anchor_of("start", trial_end, counted.interval, counted.time_zone):
        anchor = anchor_of("start", instant, counted.interval, counted.time_zone)
        era = replace(counted, anchor=anchor, started_at=instant)
    await _put(conn, schedule, replace(phase, starts_at=instant, state="active"), "ActivateSubscription", act, era=era)


async def pause_subscription(conn: Connection, tenant_id: UUID, *, at: str | datetime, act: Act) -> None:
    """Pause an active subscription until it is resumed. Raises UnknownNameError; InvalidFieldError: it isn't active."""
    schedule, instant = await _begin(conn, tenant_id, at=at, act=act)
    phase = schedule.phase_at(instant)
    if at not in {NOW, PERIOD_END}:
        check_free(schedule, instant, state=True)
    _need_state(phase, "active")
    await store.change_later_phases(conn, schedule, after=instant, state="paused")
    await _put(conn, schedule, replace(phase, starts_at=instant, state="paused"), "PauseSubscription", act)


async def resume_subscription(conn: Connection, tenant_id: UUID, *, act: Act) -> None:
    """End a pause, or take back an end that is still to come.

    Raises UnknownNameError; InvalidFieldError: it is neither paused nor to end.
    """
    schedule, instant = await _begin(conn, tenant_id, at=NOW, act=act)
    phase = schedule.phase_at(instant)
    if phase.state == "paused":
        await store.change_later_phases(conn, schedule, after=instant, state="active")
        await _put(conn, schedule, replace(phase, starts_at=instant, state="active"), "ResumeSubscription", act)
        return
    if schedule.ended_at is None:
        _need_state(phase, "paused")
    before = [one for one in schedule.phases if one.state != CANCELLED]
    await store.revoke_end(conn, schedule, before[-1])
    await drop_idle(conn, schedule, now=act.now)
    after: JsonObject = {"state": phase.state}
    await announce(conn, tenant_id, "ResumeSubscription", act, before={"ends_at": str(schedule.ended_at)}, after=after)


async def cancel_subscription(conn: Connection, tenant_id: UUID, *, at: str | datetime, act: Act) -> None:
    """End a subscription now, with the running period or at a time to come; what was to change after that is dropped.

    Raises UnknownNameError; InvalidFieldError: no such time.
    """
    schedule, instant = await _begin(conn, tenant_id, at=at, act=act)
    instant = max(instant, schedule.started_at + _TICK)
    phase = schedule.phase_at(instant)
    await store.drop_eras(conn, schedule, [one for one in schedule.eras[1:] if one.started_at >= instant])
    # The end of a trial is kept for `resume`; what else was to change after the end is not.
    kept = trial_end_after(schedule, instant)
    for later in schedule.phases:
        if later.starts_at > instant and later.starts_at != kept:
            await store.drop_phase(conn, schedule, later.starts_at)
    await store.change_later_phases(conn, schedule, after=instant, state=CANCELLED)
    await _put(conn, schedule, replace(phase, starts_at=instant, state=CANCELLED), "CancelSubscription", act)


async def live_subscription(conn: Connection, tenant_id: UUID, *, now: datetime) -> SubscriptionSchedule:
    """Give a tenant's running subscription. Raises UnknownNameError."""
    schedule = await _live(conn, tenant_id, now=now)
    if schedule is None:
        raise UnknownNameError("subscription", str(tenant_id), remedy="subscribe the tenant first")
    return schedule


async def _live(conn: Connection, tenant_id: UUID, *, now: datetime) -> SubscriptionSchedule | None:
    for schedule in await read_schedules(conn, [tenant_id]):
        if schedule.ended_at is None or now < schedule.ended_at:
            return schedule
    return None


async def _begin(
    conn: Connection, tenant_id: UUID, *, at: str | datetime, act: Act
) -> tuple[SubscriptionSchedule, datetime]:
    """Take the tenant alone and find when the change is in force."""
    if isinstance(at, str) and at not in {NOW, PERIOD_END}:
        raise InvalidFieldError("at", "is not known", value=at, bound=f"{NOW}, {PERIOD_END}")
    await lock_tenant(conn, tenant_id)
    await trials.lift(conn, tenant_id, now=act.now)
    schedule = await live_subscription(conn, tenant_id, now=act.now)
    if not isinstance(at, str):
        check_to_come(schedule, at, now=act.now)
        return schedule, at
    instant = max(act.now, schedule.started_at)
    running = schedule.period_at(instant)
    return schedule, running.end if at == PERIOD_END and running is not None else instant


def _need_state(phase: Phase, state: str) -> None:
    if phase.state != state:
        raise InvalidFieldError("tenant", f"its subscription is {phase.state}, not {state}", value=phase.state)


async def _put(
    conn: Connection,
    schedule: SubscriptionSchedule,
    phase: Phase,
    action: str,
    act: Act,
    *,
    era: Schedule | None = None,
) -> None:
    """Put a phase, cut what is open there, and let limits follow where its time has come."""
    before = schedule.phase_at(phase.starts_at)
    is_due = phase.starts_at <= max(act.now, schedule.started_at + _TICK)
    await cut_segments(conn, schedule.tenant_id, schedule.subscription_id, at=phase.starts_at)
    await store.put_phase(conn, schedule, phase, applied=is_due, era=era)
    counted = schedule.era_at(phase.starts_at)
    if is_due:
        await store.follow_phase(conn, schedule, phase, era or counted, now=phase.starts_at)
    await drop_idle(conn, schedule, now=act.now)
    shown = _shown(before, counted), _shown(phase, era or counted)
    await announce(conn, schedule.tenant_id, action, act, before=shown[0], after=shown[1])


async def drop_idle(conn: Connection, schedule: SubscriptionSchedule, *, now: datetime) -> SubscriptionSchedule:
    """Remove phases to come at which nothing changes any more, which would cut periods; give what is left.

    One stays where usage from then on is stamped with it already.
    """
    ids = schedule.tenant_id, schedule.subscription_id
    (found,) = [one for one in await read_schedules(conn, [ids[0]]) if one.subscription_id == ids[1]]
    idle = [at for at in idle_phases(found, now=now) if not await has_segments_from(conn, *ids, at)]
    if not idle:
        return found
    left = replace(found, phases=tuple(one for one in found.phases if one.starts_at not in idle))
    for at in idle:
        await store.drop_phase(conn, found, at)
    for at in idle:
        stretch = left.stretch_at(at - _TICK)
        if stretch is not None:
            await join_segments(conn, *ids, at=at, end=stretch.end)
    return left


def _shown(phase: Phase, era: Schedule) -> JsonObject:
    return {
        "anchor": era.anchor.isoformat(),
        "time_zone": era.time_zone,
        "interval": f"{era.interval.count} {era.interval.unit.value}",
        "from": phase.starts_at.isoformat(),
        "plan_version_id": str(phase.plan_version_id),
        "state": phase.state,
        "quantity": phase.quantity,
    }


async def announce(
    conn: Connection, tenant_id: UUID, action: str, act: Act, *, before: JsonObject | None, after: JsonObject
) -> None:
    """Note a change of a tenant's subscription and let sidecars hear of it; the last of a transaction."""
    await trials.lay(conn, tenant_id, now=act.now)
    entry = AuditEntry(subject="subscription", tenant_id=tenant_id, before=before, after=after)
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action=action, request_id=act.request_id)
    await record_changes(conn, [tenant_id])


async def follow_due_phases(pool: Pool) -> int:
    """Let limits, features and states follow phases whose time has come; give how many tenants changed."""
    async with transaction(pool) as conn:
        due = await store.read_due_tenants(conn, now=await ledger_now(conn), count_max=_DUE_BATCH)
    for tenant_id in due:
        async with transaction(pool) as conn:
            await lock_tenant(conn, tenant_id)
            now = await ledger_now(conn)
            for schedule in await read_schedules(conn, [tenant_id]):
                if schedule.started_at <= now:
                    phase = phase_in_force(schedule, now)
                    await store.follow_phase(conn, schedule, phase, schedule.era_at(now), now=now)
            await record_changes(conn, [tenant_id])
    return len(due)
