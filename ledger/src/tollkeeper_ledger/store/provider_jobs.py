"""Jobs at payment providers, their frozen requests, events, and who payers are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection, Row


@dataclass(frozen=True, slots=True)
class Job:
    """Where a job is."""

    tenant_id: UUID
    job_id: UUID
    provider: str
    kind: str
    invoice_id: UUID
    subject_id: UUID | None
    amount_minor: int
    step: str
    state: str
    next_at: datetime
    tries: int
    failures: int
    failed_at: datetime | None
    facts: Mapping[str, str]
    error: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a step: its exact bytes, and what it was answered."""

    attempt: int
    method: str
    path: str
    body: bytes
    idempotency_key: str
    frozen_at: datetime
    status: int | None


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to add."""

    tenant_id: UUID
    job_id: UUID
    provider: str
    kind: str
    invoice_id: UUID
    subject_id: UUID | None
    amount_minor: int
    step: str


async def add_jobs(conn: Connection, jobs: Sequence[NewJob], *, now: datetime) -> None:
    """Add jobs; nothing where one exists."""
    if jobs:
        await conn.execute(
            sql("providers.add_jobs"),
            now,
            [job.tenant_id for job in jobs],
            [job.job_id for job in jobs],
            [job.provider for job in jobs],
            [job.kind for job in jobs],
            [job.invoice_id for job in jobs],
            [job.subject_id for job in jobs],
            [job.amount_minor for job in jobs],
            [job.step for job in jobs],
        )


def _job(row: Row) -> Job:
    return Job(**row)


async def claim_job(conn: Connection, *, now: datetime) -> Job | None:
    """Take the job that waits longest, for two minutes; None where none is ready."""
    row = await conn.fetchrow(sql("providers.claim_job"), now)
    return None if row is None else _job(row)


async def lock_job(conn: Connection, job: Job) -> Job:
    """Lock a job until the transaction ends and read it anew."""
    row = await conn.fetchrow(sql("providers.lock_job"), job.tenant_id, job.job_id)
    if row is None:
        raise RuntimeError(f"job {job.job_id} is gone")
    return _job(row)


async def read_work(conn: Connection, job: Job) -> Row:
    """Read what a job's requests are made of."""
    row = await conn.fetchrow(sql("providers.work"), job.tenant_id, job.job_id)
    if row is None:
        raise RuntimeError(f"job {job.job_id} is gone")
    return row


async def save_job(conn: Connection, job: Job) -> None:
    """Keep where a job is."""
    await conn.execute(
        sql("providers.save_job"),
        job.tenant_id,
        job.job_id,
        job.step,
        job.state,
        job.next_at,
        job.tries,
        job.failures,
        job.failed_at,
        dict(job.facts),
        job.error,
    )


async def last_attempt(conn: Connection, job: Job, step: str) -> Attempt | None:
    """Read the newest attempt of a step."""
    row = await conn.fetchrow(sql("providers.last_request"), job.tenant_id, job.job_id, step)
    if row is None:
        return None
    return Attempt(
        attempt=row["attempt"],
        method=row["method"],
        path=row["path"],
        body=row["body"],
        idempotency_key=row["idempotency_key"],
        frozen_at=row["frozen_at"],
        status=row["status"],
    )


async def add_attempt(conn: Connection, job: Job, step: str, attempt: Attempt) -> None:
    """Freeze an attempt."""
    await conn.execute(
        sql("providers.add_request"),
        job.tenant_id,
        job.job_id,
        step,
        attempt.attempt,
        attempt.method,
        attempt.path,
        attempt.body,
        attempt.idempotency_key,
        attempt.frozen_at,
    )


async def answer_attempt(conn: Connection, job: Job, step: str, attempt: int, *, status: int, body: bytes) -> None:
    """Keep what an attempt was answered."""
    await conn.execute(sql("providers.answer_request"), job.tenant_id, job.job_id, step, attempt, status, body)


async def put_customer(conn: Connection, payer_id: UUID, *, provider: str, customer: str, now: datetime) -> None:
    """Keep who a payer is at a provider; the first one stays."""
    await conn.execute(sql("providers.put_customer"), payer_id, provider, customer, now)


async def put_method(
    conn: Connection, *, provider: str, customer: str, method: str, label: str, expires: date | None, now: datetime
) -> None:
    """Keep a payer's payment method and, where it is another or a renewed one, wake the jobs that wait for that."""
    await conn.execute(sql("providers.put_method"), provider, customer, method, label, expires, now)


async def find_payer(conn: Connection, *, provider: str, customer: str) -> UUID | None:
    """Find the payer who is a customer at a provider; None where nobody is."""
    found: UUID | None = await conn.fetchval(sql("providers.payer"), provider, customer)
    return found


async def lock_customer(conn: Connection, *, provider: str, customer: str) -> bool:
    """Lock who a customer at a provider is until the transaction ends; False where nobody is."""
    return await conn.fetchval(sql("providers.lock_customer"), provider, customer) is not None


async def customer_of_method(conn: Connection, method: str, *, provider: str) -> str:
    """Find the customer who is charged by a method; empty where nobody is."""
    found: str | None = await conn.fetchval(sql("providers.customer_of_method"), provider, method)
    return found or ""


async def hold_method(conn: Connection, payer_id: UUID, *, provider: str) -> str:
    """Read what a payer is charged by and keep it so until the transaction ends; empty = nothing."""
    found: str | None = await conn.fetchval(sql("providers.hold_method"), payer_id, provider)
    return found or ""


async def read_account(conn: Connection, payer_id: UUID, *, provider: str) -> Row | None:
    """Read who a payer is at a provider."""
    return await conn.fetchrow(sql("providers.account"), payer_id, provider)


async def invoice_of_object(conn: Connection, object_id: str) -> UUID | None:
    """Find which invoice of ours one at the provider is; None where it is none."""
    found: UUID | None = await conn.fetchval(sql("providers.invoice_of_object"), object_id)
    return found


async def read_collect_job(conn: Connection, invoice_id: UUID) -> Job | None:
    """Read the job that collects an invoice."""
    row = await conn.fetchrow(sql("providers.collect_job"), invoice_id)
    return None if row is None else _job(row)


async def other_failed(conn: Connection, job: Job, tenant_id: UUID) -> Job | None:
    """Lock another job of a tenant's invoices that waits for late money after its last try; None: there is none."""
    row = await conn.fetchrow(sql("providers.other_failed"), tenant_id, job.job_id)
    return None if row is None else _job(row)


async def is_unpaid_elsewhere(conn: Connection, job: Job) -> bool:
    """Whether a job's payer was suspended for another invoice too, which is unpaid still."""
    found: bool = await conn.fetchval(sql("providers.is_unpaid_elsewhere"), job.tenant_id, job.job_id)
    return found


async def recorded_minor(conn: Connection, invoice_id: UUID, *, provider: str) -> int:
    """Sum the payments of an invoice that came through a provider."""
    found: int = await conn.fetchval(sql("providers.recorded"), invoice_id, provider)
    return found


async def refundable_minor(conn: Connection, invoice_id: UUID, *, provider: str) -> int:
    """Sum what came in for an invoice through a provider and was not sent back."""
    found: int = await conn.fetchval(sql("providers.refundable"), invoice_id, provider)
    return found


async def wake_collect_job(conn: Connection, invoice_id: UUID, *, now: datetime) -> None:
    """Have the provider told at once that an invoice was settled elsewhere; nothing where it collects none."""
    await conn.execute(sql("providers.wake_collect"), invoice_id, now)


async def add_event(
    conn: Connection, *, provider: str, event_id: str, kind: str, object_id: str, now: datetime
) -> bool:
    """Take an event in; False where it was taken in before."""
    added = await conn.fetchval(sql("providers.add_event"), provider, event_id, kind, object_id, now)
    return added is not None


async def end_refund(conn: Connection, refund_id: UUID, *, state: str) -> tuple[UUID, int] | None:
    """End a pending refund: its invoice and amount; None where it has ended."""
    row = await conn.fetchrow(sql("providers.end_refund"), refund_id, state)
    return None if row is None else (row["invoice_id"], row["amount_minor"])


async def read_jobs(conn: Connection, *, count_max: int) -> list[Row]:
    """Read jobs, failed ones first."""
    return await conn.fetch(sql("providers.jobs"), count_max)


async def read_collected(conn: Connection, *, provider: str, since: datetime, before: datetime) -> list[Row]:
    """Read the invoices that are collected at a provider, finalised in a span."""
    return await conn.fetch(sql("providers.collected"), provider, since, before)
