"""Commit batches that wait at the same time in one transaction: fewer commits, and each sum is touched once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from tollkeeper_ledger.domain.errors import LedgerError, PreconditionError
from tollkeeper_ledger.domain.usage import AppendOutcome
from tollkeeper_ledger.services.usage_bisect import Suspicion, commit_around

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from uuid import UUID

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.domain.usage_batch import UsageBatch
    from tollkeeper_ledger.services.usage_append import Result

    CommitTogether: TypeAlias = Callable[[Sequence[UsageBatch]], Awaitable[list[Result]]]

TRANSACTIONS_MAX = 2
"""Transactions at once: while Postgres works for one, the ledger computes for the other. More would only share less."""

RECORDS_MAX = 25_000
"""Records from which on a transaction takes no further batch: usage is to be seen within two seconds."""

BATCHES_MAX = 64
"""Batches of one transaction."""


@dataclass(slots=True)
class _Waiting:
    """A batch, and where its outcome goes."""

    batch: UsageBatch
    answered: asyncio.Future[AppendOutcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def producer_id(self) -> UUID:
        return self.batch.source.producer_id

    def answer(self, result: Result | Exception) -> None:
        """Tell the caller, if it is still there."""
        if self.answered.done():
            return
        if isinstance(result, Exception):
            self.answered.set_exception(result)
        else:
            self.answered.set_result(result)


class UsageCommits:
    """Commit batches, one of a producer at a time. What waits while transactions run shares the next one.

    A batch that fails fails alone: those of its transaction are then committed one by one. A caller that goes away
    doesn't undo its batch; it is told what became of it when it sends again.
    """

    def __init__(
        self,
        commit: CommitTogether,
        *,
        log: FilteringBoundLogger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._commit_together = commit
        self._suspicion = Suspicion(clock)
        self._log = log
        self._waiting: list[_Waiting] = []
        self._busy: set[UUID] = set()
        self._together = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def commit(self, batch: UsageBatch) -> AppendOutcome:
        """Commit a batch, in whatever company. Raises what its transaction raises."""
        waiting = _Waiting(batch)
        self._waiting.append(waiting)
        self._start()
        return await waiting.answered

    def _start(self) -> None:
        while self._together < TRANSACTIONS_MAX and (group := self._take()):
            self._together += 1
            self._busy |= {one.producer_id for one in group}
            self._run(self._commit_group(group))

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[_Waiting]:
        """Take those that go next: the first of each producer that has none under way."""
        taken: dict[UUID, _Waiting] = {}
        left: list[_Waiting] = []
        count = 0
        for one in self._waiting:
            if one.answered.done():
                continue
            size = len(one.batch.records)
            fits = not taken or (count + size <= RECORDS_MAX and len(taken) < BATCHES_MAX)
            if one.producer_id in self._busy or one.producer_id in taken or not fits:
                left.append(one)
                continue
            taken[one.producer_id] = one
            count += size
        self._waiting = left
        return [taken[producer_id] for producer_id in sorted(taken)]

    async def _commit_group(self, group: list[_Waiting]) -> None:
        alone: list[_Waiting] = []
        try:
            for one, result in zip(group, await self._commit([one.batch for one in group]), strict=True):
                one.answer(result)
        except LedgerError as error:
            for one in group:
                one.answer(error)
        except Exception as error:  # noqa: BLE001 - whose fault it is shows when each is committed by itself
            if self._log is not None:
                self._log.warning("appends are committed one by one", problem=str(error), count=len(group))
            alone = group
        finally:
            self._together -= 1
            self._busy -= {one.producer_id for one in group} - {one.producer_id for one in alone}
            for one in alone:
                self._run(self._commit_alone(one))
            self._start()

    async def _commit_alone(self, one: _Waiting) -> None:
        try:
            outcome = await commit_around(self._commit_one, one.batch, suspicion=self._suspicion, log=self._log)
            one.answer(outcome)
        except Exception as error:  # noqa: BLE001 - a task's top: the caller hears of it
            one.answer(error)
        finally:
            self._busy.discard(one.producer_id)
            self._start()

    async def _commit(self, batches: Sequence[UsageBatch]) -> list[Result]:
        results = await self._commit_together(batches)
        if any(isinstance(result, AppendOutcome) and result.stored for result in results):
            self._suspicion.stored()
        return results

    async def _commit_one(self, batch: UsageBatch) -> AppendOutcome:
        (result,) = await self._commit([batch])
        if isinstance(result, PreconditionError):
            raise result
        return result
