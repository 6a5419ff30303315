"""Carry jobs through at Stripe: one step after the other, each request frozen before it is sent.

A request that got no answer is sent again, the same bytes under the same key. A key that answers with a stored error,
or that the provider may have forgotten, is given up: the object is looked for first, then made under a new attempt.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.provider_work import Work, final_lines, next_step
from tollkeeper_ledger.payments import wire
from tollkeeper_ledger.payments.stripe_http import UnreadableError
from tollkeeper_ledger.payments.wire import KEY_TRUSTED, Meaning, Reply, Request, key_of, meaning_of
from tollkeeper_ledger.services.dunning import UNMOVED, fall_back_again, payment_failed
from tollkeeper_ledger.services.provider_lookup import look_up
from tollkeeper_ledger.services.provider_payments import apply_invoice, refund_ended, refund_said
from tollkeeper_ledger.services.receivables import need_billed
from tollkeeper_ledger.services.tasks import end_all
from tollkeeper_ledger.store import money
from tollkeeper_ledger.store import provider_jobs as jobs
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import connection, transaction
from tollkeeper_ledger.store.provider_jobs import Attempt
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.payments.stripe_http import StripeHttp
    from tollkeeper_ledger.services.provider_cards import Cards
    from tollkeeper_ledger.store.pool import Connection, Pool, Row
    from tollkeeper_ledger.store.provider_jobs import Job

PROVIDER = "stripe"
BACKOFF_S_MAX = 3_600
LEASE = timedelta(minutes=2)
"""A worker that has a job keeps it so long; a dead one's is taken up again after it."""

_STEPS_AT_ONCE = 20
_CONNECTIONS = 2
"""Connections to Postgres that collecting uses at once, however many jobs it carries; others have the rest."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a job does next: a request that was frozen, or the read-back of its total where there is none."""

    job: Job
    work: Work
    step: str = ""
    build: Callable[[Work], Request] | None = None
    attempt: Attempt | None = None


@dataclass(frozen=True, slots=True)
class Collector:
    """Works through the jobs of one account, several at once. Any number may run at once."""

    pool: Pool
    stripe: StripeHttp
    cards: Cards
    account: str
    """Names the account in idempotency keys, so that test and live never share one."""
    now: Callable[[], datetime]
    """Real time: the provider forgets keys by it."""
    log: FilteringBoundLogger
    at_once: int = 1
    """Jobs that this process carries at once; each has one request under way at most."""
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CONNECTIONS))

    async def run_once(self) -> bool:
        """Take one job as far as it goes; False where none is ready."""
        job = await self._claim()
        if job is None:
            return False
        await self._carry(job)
        return True

    async def run_all(self) -> int:
        """Take every ready job as far as it goes, `at_once` of them at a time; give how many were taken up.

        A job that fails is left to be taken up again two minutes after it was; what it failed of is raised when those
        beside it have ended, and no other is begun.
        """
        taken = 0
        broke: BaseException | None = None
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                job = await self._claim() if broke is None else None
                if job is not None:
                    taken += 1
                    running.add(asyncio.create_task(self._carry(job)))
                if not running:
                    break
                if job is None or len(running) >= self.at_once:
                    ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    broke = broke or next((error for error in map(_error_of, ended) if error is not None), None)
        finally:
            await end_all(running)
        if broke is not None:
            raise broke
        return taken

    async def _claim(self) -> Job | None:
        """Take the job that waits longest; committed at once, so that one that fails doesn't hold the others up."""
        async with self._turns, connection(self.pool) as conn:
            return await jobs.claim_job(conn, now=self.now())

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        """Begin a transaction on one of the few connections that collecting has."""
        async with self._turns, transaction(self.pool) as conn:
            yield conn

    async def _carry(self, job: Job) -> None:
        """Take a job as far as it goes."""
        async with self._transaction() as conn:
            decided = await self._decide(conn, job)
        for _ in range(_STEPS_AT_ONCE):
            if decided is None:
                return
            decided = await (self._take(decided) if isinstance(decided, Turn) else self._aside(decided))

    async def _decide(self, conn: Connection, job: Job, *, is_new_step: bool = False) -> Turn | Job | None:
        """Decide a job's next turn, its request frozen; None: none now. A job that is given needs locks of its own.

        Of a step that this transaction began there is no attempt yet.
        """
        row = await jobs.read_work(conn, job)
        if UNMOVED in job.facts and row["owed"] != "void" and row["due_minor"]:
            return job
        decided = decide(job, row)
        while decided.job is not None:
            if decided.job.state in ("waiting", "failed"):
                return decided.job
            job = decided.job
            await _keep(conn, job)
            if not decided.goes_on or job.state != "ready":
                return None
            decided = decide(job, row)
        work = work_of(job, row)
        if decided.request is None:
            return Turn(job, work)
        attempt = None
        if not is_new_step or decided.step != job.step:
            attempt = await jobs.last_attempt(conn, job, decided.step)
        if attempt is None:
            attempt = await self._freeze(conn, job, work, decided.step, decided.request, number=1)
        return Turn(job, work, decided.step, decided.request, attempt)

    async def _aside(self, job: Job) -> Turn | Job | None:
        """Do what locks more than the job: let it wait for a card, fail, or move its tenant."""
        if job.state == "failed":
            await self._fail(job, job.step, job.error)
            return None
        if job.state != "waiting":
            await self._fall_back_again(job)
            return None
        async with self._transaction() as conn:
            if not await jobs.hold_method(conn, job.tenant_id, provider=job.provider):
                await jobs.lock_job(conn, job)
                if (await jobs.read_work(conn, job))["due_minor"]:
                    await jobs.save_job(conn, job)
                    return None
        # A card, or money, has come meanwhile, which would not wake it any more.
        async with self._transaction() as conn:
            now = await jobs.lock_job(conn, job)
            return await self._decide(conn, now) if now.state == "ready" else None

    async def _take(self, turn: Turn) -> Turn | Job | None:
        """Take a turn; give what comes after it, None where the job must wait."""
        try:
            if turn.attempt is None or turn.build is None:
                return await self._check(turn.job, turn.work)
            return await self._send(turn.job, turn.work, turn.step, turn.build, turn.attempt)
        except UnreadableError as error:
            await self._save(self._later(turn.job, str(error)))
            return None

    async def _send(
        self, job: Job, work: Work, step: str, build: Callable[[Work], Request], attempt: Attempt
    ) -> Turn | Job | None:
        if attempt.status is not None or self.now() - attempt.frozen_at > KEY_TRUSTED:
            found = await look_up(self.stripe, work, step, frozen_at=attempt.frozen_at)
            if found is not None:
                return await self._done(job, step, found)
            async with self._transaction() as conn:
                attempt = await self._freeze(conn, job, work, step, build, number=attempt.attempt + 1)
        request = Request(attempt.method, attempt.path, attempt.body, attempt.idempotency_key)
        reply = await self.stripe.send(request)
        meaning = meaning_of(reply)
        if reply is None or meaning is Meaning.AGAIN:
            await self._save(self._later(job, reply.problem() if reply else "no answer", reply=reply))
            return None
        if meaning is Meaning.DONE:
            return await self._done(job, step, reply.read(), answered=(attempt, reply))
        async with self._transaction() as conn:
            await jobs.answer_attempt(conn, job, step, attempt.attempt, status=reply.status, body=reply.body)
            if meaning is Meaning.BURNT:
                await _keep(conn, self._later(job, reply.problem()))
        if meaning is not Meaning.BURNT:
            await self._not_done(job, work, step, reply, attempt)
        return None

    async def _not_done(self, job: Job, work: Work, step: str, reply: Reply, attempt: Attempt) -> None:
        """Go on after an answer that says no."""
        if meaning_of(reply) is Meaning.DECLINED and step.startswith("pay"):
            await self._declined(job, reply, attempt)
            return
        # Refused, perhaps because it is so already: paid on the provider's page, voided by hand.
        found = await look_up(self.stripe, work, step, frozen_at=attempt.frozen_at)
        if found is not None:
            await self._done(job, step, found)
        elif step.startswith("pay") and await self._is_open(work):
            await self._not_charged(job, work, reply, attempt)
        else:
            await self._fail(job, step, reply.problem())

    async def _is_open(self, work: Work) -> bool:
        said = await self.stripe.read(wire.object_path("invoices", work.facts["invoice"]))
        return said.get("status") == "open"

    async def _not_charged(self, job: Job, work: Work, reply: Reply, attempt: Attempt) -> None:
        """Go on after a card could not even be tried: with the payer's present one, else as after one that failed."""
        async with self.cards.turn() as conn:
            await self.cards.follow(conn, work.facts["customer"])
        async with self._transaction() as conn:
            row = await jobs.read_work(conn, job)
        if _is_other_card(job, row, attempt):
            await self._save(replace(job, next_at=self.now(), error=reply.problem()))
        else:
            await self._declined(job, reply, attempt)

    async def _freeze(
        self, conn: Connection, job: Job, work: Work, step: str, build: Callable[[Work], Request], *, number: int
    ) -> Attempt:
        """Keep the exact bytes before they are sent. A customer's key is the payer's: two jobs make one."""
        request = build(work)
        about = work.payer_id if step == "customer" else f"{job.kind}/{work.invoice_id}/{work.subject_id}"
        attempt = Attempt(
            attempt=number,
            method=request.method,
            path=request.path,
            body=request.body,
            idempotency_key=key_of(self.account, about, work.issue, step, number),
            frozen_at=self.now(),
            status=None,
        )
        await jobs.add_attempt(conn, job, step, attempt)
        return attempt

    async def _done(
        self, job: Job, step: str, answer: dict[str, Any], *, answered: tuple[Attempt, Reply] | None = None
    ) -> Turn | Job | None:
        """Take in what a step gave and freeze what follows, in one transaction."""
        async with self._transaction() as conn:
            if answered is not None:
                attempt, reply = answered
                await jobs.answer_attempt(conn, job, step, attempt.attempt, status=reply.status, body=reply.body)
            if step.startswith(("pay", "settled")) or step == "finalise":
                await apply_invoice(conn, job.invoice_id, answer, provider=job.provider)
            now = await jobs.lock_job(conn, job)
            if now.step != job.step:
                # Its lease was over, and another worker has gone on with it.
                return None
            if step == "customer":
                await jobs.put_customer(
                    conn, job.tenant_id, provider=job.provider, customer=answer["id"], now=self.now()
                )
            if step == "refund" and now.subject_id is not None:
                await refund_said(conn, now.subject_id, answer)
            following = "" if step.startswith(("pay", "settled", "discard")) else next_step(now.kind, now.step)
            saved = replace(
                now,
                step=following or now.step,
                state="ready" if following else "done",
                next_at=self.now() + LEASE,
                tries=0,
                facts={**now.facts, **_facts_from(step, answer)},
                error=now.error if step == "discard" else "",
            )
            if step == "discard" and now.error:
                saved = replace(saved, state="failed")
            await jobs.save_job(conn, saved)
            return await self._decide(conn, saved, is_new_step=True) if following else None

    async def _check(self, job: Job, work: Work) -> Turn | Job | None:
        """Read the total back and compare it with the ledger's, to the cent; discard the draft where they differ."""
        invoice = await self.stripe.read(wire.object_path("invoices", work.facts["invoice"]))
        said = (invoice.get("total"), str(invoice.get("currency", "")).upper(), invoice.get("status"))
        if said == (work.amount_minor, work.currency, "draft") or (
            said[:2] == (work.amount_minor, work.currency) and invoice.get("status") in ("open", "paid")
        ):
            checked = replace(job, step=next_step(job.kind, job.step), tries=0, next_at=self.now() + LEASE, error="")
            async with self._transaction() as conn:
                if (await jobs.lock_job(conn, job)).step != job.step:
                    return None
                await jobs.save_job(conn, checked)
                return await self._decide(conn, checked, is_new_step=True)
        problem = f"the provider's total is {said[0]} {said[1]}, the ledger's {work.amount_minor} {work.currency}"
        self.log.error("provider disagrees", invoice=work.number, problem=problem)
        wrong = replace(job, error=problem)
        async with self._transaction() as conn:
            await _keep(conn, wrong)
            attempt = await jobs.last_attempt(conn, job, "discard")
            if attempt is None:
                attempt = await self._freeze(conn, job, work, "discard", wire.discard_request, number=1)
        return await self._send(wrong, work, "discard", wire.discard_request, attempt)

    async def _declined(self, job: Job, reply: Reply, attempt: Attempt) -> None:
        async with self._transaction() as conn:
            # Payers' cards are locked before tenants. A card that comes from here on wakes the job.
            await jobs.hold_method(conn, job.tenant_id, provider=job.provider)
            now, row = await _hold(conn, job)
            if not row["due_minor"]:
                # Paid elsewhere meanwhile: the provider is to hear of it.
                await jobs.save_job(conn, replace(now, state="ready", next_at=self.now(), error=reply.problem()))
                return
            await payment_failed(
                conn, now, row, problem=reply.problem(), now=self.now(), ledger_time=await ledger_now(conn)
            )
            if row["method"] and _is_other_card(now, row, attempt):
                after = await jobs.lock_job(conn, job)
                facts = {name: fact for name, fact in after.facts.items() if name != UNMOVED}
                await jobs.save_job(conn, replace(after, state="ready", next_at=self.now(), facts=facts))

    async def _fall_back_again(self, job: Job) -> None:
        async with self._transaction() as conn:
            now, row = await _hold(conn, job)
            # A card that was entered meanwhile comes first.
            if UNMOVED in now.facts:
                await fall_back_again(conn, now, row, now=self.now(), ledger_time=await ledger_now(conn))

    async def _fail(self, job: Job, step: str, problem: str) -> None:
        self.log.error("provider refused", job=str(job.job_id), step=step, problem=problem)
        async with self._transaction() as conn:
            if job.kind == "refund" and job.subject_id is not None:
                await refund_ended(conn, job.subject_id, state="failed")
            await _keep(conn, replace(job, state="failed", error=problem))

    def _later(self, job: Job, problem: str, *, reply: Reply | None = None) -> Job:
        wait_s = max(min(2**job.tries, BACKOFF_S_MAX), reply.retry_after_s if reply else 0)
        return replace(job, tries=job.tries + 1, next_at=self.now() + timedelta(seconds=wait_s), error=problem)

    async def _save(self, job: Job) -> None:
        async with self._transaction() as conn:
            await _keep(conn, job)


@dataclass(frozen=True, slots=True)
class Decided:
    """What to do now: where the job is to go without a request, or which step to take with which request."""

    job: Job | None = None
    goes_on: bool = False
    step: str = ""
    request: Callable[[Work], Request] | None = None


_REQUESTS: dict[str, Callable[[Work], Request]] = {
    "customer": wire.customer_request,
    "draft": wire.draft_request,
    "lines": wire.lines_request,
    "finalise": wire.finalise_request,
    "void": wire.void_request,
    "credit": wire.credit_request,
    "refund": wire.refund_request,
}


def decide(job: Job, row: Row) -> Decided:
    """Decide a job's step from what became of its invoice meanwhile. Pure."""
    if job.kind != "collect":
        return _decide_follower(job, row)
    if job.step == "customer" and row["customer"]:
        facts = {**job.facts, "customer": row["customer"]}
        return Decided(job=replace(job, step="draft", facts=facts, tries=0), goes_on=True)
    return _decide_paying(job, row) if job.step == "pay" else _decide_making(job, row)


def _decide_making(job: Job, row: Row) -> Decided:
    if row["owed"] == "void" and "invoice" not in job.facts:
        return Decided(job=replace(job, state="done", error=""))
    if row["owed"] == "void":
        return Decided(step="discard", request=wire.discard_request)
    if row["currency"] in wire.COUNTED_OTHERWISE and "invoice" not in job.facts:
        problem = f"the provider counts {row['currency']} in other units than ISO 4217: collect it by hand"
        return Decided(job=replace(job, state="failed", error=problem))
    return Decided(step=job.step, request=_REQUESTS.get(job.step))


def _decide_paying(job: Job, row: Row) -> Decided:
    if row["owed"] == "void":
        return Decided(job=replace(job, state="done", error=""))
    if row["is_lowered_first"]:
        # What was credited or paid elsewhere must not be charged: the provider hears of it first.
        return Decided(job=job)
    if row["due_minor"] == 0:
        return Decided(step="settled", request=wire.settled_request)
    if not row["method"]:
        return Decided(job=replace(job, state="waiting"))
    return Decided(step=f"pay-{job.failures + 1}", request=wire.pay_request)


def _decide_follower(job: Job, row: Row) -> Decided:
    """Wait until the invoice is finalised at the provider; there is nothing to follow where it never will be."""
    collected = dict(row["collected"] or {})
    is_over = row["collect_state"] in ("done", "failed")
    if row["collect_step"] != "pay":
        return Decided(job=_ended(job, "the provider has no such invoice") if is_over else job)
    if job.kind == "refund" and not collected.get("payment"):
        return Decided(job=_ended(job, "the provider has no payment to send back"))
    if job.kind == "credit" and is_over:
        return Decided(job=_ended(job, "nothing was due at the provider any more"))
    if job.facts != collected:
        return Decided(job=replace(job, facts=collected), goes_on=True)
    return Decided(step=job.step, request=_REQUESTS[job.step])


def _ended(job: Job, why: str) -> Job:
    """End a job that has nothing to follow; money that can't be sent back so has failed to go."""
    return replace(job, state="failed" if job.kind == "refund" else "done", error=why)


def work_of(job: Job, row: Row) -> Work:
    """Give what a job's requests are made of."""
    taxes = json.loads(row["document"])["taxes"]
    return Work(
        payer_id=str(job.tenant_id),
        payer_name=row["display_name"] or row["wire_id"],
        email=row["email"],
        kind=job.kind,
        invoice_id=str(job.invoice_id),
        number=row["number"],
        issue=row["issue"],
        currency=row["currency"],
        amount_minor=job.amount_minor,
        subject_id=str(job.subject_id or ""),
        lines=final_lines(
            number=row["number"],
            subtotal_minor=row["subtotal_minor"],
            tax_minor=row["tax_minor"],
            balance_minor=row["subtotal_minor"] + row["tax_minor"] - job.amount_minor,
            tax_name=taxes[0]["name"] if len(taxes) == 1 else "",
        ),
        method=row["method"],
        facts=job.facts,
    )


async def _hold(conn: Connection, job: Job) -> tuple[Job, Row]:
    """Lock a job with what its invoice's standing and its tenant's plan depend on; give it and its work."""
    billed = await need_billed(conn, job.invoice_id)
    # A move to the fallback plan needs the tenant alone; tenants are locked before accounts.
    await lock_tenant(conn, billed.tenant_id)
    await money.lock_account(conn, billed.account)
    return await jobs.lock_job(conn, job), await jobs.read_work(conn, job)


async def _keep(conn: Connection, job: Job) -> None:
    """Lock a job and keep where it is."""
    await jobs.lock_job(conn, job)
    await jobs.save_job(conn, job)


def _error_of(ended: asyncio.Task[None]) -> BaseException | None:
    return None if ended.cancelled() else ended.exception()


def _is_other_card(job: Job, row: Row, attempt: Attempt) -> bool:
    """Say whether a try to charge a card was not of the one that the payer has now."""
    return wire.pay_request(work_of(job, row)).body != attempt.body


def _facts_from(step: str, answer: dict[str, Any]) -> dict[str, str]:
    """Keep the provider's ids that later steps need."""
    if step == "customer":
        return {"customer": answer["id"]}
    if step == "draft":
        return {"invoice": answer["id"]}
    facts = {}
    if step == "finalise" or step.startswith("pay"):
        if answer.get("hosted_invoice_url"):
            facts["pay_url"] = str(answer["hosted_invoice_url"])
        if isinstance(answer.get("payment_intent"), str):
            facts["payment"] = str(answer["payment_intent"])
    return facts
