"""Bill periods of many tenants in one transaction; what fails in it is found by halving it, and named alone."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from tollkeeper_ledger.domain.invoice import digests_named, rate_and_sum
from tollkeeper_ledger.services.fairness import in_turns
from tollkeeper_ledger.services.invoice_issue import Issuing, Run, finalise_closes
from tollkeeper_ledger.services.invoices_close import RATED_PER_TURN, Closed, Held, close_due
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.faults import ROW_FAULTS, TIES
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from uuid import UUID

    from tollkeeper_ledger.store.billing_closes import CloseKey
    from tollkeeper_ledger.store.billing_invoices import StoredInvoice, ToldInvoice
    from tollkeeper_ledger.store.pool import Pool

_FAULTS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, *ROW_FAULTS)
"""What the rows of one period may be at fault for; a connection that broke is not among them."""

Head: TypeAlias = "tuple[UUID, UUID]"
"""(tenant id, subscription id) whose earliest open period is due."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one period; nothing was due where it is not even closed."""

    is_closed: bool = False
    invoice: StoredInvoice | ToldInvoice | None = None
    held: str = ""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Item]):
    """What became of items, in order, as far as it came, and what broke it off."""

    steps: list[tuple[Item, Step]]
    broke: Exception | None = None


@dataclass(frozen=True, slots=True)
class BatchBiller:
    """Close and bill batches, each in a transaction of its own."""

    pool: Pool
    run: Run
    new_id: Callable[[], UUID] = uuid.uuid4

    async def close(self, heads: Sequence[Head]) -> Outcome[Head]:
        """Close the earliest period of each subscription, at most one of a tenant, and bill it."""
        return await self._halving(heads, self._close)

    async def finalise(self, keys: Sequence[CloseKey]) -> AsyncIterator[Step]:
        """Make the invoices of closed periods that have none yet. What breaks it off is raised when all is told."""
        outcome = await self._halving(keys, self._finalise)
        for _, step in outcome.steps:
            yield step
        if outcome.broke is not None:
            raise outcome.broke

    async def _halving(
        self, wanted: Sequence[Item], attempt: Callable[[Sequence[Item]], Awaitable[list[Step]]]
    ) -> Outcome[Item]:
        """Attempt all in one transaction, or each half alone where that fails, down to what is at fault.

        What is no fault of a row breaks it off; what was committed before that is given all the same.
        """
        try:
            return Outcome(list(zip(wanted, await attempt(wanted), strict=True)))
        except (*_FAULTS, *TIES) as error:
            if len(wanted) == 1:
                if isinstance(error, TIES):
                    return Outcome([], broke=error)
                return Outcome([(wanted[0], Step(held=f"can't be billed: {error}"))])
        except Exception as error:  # noqa: BLE001 - raised once what was committed is told
            return Outcome([], broke=error)
        middle = len(wanted) // 2
        first = await self._halving(wanted[:middle], attempt)
        if first.broke is not None:
            return first
        second = await self._halving(wanted[middle:], attempt)
        return Outcome([*first.steps, *second.steps], broke=second.broke)

    async def _close(self, heads: Sequence[Head]) -> list[Step]:
        async with transaction(self.pool) as conn:
            outcomes = await close_due(conn, heads, new_id=self.new_id)
            ready = [
                Issuing(one.key, one.rated)
                for one in outcomes
                if isinstance(one, Closed) and one.billable and not one.is_draft and one.rated is not None
            ]
            made = await finalise_closes(conn, ready, run=self.run, new_id=self.new_id, are_new=True)
        return [
            Step(is_closed=True, invoice=made.get(outcome.key))
            if isinstance(outcome, Closed)
            else Step(held=outcome.reason if isinstance(outcome, Held) else "")
            for outcome in outcomes
        ]

    async def _finalise(self, keys: Sequence[CloseKey]) -> list[Step]:
        async with transaction(self.pool) as conn:
            inputs = await closes.read_closes(conn, keys)
            digests = set[str]().union(*map(digests_named, inputs.values()))
            definitions = await closes.read_definitions_by_digest(conn, digests)
            issuing = [
                Issuing(key, rate_and_sum(inputs[key], definitions))
                async for key in in_turns(keys, each=RATED_PER_TURN)
            ]
            made = await finalise_closes(conn, issuing, run=self.run, new_id=self.new_id)
        return [Step(is_closed=True, invoice=made.get(key)) for key in keys]
