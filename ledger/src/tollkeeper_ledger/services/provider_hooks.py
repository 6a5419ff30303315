"""Add jobs at a provider in the transaction that makes them necessary."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.provider_work import STEPS
from tollkeeper_ledger.store.billing_profiles import read_profile
from tollkeeper_ledger.store.provider_jobs import NewJob, add_job, read_collect_job

if TYPE_CHECKING:
    from uuid import UUID

    from tollkeeper_ledger.domain.receivable import Receivable
    from tollkeeper_ledger.store.money import Billed
    from tollkeeper_ledger.store.pool import Connection

_AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)


async def collect(conn: Connection, billed: Billed, receivable: Receivable) -> None:
    """Have a new invoice collected, where its payer pays through a provider and something is due."""
    profile = await read_profile(conn, billed.account.payer_id)
    if profile.provider != "manual" and receivable.due_minor > 0:
        await _add(conn, billed, "collect", receivable.due_minor, provider=profile.provider)


async def follow(
    conn: Connection, billed: Billed, kind: str, amount_minor: int, *, subject_id: UUID | None = None
) -> bool:
    """Have the provider follow what happened to an invoice that it collects; False where it collects none."""
    collected = await read_collect_job(conn, billed.invoice_id)
    if collected is None or amount_minor <= 0:
        return False
    await _add(conn, billed, kind, amount_minor, provider=collected.provider, subject_id=subject_id)
    return True


async def _add(
    conn: Connection, billed: Billed, kind: str, amount_minor: int, *, provider: str, subject_id: UUID | None = None
) -> None:
    job = NewJob(
        tenant_id=billed.account.payer_id,
        job_id=uuid.uuid4(),
        kind=kind,
        invoice_id=billed.invoice_id,
        subject_id=subject_id,
        amount_minor=amount_minor,
        step=STEPS[kind][0],
    )
    await add_job(conn, job, provider=provider, now=_AT_ONCE)
