"""Run invoices: close what is due and finalise its invoices, batch after batch, in as many processes as are worth it.

A batch has at most one period of a tenant, and its tenants are neighbours by their locks' keys.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID

from tollkeeper_ledger.services.billing_processes import (
    BATCHES_PER_PROCESS,
    BillingProcess,
    Opening,
    billing_processes,
)
from tollkeeper_ledger.services.fairness import far_apart
from tollkeeper_ledger.services.invoice_batches import BatchBiller, Outcome
from tollkeeper_ledger.services.invoice_issue import Run
from tollkeeper_ledger.services.invoices_close import count_due
from tollkeeper_ledger.services.progressive import cut_passed
from tollkeeper_ledger.services.tasks import end_all
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.tenant_locks import tenant_lock_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from tollkeeper_ledger.services.billing_processes import BillingProcesses
    from tollkeeper_ledger.services.invoice_batches import Head, Step
    from tollkeeper_ledger.store.billing_invoices import StoredInvoice, ToldInvoice
    from tollkeeper_ledger.store.pool import Pool

PERIODS_PER_RUN_MAX = 200_000
"""Bound of one run; a run that meets it ends, and the next goes on."""
TENANTS_PER_BATCH = 200
"""Tenants whose periods one transaction closes and bills."""
BATCHES_AT_ONCE = 3
"""While Postgres adds one batch, and another waits for the numbers, the next is read and rated; fewer where the pool of
connections is small, so that others have one."""

_PENDING_BATCH = 1_000
_COUNTED_AT_ONCE = 200
_PAGES_AT_ONCE = 2
"""While Postgres reads one page of subscriptions, what is due of another is counted."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a run."""

    due: int
    done: int
    invoice: StoredInvoice | ToldInvoice | None = None
    held_tenant: str = ""
    held_reason: str = ""


@dataclass(slots=True)
class _Subscribed:
    """A subscription, and how many of its periods are due."""

    tenant_id: UUID
    subscription_id: UUID
    wire_id: str
    left: int


_Batch: TypeAlias = "list[deque[_Subscribed]]"
"""Tenants with their subscriptions."""


async def run_invoices(
    pool: Pool,
    *,
    run: Run,
    only: str | None,
    new_id: Callable[[], UUID] = uuid.uuid4,
    processes: BillingProcesses | None = None,
    with_lines: bool = True,
) -> AsyncGenerator[Progress, None]:
    """Close every due period and finalise its invoice, once each, telling how far it is.

    Begins with closes whose invoices are missing, ends with running periods whose threshold is passed. Safe to stop at
    any point, to repeat, and to run twice at once: a transaction bills whatever it closes. What breaks it off is raised
    once everything was told that was billed till then.

    A large run has `processes` beside this one; of what one of them committed and died before it said so nobody is
    told. `with_lines`: whether whoever listens reads the lines of invoices.
    """
    biller = BatchBiller(pool, run, new_id)
    async with transaction(pool) as conn:
        pending = await closes.read_pending_closes(conn, only=only, count_max=_PENDING_BATCH)
    subscribed = await _find_due(pool, only=only)
    done, due = 0, len(pending) + sum(one.left for one in subscribed)
    yield Progress(due=due, done=0)
    for first in range(0, len(pending), TENANTS_PER_BATCH):
        batch = pending[first : first + TENANTS_PER_BATCH]
        # Fewer than the batch has where it broke off; nothing follows then.
        names = (wire_id for _, wire_id in batch)
        async for step in biller.finalise([key for key, _ in batch]):
            wire_id = next(names)
            if step.held:
                yield Progress(due=due, done=done, held_tenant=wire_id, held_reason=step.held)
                continue
            done += 1
            yield Progress(due=due, done=done, invoice=step.invoice)
    url = "" if processes is None else processes.database_url
    count = 0 if processes is None else processes.count_for(due)
    async with billing_processes(Opening(url, run, with_lines), count) as beside:
        lanes = _lanes(biller, beside)
        async with aclosing(_bill(_batches(subscribed, at_once=len(lanes)), lanes)) as steps:
            async for wire_id, step in steps:
                if step.held:
                    yield Progress(due=due, done=done, held_tenant=wire_id, held_reason=step.held)
                if step.is_closed:
                    done += 1
                    due = max(due, done)
                    yield Progress(due=due, done=done, invoice=step.invoice)
                if done >= PERIODS_PER_RUN_MAX:
                    return
    async for invoice in _bill_passed(biller, only=only):
        done += 1
        due = max(due, done)
        yield Progress(due=due, done=done, invoice=invoice)


async def together(steps: AsyncIterator[Progress], *, count_max: int) -> AsyncIterator[list[Progress]]:
    """Give steps in lists of at most so many, in their order; the first, and one that is held, end theirs.

    A step may wait for those of the next batch. Where the steps break off, those that waited are given first.
    """
    waiting: list[Progress] = []
    try:
        async for step in steps:
            waiting.append(step)
            if len(waiting) == count_max or step.held_tenant or not step.done:
                told, waiting = waiting, []
                yield told
    except Exception:
        if waiting:
            yield waiting
        raise
    if waiting:
        yield waiting


async def bill_thresholds(pool: Pool, *, actor: str) -> int:
    """Invoice running periods whose plan's threshold is passed; give how many were cut."""
    biller = BatchBiller(pool, Run(actor=actor, request_id=uuid.uuid4().hex))
    return len([invoice async for invoice in _bill_passed(biller, only=None)])


async def _find_due(pool: Pool, *, only: str | None) -> list[_Subscribed]:
    """Give the subscriptions that have something due, in order of wire id."""
    async with transaction(pool) as conn:
        subscriptions = await closes.read_subscriptions_to_bill(conn, only=only)
    pages = [
        subscriptions[first : first + _COUNTED_AT_ONCE] for first in range(0, len(subscriptions), _COUNTED_AT_ONCE)
    ]
    counts: dict[UUID, int] = {}
    waiting = iter(pages)

    async def count() -> None:
        for page in waiting:
            async with transaction(pool) as conn:
                counts.update(await count_due(conn, sorted({tenant_id for tenant_id, _, _ in page})))

    at_once = min(_PAGES_AT_ONCE, max(1, pool.get_max_size() - 1))
    counting = [asyncio.create_task(count()) for _ in range(at_once)]
    try:
        await asyncio.gather(*counting)
    finally:
        await end_all(counting)
    return [_Subscribed(*one, left=counts[one[1]]) for one in subscriptions if one[1] in counts]


def _batches(subscribed: Sequence[_Subscribed], *, at_once: int) -> list[_Batch]:
    """Put tenants together whose locks are neighbours; within a batch they keep their order.

    Batches that follow each other are far apart: neighbours have a stripe of locks in common, and wait for each other.
    """
    tenants: dict[UUID, deque[_Subscribed]] = {}
    for one in subscribed:
        tenants.setdefault(one.tenant_id, deque()).append(one)
    places = {tenant_id: place for place, tenant_id in enumerate(tenants)}
    by_lock = sorted(tenants, key=tenant_lock_key)
    pages = [by_lock[first : first + TENANTS_PER_BATCH] for first in range(0, len(by_lock), TENANTS_PER_BATCH)]
    apart = far_apart(pages, at_once=at_once)
    return [[tenants[tenant_id] for tenant_id in sorted(page, key=places.__getitem__)] for page in apart]


@dataclass(frozen=True, slots=True)
class _Lane:
    """Where one batch at a time is billed: here, or in another process."""

    biller: BatchBiller
    process: BillingProcess | None = None

    async def close(self, batch: _Batch) -> Outcome[str]:
        """Close the next period of each tenant, named by its wire id; drop the subscriptions that have none left."""
        wire_ids = [tenant[0].wire_id for tenant in batch]
        steps, broke = await self._close([(tenant[0].tenant_id, tenant[0].subscription_id) for tenant in batch])
        # Fewer than the batch has where it broke off; nothing follows then.
        for tenant, step in zip(batch, steps, strict=False):
            tenant[0].left -= 1
            if not step.is_closed or not tenant[0].left:
                tenant.popleft()
        return Outcome(list(zip(wire_ids, steps, strict=False)), broke)

    async def _close(self, heads: Sequence[Head]) -> tuple[list[Step], Exception | None]:
        steps = [] if self.process is None else await self.process.close(heads)
        if len(steps) == len(heads):
            return steps, None
        # Nobody knows what a process that is gone committed. What it closed is not due any more, so nothing is doubled.
        rest = await self.biller.close(heads[len(steps) :])
        return [*steps, *(step for _, step in rest.steps)], rest.broke

    @property
    def is_open(self) -> bool:
        """Whether another batch may go there."""
        return self.process is None or not self.process.is_lost


def _lanes(biller: BatchBiller, beside: Sequence[BillingProcess]) -> list[_Lane]:
    """Give the places where batches are billed at once, those of other processes first."""
    here = min(BATCHES_AT_ONCE, max(1, biller.pool.get_max_size() - 1))
    there = [_Lane(biller, process) for _ in range(BATCHES_PER_PROCESS) for process in beside]
    return there + [_Lane(biller)] * here


async def _bill(batches: Sequence[_Batch], lanes: Sequence[_Lane]) -> AsyncGenerator[tuple[str, Step], None]:
    """Close batch after batch, period after period, and give what became of each, with the tenant's wire id.

    What breaks one off is raised once those beside it have ended.
    """
    waiting, free = deque(batches), deque(lanes)
    running: dict[asyncio.Task[Outcome[str]], tuple[_Batch, _Lane]] = {}
    broke: Exception | None = None
    try:
        while running or (waiting and broke is None):
            while waiting and free and broke is None:
                batch, lane = waiting.popleft(), free.popleft()
                running[asyncio.create_task(lane.close(batch))] = batch, lane
            ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                batch, lane = running.pop(task)
                if lane.is_open:
                    free.append(lane)
                left = [tenant for tenant in batch if tenant]
                if left:
                    waiting.appendleft(left)
                outcome = task.result()
                broke = broke or outcome.broke
                for told in outcome.steps:
                    yield told
        if broke is not None:
            raise broke
    finally:
        await end_all(running)


async def _bill_passed(biller: BatchBiller, *, only: str | None) -> AsyncIterator[StoredInvoice | ToldInvoice | None]:
    """Invoice running periods whose threshold is passed, once each; None for a draft that waits for review."""
    async for cut in cut_passed(biller.pool, only=only):
        if not cut.billable or cut.is_draft:
            yield None
            continue
        async for step in biller.finalise([cut.key]):
            yield step.invoice
