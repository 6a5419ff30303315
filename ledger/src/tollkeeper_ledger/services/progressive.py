"""Invoice usage within its period, whenever what is not yet invoiced reaches the plan's threshold.

A cut parts the period's open segments and keeps their sums as a close of its own, so its invoice rests on usage that
never changes. It charges usage alone, by prices for all of the period so far, less what earlier cuts said; the period's
own close does the same with everything. Together they say what one invoice would have said, tax included.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.invoice import (
    CloseInputs,
    Finalised,
    digests_named,
    inputs_to_bytes,
    make_document,
)
from tollkeeper_ledger.domain.money import Currency, parse_decimal, round_line
from tollkeeper_ledger.services.billing_facts import OPENING, cut_facts, read_plans_of
from tollkeeper_ledger.services.invoices_close import Closed, UnbillableError, empty_inputs, find_schedule, keep
from tollkeeper_ledger.services.period_usage import read_period_usage
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.billing_cuts import part_segments, read_progressive, was_cut
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
        except (UnbillableError, _NotPassedError, ValueError):
            continue


class _NotPassedError(Exception):
    """Say that somebody else was faster; whoever catches it rolls the cut back."""


async def _cut(conn: Connection, tenant_id: UUID, subscription_id: UUID) -> Closed:
    """Cut a subscription's running period at this moment.

    `conn` is in a transaction of the billing role. It waits for running appends of the tenant and holds off later ones
    until it commits; what comes then belongs to the next part. Raises _NotPassedError; UnbillableError: no invoice can
    be made of it.
    """
    await lock_tenant(conn, tenant_id)
    inputs = await _passed(conn, tenant_id, subscription_id, is_meant=_is_parted, parts=True)
    if inputs is None:
        raise _NotPassedError
    at = inputs.closed_at
    return await keep(conn, closes.CloseKey(tenant_id, subscription_id, at - OPENING), inputs, at=at, period_end=at)


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
) -> CloseInputs | None:
    """Give the inputs of a cut at this moment where the plan's threshold is passed; `parts`: cut the segments first."""
    schedule = await find_schedule(conn, tenant_id, subscription_id)
    if schedule is None:
        return None
    now = await ledger_now(conn)
    period = next(schedule.open_periods())
    # An earlier period that is still open takes its share of grants first.
    if not period.start + OPENING < now < period.end or await was_cut(conn, tenant_id, subscription_id, now):
        return None
    found = await read_plans_of(conn, schedule)
    plan = json.loads(found.plans[schedule.plan_version_at(now)].definition)
    if "progressive_threshold" not in plan:
        return None
    facts = await cut_facts(conn, found, period, at=now)
    if parts:
        await part_segments(conn, tenant_id, subscription_id, start=period.start, at=now)
    segments, _ = await read_period_usage(conn, found, facts.period, is_meant=is_meant)
    inputs = replace(await empty_inputs(conn, found, facts, at=now), segments=segments, items=())
    threshold_minor = round_line(parse_decimal(plan["progressive_threshold"]), Currency.from_code(plan["currency"]))
    document = await _document(conn, inputs)
    return inputs if 0 < threshold_minor <= document["lines_minor"] - document["discount_minor"] else None


async def _document(conn: Connection, found: CloseInputs) -> dict[str, Any]:
    inputs = inputs_to_bytes(found)
    definitions = await closes.read_definitions_by_digest(conn, digests_named(inputs))
    return make_document(inputs, definitions, Finalised(invoice_id=None, number=None, at=None))
