"""Run invoices: close what is due and finalise its invoices, the periods of many tenants in one transaction.

A batch has at most one period of a tenant, and its tenants are neighbours by their locks' keys. What fails in a batch
is found by halving it, and named alone.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar
from uuid import UUID

from tollkeeper_ledger.domain.invoice import digests_named, rate_and_sum
from tollkeeper_ledger.services.fairness import far_apart, in_turns
from tollkeeper_ledger.services.invoice_issue import Issuing, Run, finalise_closes
from tollkeeper_ledger.services.invoices_close import RATED_PER_TURN, Closed, Held, close_due, count_due
from tollkeeper_ledger.services.progressive import cut_passed
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.faults import ROW_FAULTS, TIES
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.tenant_locks import tenant_lock_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

    from tollkeeper_ledger.store.billing_closes import CloseKey
    from tollkeeper_ledger.store.billing_invoices import StoredInvoice
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
_FAULTS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, *ROW_FAULTS)
"""What the rows of one period may be at fault for; a connection that broke is not among them."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a run."""

    due: int
    done: int
    invoice: StoredInvoice | None = None
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


@dataclass(frozen=True, slots=True)
class _Step:
    """What became of one period; nothing was due where it is not even closed."""

    is_closed: bool = False
    invoice: StoredInvoice | None = None
    held: str = ""


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[Item]):
    """What became of items, in order, as far as it came, and what broke it off."""

    steps: list[tuple[Item, _Step]]
    broke: Exception | None = None


async def run_invoices(
    pool: Pool, *, run: Run, only: str | None, new_id: Callable[[], UUID] = uuid.uuid4
) -> AsyncGenerator[Progress, None]:
    """Close every due period and finalise its invoice, once each, telling how far it is.

    Begins with closes whose invoices are missing, ends with running periods whose threshold is passed. Safe to stop at
    any point, to repeat, and to run twice at once: a transaction bills whatever it closes. What breaks it off is raised
    once everything was told that was billed till then.
    """
    biller = _Biller(pool, run, new_id)
    async with transaction(pool) as conn:
        pending = await closes.read_pending_closes(conn, only=only, count_max=_PENDING_BATCH)
    subscribed = await _find_due(pool, only=only)
    done, due = 0, len(pending) + sum(one.left for one in subscribed)
    yield Progress(due=due, done=0)
    for first in range(0, len(pending), TENANTS_PER_BATCH):
        async for _, step in biller.finalise(pending[first : first + TENANTS_PER_BATCH]):
            done += 1
            yield Progress(due=due, done=done, invoice=step.invoice)
    async with aclosing(biller.bill(_batches(subscribed))) as steps:
        async for wire_id, step in steps:
            if step.held:
                yield Progress(due=due, done=done, held_tenant=wire_id, held_reason=step.held)
            if step.is_closed:
                done += 1
                due = max(due, done)
                yield Progress(due=due, done=done, invoice=step.invoice)
            if done >= PERIODS_PER_RUN_MAX:
                return
    async for invoice in biller.bill_passed(only=only):
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
    biller = _Biller(pool, Run(actor=actor, request_id=uuid.uuid4().hex), uuid.uuid4)
    return len([invoice async for invoice in biller.bill_passed(only=None)])


async def _find_due(pool: Pool, *, only: str | None) -> list[_Subscribed]:
    """Give the subscriptions that have something due, in order of wire id."""
    async with transaction(pool) as conn:
        subscriptions = await closes.read_subscriptions_to_bill(conn, only=only)
    found: list[_Subscribed] = []
    for first in range(0, len(subscriptions), _COUNTED_AT_ONCE):
        page = subscriptions[first : first + _COUNTED_AT_ONCE]
        async with transaction(pool) as conn:
            counts = await count_due(conn, sorted({tenant_id for tenant_id, _, _ in page}))
        found.extend(_Subscribed(*one, left=counts[one[1]]) for one in page if one[1] in counts)
    return found


def _batches(subscribed: Sequence[_Subscribed]) -> list[_Batch]:
    """Put tenants together whose locks are neighbours; within a batch they keep their order.

    Batches that follow each other are far apart: neighbours have a stripe of locks in common, and wait for each other.
    """
    tenants: dict[UUID, deque[_Subscribed]] = {}
    for one in subscribed:
        tenants.setdefault(one.tenant_id, deque()).append(one)
    places = {tenant_id: place for place, tenant_id in enumerate(tenants)}
    by_lock = sorted(tenants, key=tenant_lock_key)
    pages = [by_lock[first : first + TENANTS_PER_BATCH] for first in range(0, len(by_lock), TENANTS_PER_BATCH)]
    apart = far_apart(pages, at_once=BATCHES_AT_ONCE)
    return [[tenants[tenant_id] for tenant_id in sorted(page, key=places.__getitem__)] for page in apart]


class _Biller:
    """Close and bill batches, each in a transaction of its own."""

    def __init__(self, pool: Pool, run: Run, new_id: Callable[[], UUID]) -> None:
        self._pool, self._run, self._new_id = pool, run, new_id

    async def bill(self, batches: Sequence[_Batch]) -> AsyncGenerator[tuple[str, _Step], None]:
        """Close batch after batch, period after period, and give what became of each, with the tenant's wire id.

        What breaks one off is raised once those beside it have ended.
        """
        waiting = deque(batches)
        at_once = min(BATCHES_AT_ONCE, max(1, self._pool.get_max_size() - 1))
        running: dict[asyncio.Task[_Outcome[_Subscribed]], _Batch] = {}
        broke: Exception | None = None
        try:
            while running or (waiting and broke is None):
                while waiting and broke is None and len(running) < at_once:
                    batch = waiting.popleft()
                    running[asyncio.create_task(self._round(batch))] = batch
                ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    batch = [tenant for tenant in running.pop(task) if tenant]
                    if batch:
                        waiting.appendleft(batch)
                    outcome = task.result()
                    broke = broke or outcome.broke
                    for one, step in outcome.steps:
                        yield one.wire_id, step
            if broke is not None:
                raise broke
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _round(self, batch: _Batch) -> _Outcome[_Subscribed]:
        """Close the next period of each tenant; drop the subscriptions that have none left."""
        heads = [tenant[0] for tenant in batch]
        outcome = await self._halving(heads, self._close)
        # Fewer than the batch has where it broke off; nothing follows then.
        for tenant, (_, step) in zip(batch, outcome.steps, strict=False):
            tenant[0].left -= 1
            if not step.is_closed or not tenant[0].left:
                tenant.popleft()
        return outcome

    async def bill_passed(self, *, only: str | None) -> AsyncIterator[StoredInvoice | None]:
        """Invoice running periods whose threshold is passed, once each; None for a draft that waits for review."""
        async for cut in cut_passed(self._pool, only=only):
            is_ready = cut.billable and not cut.is_draft
            if not is_ready:
                yield None
                continue
            async for _, step in self.finalise([cut.key]):
                yield step.invoice

    async def finalise(self, keys: Sequence[CloseKey]) -> AsyncIterator[tuple[CloseKey, _Step]]:
        """Make the invoices of closed periods that have none yet."""
        outcome = await self._halving(keys, self._finalise)
        for told in outcome.steps:
            yield told
        if outcome.broke is not None:
            raise outcome.broke

    async def _halving(
        self, wanted: Sequence[Item], attempt: Callable[[Sequence[Item]], Awaitable[list[_Step]]]
    ) -> _Outcome[Item]:
        """Attempt all in one transaction, or each half alone where that fails, down to what is at fault.

        What is no fault of a row breaks it off; what was committed before that is given all the same.
        """
        try:
            return _Outcome(list(zip(wanted, await attempt(wanted), strict=True)))
        except (*_FAULTS, *TIES) as error:
            if len(wanted) == 1:
                if isinstance(error, TIES):
                    return _Outcome([], broke=error)
                return _Outcome([(wanted[0], _Step(held=f"can't be billed: {error}"))])
        except Exception as error:  # noqa: BLE001 - raised once what was committed is told
            return _Outcome([], broke=error)
        middle = len(wanted) // 2
        first = await self._halving(wanted[:middle], attempt)
        if first.broke is not None:
            return first
        second = await self._halving(wanted[middle:], attempt)
        return _Outcome([*first.steps, *second.steps], broke=second.broke)

    async def _close(self, heads: Sequence[_Subscribed]) -> list[_Step]:
        async with transaction(self._pool) as conn:
            subscriptions = [(one.tenant_id, one.subscription_id) for one in heads]
            outcomes = await close_due(conn, subscriptions, new_id=self._new_id)
            ready = [
                Issuing(one.key, one.rated)
                for one in outcomes
                if isinstance(one, Closed) and one.billable and not one.is_draft and one.rated is not None
            ]
            made = await finalise_closes(conn, ready, run=self._run, new_id=self._new_id)
        return [
            _Step(is_closed=True, invoice=made.get(outcome.key))
            if isinstance(outcome, Closed)
            else _Step(held=outcome.reason if isinstance(outcome, Held) else "")
            for outcome in outcomes
        ]

    async def _finalise(self, keys: Sequence[CloseKey]) -> list[_Step]:
        async with transaction(self._pool) as conn:
            inputs = await closes.read_closes(conn, keys)
            digests = set[str]().union(*map(digests_named, inputs.values()))
            definitions = await closes.read_definitions_by_digest(conn, digests)
            issuing = [
                Issuing(key, rate_and_sum(inputs[key], definitions))
                async for key in in_turns(keys, each=RATED_PER_TURN)
            ]
            made = await finalise_closes(conn, issuing, run=self._run, new_id=self._new_id)
        return [_Step(is_closed=True, invoice=made.get(key)) for key in keys]
