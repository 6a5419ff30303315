"""Take in what the provider says of invoices and refunds, as it was read there; state only moves forward."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain import receivable as owed
from tollkeeper_ledger.services.dunning import UNMOVED, lift_suspension, move_back
from tollkeeper_ledger.services.receivables import change_receivable, need_billed, record_payment
from tollkeeper_ledger.store import money
from tollkeeper_ledger.store import provider_jobs as jobs
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from uuid import UUID

    from tollkeeper_ledger.store.money import Billed
    from tollkeeper_ledger.store.pool import Connection
    from tollkeeper_ledger.store.provider_jobs import Job

_UNDER_WAY = ("draft", "open")


async def apply_invoice(conn: Connection, invoice_id: UUID, said: dict[str, Any], *, provider: str) -> int:
    """Record what was paid at the provider and not recorded yet; give how much that is, in minor units.

    The provider's sum only grows, so a late or repeated answer records nothing.
    """
    waiting = await jobs.read_collect_job(conn, invoice_id)
    paid = 0 if said.get("paid_out_of_band") else int(said.get("amount_paid") or 0)
    if paid == 0 and said.get("status") in _UNDER_WAY:
        # No money came and nothing ended, so no account is kept from others for it.
        if waiting is not None and _told(waiting, said) != waiting.facts:
            job = await jobs.lock_job(conn, waiting)
            await jobs.save_job(conn, replace(job, facts=_told(job, said)))
        return 0
    billed = await need_billed(conn, invoice_id)
    if waiting is not None and waiting.failures:
        # Late money may move the tenant back to its plan; tenants are locked before accounts.
        await lock_tenant(conn, billed.tenant_id)
    await money.lock_account(conn, billed.account)
    missing = paid - await jobs.recorded_minor(conn, invoice_id, provider=provider)
    if missing > 0:
        await record_payment(
            conn,
            billed,
            provider=provider,
            reference=f"{said['id']}/{paid}",
            amount_minor=missing,
            now=await ledger_now(conn),
        )
    if waiting is not None:
        await _finish(conn, waiting, billed, said)
    return max(0, missing)


def _told(job: Job, said: dict[str, Any]) -> dict[str, str]:
    """Give a job's facts with those that the answer tells."""
    facts = dict(job.facts)
    if isinstance(said.get("payment_intent"), str):
        facts["payment"] = said["payment_intent"]
    if said.get("hosted_invoice_url"):
        facts["pay_url"] = str(said["hosted_invoice_url"])
    return facts


async def _finish(conn: Connection, job: Job, billed: Billed, said: dict[str, Any]) -> None:
    """Keep what the answer tells, and end the job where the provider has nothing more to collect."""
    job = await jobs.lock_job(conn, job)
    facts = _told(job, said)
    is_over = said.get("status") in ("paid", "void") and job.step == "pay"
    if is_over and facts.pop("suspended", ""):
        await lift_suspension(conn, job, now=await ledger_now(conn))
    if is_over:
        facts.pop(UNMOVED, "")
        await move_back(conn, job, billed, facts, now=await ledger_now(conn))
    await jobs.save_job(conn, replace(job, facts=facts, state="done" if is_over else job.state))


async def refund_ended(conn: Connection, refund_id: UUID, *, state: str) -> None:
    """End a refund, once; a failed one goes back into the payer's balance."""
    ended = await jobs.end_refund(conn, refund_id, state=state)
    if ended is not None and state == "failed":
        billed = await need_billed(conn, ended[0])
        await change_receivable(
            conn,
            billed,
            lambda before: owed.undo_refund(before, ended[1]),
            subject=f"refund/{refund_id}",
            now=await ledger_now(conn),
        )


async def refund_said(conn: Connection, refund_id: UUID, said: dict[str, Any]) -> None:
    """Take in what the provider says of a refund; while it is under way there, it stays pending."""
    state = {"succeeded": "succeeded", "failed": "failed", "canceled": "failed"}.get(str(said.get("status")))
    if state is not None:
        await refund_ended(conn, refund_id, state=state)
