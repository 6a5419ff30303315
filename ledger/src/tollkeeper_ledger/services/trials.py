"""Let ends of trials follow payment methods, and tell of them.

What a subscription will be after its trial is written down beforehand, as phases: with a payment method as it was
asked for, without one as its plan says. So the end itself decides nothing, and whoever bills late bills the same.
Whatever changes a subscription lifts that first and lays it again afterwards, in its own transaction.
"""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID

from tollkeeper_ledger.domain.alerts import Figure
from tollkeeper_ledger.domain.catalogue.canonical import list_plan
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.trials import BILL, FALLBACK, NEEDS_METHOD, terms_from, trial_to_end, without_method
from tollkeeper_ledger.services.alerting import tell
from tollkeeper_ledger.services.plan_choice import plan_in
from tollkeeper_ledger.store import subscriptions
from tollkeeper_ledger.store import trials as store
from tollkeeper_ledger.store.billing_closes import read_definitions
from tollkeeper_ledger.store.billing_segments import cut_segments, has_segments_from, read_schedules
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.tenant_locks import TENANTS_EACH_MAX, lock_tenants

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from tollkeeper_ledger.domain.phases import Phase, SubscriptionSchedule
    from tollkeeper_ledger.store.alerts import Alert
    from tollkeeper_ledger.store.billing_closes import PlanDefinition
    from tollkeeper_ledger.store.pool import Connection, Pool

ACTOR = "trials"
_AT_ONCE = 100
_DAY = timedelta(days=1)


async def need_method(conn: Connection, tenant_id: UUID, plan: str) -> None:
    """Raise InvalidFieldError where who pays for a tenant has no payment method."""
    if not await store.has_method(conn, tenant_id):
        raise InvalidFieldError(
            "plan",
            NEEDS_METHOD,
            value=plan,
            remedy="have the payer enter a card, or say what was agreed by `payment set-profile --pays-by`",
        )


async def lift(conn: Connection, tenant_id: UUID, *, now: datetime) -> None:
    """Let phases after a trial be as if its payer had a payment method. The tenant is locked, and `lay` follows.

    Usage after the end that is recorded already keeps them as they are.
    """
    displaced = await store.read_displaced(conn, tenant_id)
    for schedule in await read_schedules(conn, [tenant_id]) if displaced else ():
        phases = displaced.get(schedule.subscription_id, [])
        ids = tenant_id, schedule.subscription_id
        if phases and phases[0].starts_at > now and not await has_segments_from(conn, *ids, phases[0].starts_at):
            await _put(conn, schedule, phases)
        if phases:
            await store.keep(conn, *ids)


async def lay(conn: Connection, tenant_id: UUID, *, now: datetime) -> bool | None:
    """Write down what a tenant's subscription is after its trial, and when that is told of; the tenant is locked.

    Gives whether the payer has a payment method, None where nothing depends on it. Usage after the end that is recorded
    already (by a producer whose clock is ahead) keeps the end as it was.
    """
    for schedule in await read_schedules(conn, [tenant_id]):
        ids = tenant_id, schedule.subscription_id
        if schedule.ended_at is not None and schedule.ended_at <= now:
            await store.keep(conn, *ids)
            continue
        ending = trial_to_end(schedule, now)
        if ending is None:
            await store.keep(conn, *ids)
            return None
        after = ending[1]
        plan = await _plan_of(conn, after)
        terms = terms_from(plan.definition)
        notice_at = terms.notice_at(after.starts_at)
        has_method = not terms.asks or await store.has_method(conn, tenant_id)
        if has_method or await has_segments_from(conn, *ids, after.starts_at):
            # Without one its end is settled by that usage: nothing depends on a payment method any more.
            asks = terms.asks and has_method
            await store.keep(conn, *ids, asks=asks, notice_at=notice_at)
            return True if asks else None
        fallback_id = None
        if terms.otherwise == FALLBACK:
            currency = json.loads(plan.definition)["currency"]
            fallback_id = (await plan_in(conn, tenant_id, terms.fallback_plan, currency)).plan_version_id
        displaced = [phase for phase in schedule.phases if phase.starts_at >= after.starts_at]
        await _put(conn, schedule, without_method(displaced, terms, fallback_id=fallback_id))
        await store.keep(conn, *ids, asks=True, displaced=displaced, notice_at=notice_at)
        return False
    return None


async def _plan_of(conn: Connection, phase: Phase) -> PlanDefinition:
    return (await read_definitions(conn, [phase.plan_version_id]))[phase.plan_version_id]


async def _put(conn: Connection, schedule: SubscriptionSchedule, phases: Sequence[Phase]) -> None:
    await cut_segments(conn, schedule.tenant_id, schedule.subscription_id, at=phases[0].starts_at)
    for phase in phases:
        await subscriptions.put_phase(conn, schedule, phase, applied=False)


async def lock_trials_of(conn: Connection, payer_id: UUID | None) -> list[UUID]:
    """Lock the tenants whose trials depend on a payer's payment method, before it changes; give them.

    Those beyond what one transaction may lock follow within a second, by `follow_astray`.
    """
    tenant_ids = [] if payer_id is None else (await store.tenants_of_payer(conn, payer_id))[:TENANTS_EACH_MAX]
    await lock_tenants(conn, tenant_ids)
    return tenant_ids


async def follow_methods(conn: Connection, tenant_ids: Sequence[UUID]) -> None:
    """Let trials of locked tenants follow what their payers have now."""
    now = await ledger_now(conn)
    for tenant_id in tenant_ids:
        await lift(conn, tenant_id, now=now)
        has_method = await lay(conn, tenant_id, now=now)
        if has_method is not None:
            entry = AuditEntry(
                subject="trial", tenant_id=tenant_id, before=None, after={"has_payment_method": has_method}
            )
            await add_audit(conn, [entry], now=now, actor=ACTOR, action="FollowPaymentMethod", request_id="")


async def follow_astray(pool: Pool) -> int:
    """Let trials follow that something else than their payer's own change has led astray; give how many.

    A tenant that can't follow holds up no other: all are tried, then its error is raised.
    """
    followed, after = 0, UUID(int=0)
    problem: Exception | None = None
    while True:
        async with transaction(pool) as conn:
            tenant_ids = await store.read_astray(conn, after=after, count_max=_AT_ONCE)
        for tenant_id in tenant_ids:
            try:
                async with transaction(pool) as conn:
                    await lock_tenants(conn, [tenant_id])
                    await follow_methods(conn, [tenant_id])
                followed += 1
            except Exception as error:  # noqa: BLE001 - raised once all were tried
                problem = problem or error
        if len(tenant_ids) < _AT_ONCE:
            break
        after = tenant_ids[-1]
    if problem is not None:
        raise problem
    return followed


async def tell_of_ends(pool: Pool) -> list[Alert]:
    """Tell of trials that end soon, by mail and webhook, once per end; give what was told."""
    async with transaction(pool) as conn:
        now = await ledger_now(conn)
        due = await store.take_due(conn, now=now, count_max=_AT_ONCE)
        schedules = {one.subscription_id: one for one in await read_schedules(conn, sorted({ids[0] for ids in due}))}
        found = [await _figure(conn, schedules[subscription_id], now=now) for _, subscription_id in due]
        return await tell(conn, [one for one in found if one is not None], now=now)


async def _figure(conn: Connection, schedule: SubscriptionSchedule, *, now: datetime) -> Figure | None:
    """Give how far a trial is, in days of its length; None where none ends, or that was told of."""
    displaced = (await store.read_displaced(conn, schedule.tenant_id)).get(schedule.subscription_id, [])
    ending = trial_to_end(schedule, now)
    after = displaced[0] if displaced else None if ending is None else ending[1]
    if after is None or after.starts_at <= now:
        return None
    span = f"{schedule.subscription_id}/{after.starts_at.isoformat()}"
    if await store.is_told(conn, schedule.tenant_id, span):
        return None
    found = await _plan_of(conn, after)
    terms = terms_from(found.definition)
    days = (after.starts_at - schedule.started_at + _DAY / 2) // _DAY
    told = max(days - terms.notice_days, 0)
    return Figure(
        tenant_id=schedule.tenant_id,
        kind="trial",
        subject=list_plan(found.plan.name),
        span=span,
        starts_at=schedule.started_at,
        ends_at=after.starts_at,
        base=Decimal(days),
        value=Decimal(told),
        at=(str(told),),
        key_values=tuple(filter(None, (terms.otherwise, terms.fallback_plan))) if displaced else (BILL,),
    )
