"""Allot: many asks of many holders in one transaction, then Redis, then the answers."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import OverloadedError
from tollkeeper_ledger.domain.window_state import Pooled
from tollkeeper_ledger.services.allot_batch import AllotBatch, BatchContext
from tollkeeper_ledger.services.allot_buckets import BucketShards
from tollkeeper_ledger.services.entries import FromBucket, FromWindow
from tollkeeper_ledger.services.openings import Openings
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.retry import retried

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.services.entries import Entry, Result
    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.services.restores import Restores
    from tollkeeper_ledger.services.tenant_directory import TenantDirectory
    from tollkeeper_ledger.store.pool_functions import Call, PoolFunctions

REQUEST_ENTRIES_MAX = 10_000
BATCH_ENTRIES_MAX = 1_000
"""Requests are merged up to so many asks: more would not be faster, and would hold the event loop longer at a time."""

WAITING_ENTRIES_MAX = 40_000


@dataclass(slots=True)
class _Waiting:
    """One RPC's asks, and where its answers go."""

    entries: Sequence[Entry]
    answered: asyncio.Future[list[Result]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class AllotService:
    """Answer asks. While one transaction runs the next one's asks gather, so that many RPCs share a commit.

    A caller that goes away doesn't undo its asks: their answers are kept by request_seq. Those whose turn had not
    come are not served: under load it asks again, and the work for nobody would only grow.
    """

    def __init__(
        self, resources: Resources, tenants: TenantDirectory, functions: PoolFunctions, restores: Restores
    ) -> None:
        self._resources = resources
        self._functions = functions
        self._buckets = BucketShards()
        self._context = BatchContext(
            tenants=tenants,
            pool=resources.pools.ingest,
            clock=resources.clock,
            random_bytes=secrets.token_bytes,
            restores=restores,
            functions=functions,
            openings=Openings(time.monotonic),
        )
        self._restores = restores
        restores.follow(set_back=self._context.days.clear)
        self._waiting: deque[_Waiting] = deque()
        self._waiting_entries = 0
        self._gathered = asyncio.Event()
        self._publishing = asyncio.Lock()
        self._publishers: set[asyncio.Task[None]] = set()

    @property
    def buckets(self) -> BucketShards:
        """The token buckets' shards that this replica knows."""
        return self._buckets

    async def allot(self, entries: Sequence[Entry]) -> list[Result]:
        """Answer each ask in its order. Raises OverloadedError while too many are waiting; nothing was done then."""
        if not entries:
            return []
        if self._waiting_entries + len(entries) > WAITING_ENTRIES_MAX:
            raise OverloadedError(f"{self._waiting_entries} asks are waiting", retry_after_ms=50)
        waiting = _Waiting(entries)
        self._waiting.append(waiting)
        self._waiting_entries += len(entries)
        self._gathered.set()
        return await waiting.answered

    async def run(self) -> None:
        """Serve what gathers, one transaction after the other, until cancelled."""
        while True:
            await self._gathered.wait()
            calls = self._take()
            if not calls:
                continue
            try:
                await self._serve(calls)
            except Exception as error:  # noqa: BLE001 - a loop's top: these callers hear of it, the next are served
                for call in calls:
                    if not call.answered.done():
                        call.answered.set_exception(error)

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        count = 0
        while self._waiting and (not taken or count + len(self._waiting[0].entries) <= BATCH_ENTRIES_MAX):
            call = self._waiting.popleft()
            self._waiting_entries -= len(call.entries)
            if not call.answered.cancelled():
                taken.append(call)
                count += len(call.entries)
        if not self._waiting:
            self._gathered.clear()
        return taken

    async def _serve(self, calls: list[_Waiting]) -> None:
        entries = [entry for call in calls for entry in call.entries]
        results, redis_calls = await self._transact(entries)
        if redis_calls:
            publisher = asyncio.create_task(self._publish(calls, results, redis_calls))
            self._publishers.add(publisher)
            publisher.add_done_callback(self._publishers.discard)
        self._answer(calls, results, waits_for_redis=bool(redis_calls))

    async def _transact(self, entries: Sequence[Entry]) -> tuple[list[Result], list[Call]]:
        async def attempt() -> tuple[list[Result], list[Call]]:
            batch = AllotBatch(self._context, self._buckets, entries)
            await batch.prepare()
            async with transaction(self._resources.pools.ingest) as conn:
                outcome = await batch.run(conn)
            self._restores.committed(batch.witness)
            return outcome

        return await self._restores.noticed(lambda: retried(attempt, log=self._resources.log))

    async def _publish(self, calls: list[_Waiting], results: list[Result], redis_calls: list[Call]) -> None:
        """Tell Redis, in commit order, then answer what had to wait for it. An unknown outcome is not repeated here."""
        async with self._publishing:
            await self._functions.call(redis_calls)
        self._answer(calls, results, waits_for_redis=False)

    @staticmethod
    def _answer(calls: list[_Waiting], results: list[Result], *, waits_for_redis: bool) -> None:
        """Answer each RPC that isn't answered; those that name a pool or bucket only after Redis was told."""
        begin = 0
        for call in calls:
            own = results[begin : begin + len(call.entries)]
            begin += len(call.entries)
            if not call.answered.done() and not (waits_for_redis and any(_needs_redis(result) for result in own)):
                call.answered.set_result(own)


def _needs_redis(result: Result) -> bool:
    return isinstance(result, FromBucket) or (isinstance(result, FromWindow) and isinstance(result.answer, Pooled))
