"""Invoice usage within its period, whenever what is not yet invoiced reaches the plan's threshold.

A cut parts the period's open segments and keeps their sums as a close of its own, so its invoice rests on usage that
never changes. It charges usage alone, by prices for all of the period so far, less what earlier cuts said; the period's
own close does the same with everything. Together they say what one invoice would have said, tax included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.invoice import digests_named, inputs_to_bytes, rate_and_sum
from tollkeeper_ledger.domain.money import Currency, parse_decimal, round_line
from tollkeeper_ledger.services.billing_facts import OPENING, read_plans_of
from tollkeeper_ledger.services.close_inputs import PeriodAsked, gather
from tollkeeper_ledger.services.invoices_close import Closed, keep
from tollkeeper_ledger.store.billing_closes import read_definitions_by_digest
from tollkeeper_ledger.store.billing_cuts import part_segments, read_progressive, was_cut
from tollkeeper_ledger.store.billing_segments import read_schedules
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from uuid import UUID

    from tollkeeper_ledger.store.billing_closes import PeriodSegment
    from tollkeeper_ledger.store.pool import Connection, Pool


async def cut_passed(pool: Pool, *, only: str | None) -> AsyncIterator[Closed]:
    """Cut every running period whose threshold is passed, and give the closes that invoices are to be made of.

    Safe to stop at any point, to repeat, and to run twice at once: a cut is one transaction that has the tenant alone
    and looks again. What can't be billed is left to the period's own close, which names it.
    """
    async with transaction(pool) as conn:
        subscriptions = await read_progressive(conn, now=await ledger_now(conn), only=only)
    for tenant_id, subscription_id, _ in subscriptions:
        try:
            # Looked at without a lock first: appends of the tenant wait only where there is something to bill.
            async with transaction(pool) as conn:
                is_passed = await _passed(conn, tenant_id, subscription_id, is_meant=_is_own) is not None
            if is_passed:
                async with transaction(pool) as conn:
                    made = await _cut(conn, tenant_id, subscription_id)
                yield made
        except (_NotCutError, ValueError):
            continue


class _NotCutError(Exception):
    """Say that somebody else was faster, or that no invoice can be made; whoever catches it rolls the cut back."""


async def _cut(conn: Connection, tenant_id: UUID, subscription_id: UUID) -> Closed:
    """Cut a subscription's running period at this moment.

    `conn` is in a transaction of the billing role. It waits for running appends of the tenant and holds off later ones
    until it commits; what comes then belongs to the next part. Raises _NotCutError.
    """
    await lock_tenant(conn, tenant_id)
    asked = await _passed(conn, tenant_id, subscription_id, is_meant=_is_parted, parts=True)
    if asked is None or asked.cut_at is None:
        raise _NotCutError
    outcome = (await keep(conn, [asked], at=asked.cut_at))[subscription_id]
    if not isinstance(outcome, Closed):
        raise _NotCutError
    return outcome


def _is_own(segment: PeriodSegment) -> bool:
    """Whether usage is of the period itself; late usage of earlier ones waits for the period's own close."""
    return segment.late_for is None


def _is_parted(segment: PeriodSegment) -> bool:
    return segment.late_for is None and segment.is_parted


async def _passed(
    conn: Connection,
    tenant_id: UUID,
    subscription_id: UUID,
    *,
    is_meant: Callable[[PeriodSegment], bool],
    parts: bool = False,
) -> PeriodAsked | None:
    """Give a cut at this moment where the plan's threshold is passed; `parts`: cut the segments first."""
    schedules = {one.subscription_id: one for one in await read_schedules(conn, [tenant_id]) if one.is_open}
    schedule = schedules.get(subscription_id)
    if schedule is None:
        return None
    now = await ledger_now(conn)
    period = next(schedule.open_periods())
    # An earlier period that is still open takes its share of grants first.
    if not period.start + OPENING < now < period.end or await was_cut(conn, tenant_id, subscription_id, now):
        return None
    found = (await read_plans_of(conn, [schedule]))[subscription_id]
    plan = found.terms_at(now)
    if "progressive_threshold" not in plan:
        return None
    asked = PeriodAsked(found, period, cut_at=now, is_meant=is_meant)
    if parts:
        await part_segments(conn, tenant_id, subscription_id, start=period.start, at=now)
    gathered = (await gather(conn, [asked], at=now))[subscription_id]
    if isinstance(gathered, ValueError):
        raise gathered
    threshold_minor = round_line(parse_decimal(plan["progressive_threshold"]), Currency.from_code(plan["currency"]))
    inputs = inputs_to_bytes(gathered.inputs)
    sums = rate_and_sum(inputs, await read_definitions_by_digest(conn, digests_named(inputs))).sums
    return asked if 0 < threshold_minor <= sums["lines_minor"] - sums["discount_minor"] else None
