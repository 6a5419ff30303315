"""What follows a payment that failed: try again on the payer's days, then do what its profile says."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from tollkeeper_ledger.domain import receivable as owed
from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.services.mail_queue import queue
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.pdf.mail_texts import LAST_TRY
from tollkeeper_ledger.services.receivables import change_receivable, need_billed
from tollkeeper_ledger.services.subscription_changes import ChangeAsked, change_subscription, live_subscription
from tollkeeper_ledger.services.tenants import set_tenant_state
from tollkeeper_ledger.store import provider_jobs as jobs

if TYPE_CHECKING:
    from datetime import datetime

    from tollkeeper_ledger.store.money import Billed
    from tollkeeper_ledger.store.pool import Connection, Row
    from tollkeeper_ledger.store.provider_jobs import Job

ACTOR = "dunning"
_FROM, _TO = "fallen_from", "fallen_to"
"""Facts of a job: plan versions that its payer's tenant was moved from and to."""
UNMOVED = "not_moved"
"""Fact of a job whose tenant is still to be moved: it could not be when the last try failed."""
_MOVES_AGAIN = timedelta(hours=1)
_NOT_MOVED = "; not moved to "


async def payment_failed(
    conn: Connection, job: Job, row: Row, *, problem: str, now: datetime, ledger_time: datetime
) -> None:
    """Note a failed payment: the next try is so many days after the first failure; after the last, the policy.

    Afterwards the job waits: money that comes all the same, or a new card, still settles it. One whose tenant can't be
    moved to the fallback plan now is taken up each hour until it can.
    """
    first = job.failed_at or now
    failures = job.failures + 1
    days = row["dunning_days"]
    after = replace(job, failures=failures, failed_at=first, error=problem, tries=0)
    billed = await need_billed(conn, job.invoice_id)
    await change_receivable(conn, billed, owed.past_due, subject=billed.number, now=ledger_time)
    is_last = failures > len(days)
    await queue(conn, billed, "payment_failed", stage=f"{failures}/{LAST_TRY}" if is_last else str(failures))
    if not is_last:
        await jobs.save_job(conn, replace(after, next_at=first + timedelta(days=days[failures - 1])))
        return
    facts = {name: fact for name, fact in after.facts.items() if name != UNMOVED}
    if row["dunning_policy"] == "suspend":
        await _set_state(conn, job.tenant_id, "suspended", now=ledger_time)
        facts["suspended"] = "yes"
    elif row["dunning_policy"] == "fallback":
        after = replace(after, facts=facts)
        await jobs.save_job(conn, await _fall_back(conn, after, billed, row, now=now, ledger_time=ledger_time))
        return
    elif row["dunning_policy"] == "uncollectible":
        await change_receivable(conn, billed, owed.write_off, subject=billed.number, now=ledger_time)
    await jobs.save_job(conn, replace(after, state="waiting", facts=facts))


async def fall_back_again(conn: Connection, job: Job, row: Row, *, now: datetime, ledger_time: datetime) -> None:
    """Move a tenant that could not be moved when its payer's last try failed; nothing where the policy is another now.

    The job waits afterwards, or is taken up again in an hour. The tenant and its payer's account are locked.
    """
    billed = await need_billed(conn, job.invoice_id)
    facts = {name: fact for name, fact in job.facts.items() if name != UNMOVED}
    after = replace(job, state="waiting", facts=facts, error=job.error.partition(_NOT_MOVED)[0])
    if row["dunning_policy"] == "fallback":
        after = await _fall_back(conn, after, billed, row, now=now, ledger_time=ledger_time)
    await jobs.save_job(conn, after)


async def _fall_back(
    conn: Connection, job: Job, billed: Billed, row: Row, *, now: datetime, ledger_time: datetime
) -> Job:
    """Move the invoice's tenant to the fallback plan at once, and give its job as it is to be kept.

    It keeps the plan versions that the tenant was moved from and to, unless it was there already, and why it can't be
    moved.
    """
    act = Act(actor=ACTOR, request_id=f"dunning/{billed.number}", now=ledger_time)
    facts = dict(job.facts)
    try:
        before = await _plan_now(conn, billed, ledger_time)
    except UnknownNameError as error:
        # It has no running subscription any more: there is nothing to move.
        return replace(job, state="waiting", error=f"{job.error}{_NOT_MOVED}{row['fallback_plan']}: {error}")
    try:
        async with conn.transaction():
            await change_subscription(conn, billed.tenant_id, ChangeAsked(plan=row["fallback_plan"]), act=act)
    except (UnknownNameError, InvalidFieldError) as error:
        return replace(
            job,
            state="ready",
            next_at=now + _MOVES_AGAIN,
            facts={**facts, UNMOVED: "yes"},
            error=f"{job.error}{_NOT_MOVED}{row['fallback_plan']}: {error}",
        )
    after = await _plan_now(conn, billed, ledger_time)
    moved = {} if before == after else {_FROM: str(before), _TO: str(after)}
    return replace(job, state="waiting", facts=facts | moved)


async def _plan_now(conn: Connection, billed: Billed, now: datetime) -> UUID:
    schedule = await live_subscription(conn, billed.tenant_id, now=now)
    return schedule.plan_version_at(max(now, schedule.started_at))


async def move_back(conn: Connection, job: Job, billed: Billed, facts: dict[str, str], *, now: datetime) -> None:
    """Move a tenant back to the plan that it had before payments failed; its invoice is paid or void now.

    Takes what was kept of the move out of `facts`. Where another invoice of the tenant is still unpaid after its last
    try, that one moves it back; where somebody has moved it since, it stays. The tenant should be locked before.
    """
    before, fallback = facts.pop(_FROM, ""), facts.pop(_TO, "")
    if not before:
        return
    other = await jobs.other_failed(conn, job, billed.tenant_id)
    if other is not None:
        await jobs.save_job(conn, replace(other, facts={**other.facts, _FROM: before, _TO: fallback}))
        return
    try:
        if str(await _plan_now(conn, billed, now)) == fallback:
            act = Act(actor=ACTOR, request_id=f"dunning/{billed.number}/paid", now=now)
            async with conn.transaction():
                await change_subscription(conn, billed.tenant_id, ChangeAsked(plan_version_id=UUID(before)), act=act)
    except (UnknownNameError, InvalidFieldError):
        # It has no running subscription any more, or another change is under way: an operator's word stands.
        return


async def lift_suspension(conn: Connection, job: Job, *, now: datetime) -> None:
    """Reactivate a payer that dunning suspended for a job's invoice, unless it was for another one too that is unpaid.

    That one lifts it when it is paid. The payer's account is locked.
    """
    if not await jobs.is_unpaid_elsewhere(conn, job):
        await _set_state(conn, job.tenant_id, "active", now=now)


async def _set_state(conn: Connection, tenant_id: UUID, state: str, *, now: datetime) -> None:
    act = Act(actor=ACTOR, request_id="dunning", now=now)
    await set_tenant_state(conn, tenant_id, state=state, act=act)
