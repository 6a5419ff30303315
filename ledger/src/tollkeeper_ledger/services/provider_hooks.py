"""Add jobs at a provider in the transaction that makes them necessary."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.provider_work import STEPS
from tollkeeper_ledger.store.provider_jobs import (
    NewJob,
    add_jobs,
    read_collect_job,
    refundable_minor,
    wake_collect_job,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.billing_profile import BillingProfile
    from tollkeeper_ledger.domain.receivable import Receivable
    from tollkeeper_ledger.store.money import Billed
    from tollkeeper_ledger.store.pool import Connection

_AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)


async def collect(
    conn: Connection, booked: Sequence[tuple[Billed, Receivable]], profiles: Mapping[UUID, BillingProfile]
) -> None:
    """Have new invoices collected, where their payers pay through a provider and something is due."""
    jobs = []
    for billed, receivable in booked:
        provider = profiles[billed.account.payer_id].provider
        if provider != "manual" and receivable.due_minor > 0:
            jobs.append(_job(billed, "collect", receivable.due_minor, provider=provider))
    await add_jobs(conn, jobs, now=_AT_ONCE)


async def follow(
    conn: Connection, billed: Billed, kind: str, amount_minor: int, *, subject_id: UUID | None = None
) -> bool:
    """Have the provider follow what happened to an invoice that it collects; False where it collects none."""
    collected = await read_collect_job(conn, billed.invoice_id)
    if collected is None or amount_minor <= 0:
        return False
    job = _job(billed, kind, amount_minor, provider=collected.provider, subject_id=subject_id)
    await add_jobs(conn, [job], now=_AT_ONCE)
    return True


async def follow_payment(conn: Connection, billed: Billed, after: Receivable, paid_minor: int, payment: UUID) -> None:
    """Have the provider, where it collects an invoice, collect no more than what is left after a payment elsewhere."""
    if after.open_minor > 0:
        # So all that was paid is off what is due.
        await follow(conn, billed, "credit", paid_minor, subject_id=payment)
    else:
        await wake_collect_job(conn, billed.invoice_id, now=_AT_ONCE)


async def through_provider(conn: Connection, billed: Billed, amount_minor: int) -> int:
    """Give how much of an amount can be sent back through the provider that collected the invoice."""
    collected = await read_collect_job(conn, billed.invoice_id)
    if collected is None:
        return 0
    return min(amount_minor, await refundable_minor(conn, billed.invoice_id, provider=collected.provider))


def _job(billed: Billed, kind: str, amount_minor: int, *, provider: str, subject_id: UUID | None = None) -> NewJob:
    return NewJob(
        tenant_id=billed.account.payer_id,
        job_id=uuid.uuid4(),
        provider=provider,
        kind=kind,
        invoice_id=billed.invoice_id,
        subject_id=subject_id,
        amount_minor=amount_minor,
        step=STEPS[kind][0],
    )
