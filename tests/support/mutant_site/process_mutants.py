"""Processes with one rule broken on purpose: each is found by its trial in `process_finders`."""

from __future__ import annotations

import asyncio
import importlib.abc
import importlib.machinery
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

HELD_S = 1.5
"""How long a mutant keeps a transaction open after it has answered: long enough for a kill -9 on a slow machine."""

UNCOMMITTED_S = 10.0
"""The same where nobody waits for it: what was answered must not be committed before the kill, however slow that is."""


@dataclass(frozen=True, slots=True)
class ProcessMutant:
    """A broken rule: where it stands, how it is broken, and why that must not pass."""

    process: str
    """`sidecar` or `ledger`."""
    module: str
    """The module that is changed once it is imported."""
    reason: str
    change: Callable[[Any], None]


def _stop_without_return(control: Any) -> None:
    async def drained(_plane: object, _longest_s: float) -> bool:
        return True

    control._drained = drained
    begin, control_run = "begin_drain", control.run

    async def run(plane: Any, *args: Any, **options: Any) -> Any:
        class NeverDrains:
            def __getattr__(self, name: str) -> Any:
                return (lambda: None) if name == begin else getattr(plane, name)

        return await control_run(NeverDrains(), *args, **options)

    control.run = run


def _watch_without_resume(watch: Any) -> None:
    put_tenant = watch.Stream.put_tenant

    def forgetful(self: Any, view: Any, *, resume_change: int = 0) -> Any:
        if resume_change and view.wire_id not in self._sent:
            self._sent[view.wire_id] = view.change
            return False
        return put_tenant(self, view, resume_change=resume_change)

    watch.Stream.put_tenant = forgetful


def _cached_heartbeat(connection: Any) -> None:
    async def ping(self: Any, _connection: object) -> None:
        while True:
            self._ping_sent_s = connection.boot_s()
            self._hear("PONG")
            await asyncio.sleep(self._ping_interval_s)

    connection.NoticeLink._ping = ping


def _append_answered_before_commit(usage: Any) -> None:
    append, append_batches = usage.UsageIngest.append, usage.append_batches
    early: dict[Any, asyncio.Future[Any]] = {}
    running: set[asyncio.Task[Any]] = set()

    async def append_and_tell(conn: Any, batches: Any, **options: Any) -> Any:
        results = await append_batches(conn, batches, **options)
        held = False
        for batch, result in zip(batches, results, strict=True):
            told = early.pop(batch.source.producer_id, None)
            # One without records is committed at once: the next one would wait for it, and be sent anew.
            if told is not None and not told.done() and len(batch.records) and not isinstance(result, Exception):
                told.set_result(result)
                held = True
        if held:
            await asyncio.sleep(UNCOMMITTED_S)
        return results

    async def answered_early(self: Any, request: Any) -> Any:
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        early[request.producer_id] = told
        task = asyncio.create_task(append(self, request))
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
        return told.result() if told.done() else await task

    usage.append_batches = append_and_tell
    usage.UsageIngest.append = answered_early


def _ids_claimed_first(append: Any) -> None:
    import asyncpg  # noqa: PLC0415 - only the ledger has it at hand
    from tollkeeper_ledger.config import Settings  # noqa: PLC0415 - the same
    from tollkeeper_ledger.store.pool import SEARCH_PATH  # noqa: PLC0415 - the same

    claim_ids = append.claim_ids
    own: list[Any] = []

    async def claim_first(_conn: object, claim: Any) -> Any:
        if not own:
            settings = {"role": "tollkeeper_ingest", "search_path": SEARCH_PATH}
            own.append(await asyncpg.connect(Settings().database_url, server_settings=settings))
        taken = await claim_ids(own[0], claim)
        await asyncio.sleep(HELD_S)
        return taken

    append.claim_ids = claim_first


def _allot_answered_before_commit(allot: Any) -> None:
    running: set[asyncio.Task[Any]] = set()

    async def transact(self: Any, entries: Sequence[Any]) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def commit() -> None:
            batch = allot.AllotBatch(self._context, self._buckets, entries)
            await batch.prepare()
            async with allot.transaction(self._resources.pools.ingest) as conn:
                done.set_result(await batch.run(conn))
                await asyncio.sleep(UNCOMMITTED_S)

        task = asyncio.create_task(commit())
        running.add(task)
        task.add_done_callback(running.discard)
        return await done

    allot.AllotService._transact = transact


MUTANTS: dict[str, ProcessMutant] = {
    "stop_without_return": ProcessMutant(
        "sidecar",
        "tollkeeper_sidecar.control",
        "A clean stop that keeps its leases takes units from everybody until the window ends.",
        _stop_without_return,
    ),
    "cached_heartbeat": ProcessMutant(
        "sidecar",
        "tollkeeper_sidecar.redis_connection",
        "Heartbeats answered from a cache keep proofs of exhaustion alive that nobody can take back.",
        _cached_heartbeat,
    ),
    "watch_without_resume": ProcessMutant(
        "ledger",
        "tollkeeper_ledger.services.watch",
        "A stream that comes back and is told that nothing changed goes on with a limit that is no more.",
        _watch_without_resume,
    ),
    "append_answered_before_commit": ProcessMutant(
        "ledger",
        "tollkeeper_ledger.services.usage",
        "Usage acknowledged before the commit is lost with the process that knew of it.",
        _append_answered_before_commit,
    ),
    "ids_claimed_first": ProcessMutant(
        "ledger",
        "tollkeeper_ledger.services.usage_append",
        "Ids claimed in a transaction of their own make the resent record a duplicate of nothing.",
        _ids_claimed_first,
    ),
    "allot_answered_before_commit": ProcessMutant(
        "ledger",
        "tollkeeper_ledger.services.allot",
        "Units leased before the commit are leased again by the ledger that starts next.",
        _allot_answered_before_commit,
    ),
}


class _Changer(importlib.abc.MetaPathFinder):
    """Changes one module right after it was imported."""

    def __init__(self, mutant: ProcessMutant, armed_at: str) -> None:
        self._mutant, self._armed_at = mutant, armed_at

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module as everybody would, and have it changed."""
        if fullname != self._mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            self._mutant.change(module)
            Path(self._armed_at).touch()

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


def arm(name: str, *, armed_at: str) -> None:
    """Break a rule in this process; the file `armed_at` says that it is broken."""
    sys.meta_path.insert(0, _Changer(MUTANTS[name], armed_at))
