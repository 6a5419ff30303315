"""Commit usage that comes to the ledger itself: over HTTP, gRPC, OTLP or a topic, not through a sidecar's log.

Each way in is a producer, with numbers without gaps and a hash over its history, and its records go the way of all
others. It keeps no log: who sends is answered when the record is committed, and sends again until then. The receive
time is read under the producer's lock, so its watermark is exact: whatever is committed later was received later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID

from tollkeeper_ledger.domain.errors import InvalidFieldError, LedgerError, OverloadedError, broken_off
from tollkeeper_ledger.domain.usage import CONFLICT
from tollkeeper_ledger.services.pseudonyms import hides, stored_pairs
from tollkeeper_ledger.services.usage_counters import count_readings, keep_counted, rounds_of
from tollkeeper_ledger.store.clock import ledger_now

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tollkeeper_ledger.domain.pseudonyms import PseudonymKey
    from tollkeeper_ledger.domain.usage import AppendOutcome, Problem
    from tollkeeper_ledger.domain.usage_columns import Use
    from tollkeeper_ledger.services.clock import LedgerClock
    from tollkeeper_ledger.services.tenant_directory import TenantDirectory
    from tollkeeper_ledger.services.usage import UsageIngest
    from tollkeeper_ledger.store.pool import Connection
    from tollkeeper_ledger.store.tenants import MeterView

COMMIT_RECORDS_MAX = 5_000
"""Records of one transaction."""
WAITING_RECORDS_MAX = 50_000
"""Records of calls for one tenant that wait or are being committed. A tenant may have as many as are still free: alone
half of all, beside n others like it 1/(n + 2). Source: Choudhury and Hahne, dynamic queue length thresholds for
shared-memory packet switches, 1998."""
FIRST_RECORDS_MAX = 50_000
"""Records above those, for calls of tenants that have none: at least 50 of 1,000 records find room, whatever the
others send."""
SEVERAL_RECORDS_MAX = 25_000
"""Records of calls for several tenants that wait or are being committed: what one of these tenants sends by itself
refuses none of them."""
_RETRY_AFTER_MS = 1_000


class Fate(Enum):
    """What became of a record."""

    RECORDED = "recorded"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one record; `error` says why it is INVALID, its field below the record."""

    fate: Fate
    error: LedgerError | None = None


_RECORDED = Result(Fate.RECORDED)
_Line: TypeAlias = tuple[str, bool]
"""Whose turn it is: a tenant, and whether its calls are for several tenants."""


def input_producer_id(installation_id: bytes, name: str) -> UUID:
    """Give the producer of a way in; every replica has the same."""
    return UUID(bytes=sha256(b"tollkeeper.ledger.input.v1" + installation_id + name.encode()).digest()[:16])


@dataclass(frozen=True, slots=True)
class _Job:
    line: _Line
    uses: Sequence[Use]
    done: asyncio.Future[list[Result]]


class UsageInput:
    """Take records in. Any number of calls at once: those that wait for one transaction share the next one.

    Tenants take turns, and none has all the room: one that sends more than can be committed is refused, the others wait
    for the transaction under way and one call of each tenant before them. A call for several tenants is committed in
    parts, each in its tenant's turn of such parts, and has the room of such calls. A cancelled call may have committed,
    in part or whole; sending again under the same ids tells.
    """

    def __init__(self, ingest: UsageIngest, tenants: TenantDirectory, clock: LedgerClock, *, producer_id: UUID) -> None:
        self._ingest = ingest
        self._tenants = tenants
        self._clock = clock
        self._producer_id = producer_id
        self._queues: dict[_Line, deque[_Job]] = {}
        """Of each line that waits, in the order of their turns."""
        self._held: dict[_Line, int] = {}
        """Records of each line that wait or are being committed."""
        self._waiting = {False: 0, True: 0}
        """Records that wait or are being committed: of calls for one tenant, for several."""
        self._writer: asyncio.Task[None] | None = None

    async def record(self, uses: Sequence[Use | LedgerError]) -> list[Result]:
        """Commit records, and say of each what became of it; an error in the place of a record is its verdict.

        Raises OverloadedError LEDGER_FULL with a time to retry; LedgerError LEDGER_UNREACHABLE where Postgres stays
        away or the commit was broken off. Nothing is known of the call's records then: repeat it.
        """
        checked = await self._checked(uses)
        fit = [use for use in checked if not isinstance(use, LedgerError)]
        verdicts = iter(await self._commit(fit) if fit else ())
        return [Result(Fate.INVALID, one) if isinstance(one, LedgerError) else next(verdicts) for one in checked]

    def waiting_of(self, tenant: str) -> int:
        """Give how many of a tenant's records wait or are being committed."""
        return self._held.get((tenant, False), 0) + self._held.get((tenant, True), 0)

    async def _checked(self, uses: Sequence[Use | LedgerError]) -> list[Use | LedgerError]:
        """Put an error in the place of each record that catalogue or clock refuse; drop or hide what isn't kept."""
        plain = [use for use in uses if not isinstance(use, LedgerError)]
        tenants = await self._tenants.get({use.tenant for use in plain})
        meters = {meter.name: meter for meter in self._tenants.meters}
        if any(meter not in meters for use in plain for meter, _ in use.quantities):
            # It may have been declared a moment ago.
            await self._tenants.catch_up()
            meters = {meter.name: meter for meter in self._tenants.meters}
        keys = await self._tenants.pseudonym_keys(tenants.values()) if hides(meters.values()) else {}
        now_us = self._clock.reading().now_us
        return [
            use
            if isinstance(use, LedgerError)
            else _kept(use, use.tenant in tenants, meters, keys.get(use.tenant), now_us)
            for use in uses
        ]

    async def _commit(self, uses: Sequence[Use]) -> list[Result]:
        parts: dict[str, list[int]] = {}
        for place, use in enumerate(uses):
            parts.setdefault(use.tenant, []).append(place)
        several = len(parts) > 1
        fits = self._has_room_for_several(len(uses)) if several else self._has_room(uses[0].tenant, len(uses))
        if not fits:
            raise OverloadedError("too many records wait to be committed", retry_after_ms=_RETRY_AFTER_MS)
        jobs = [self._enqueue((one, several), [uses[place] for place in places]) for one, places in parts.items()]
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        told = await asyncio.gather(*(job.done for job in jobs))
        results = {
            place: result
            for places, answers in zip(parts.values(), told, strict=True)
            for place, result in zip(places, answers, strict=True)
        }
        return [results[place] for place in range(len(uses))]

    def _has_room(self, tenant: str, count: int) -> bool:
        """Tell whether a call of so many records of one tenant may wait."""
        held, waiting = self._held.get((tenant, False), 0), self._waiting[False]
        if held:
            return held + count <= WAITING_RECORDS_MAX - waiting
        return waiting + count <= WAITING_RECORDS_MAX + FIRST_RECORDS_MAX

    def _has_room_for_several(self, count: int) -> bool:
        return self._waiting[True] + count <= SEVERAL_RECORDS_MAX

    def _enqueue(self, line: _Line, uses: Sequence[Use]) -> _Job:
        job = _Job(line, uses, asyncio.get_running_loop().create_future())
        self._queues.setdefault(line, deque()).append(job)
        self._held[line] = self._held.get(line, 0) + len(uses)
        self._waiting[line[1]] += len(uses)
        return job

    def _take(self) -> list[_Job]:
        """Take what the next transaction commits: of each line that waits a call in turn, until it is full."""
        jobs: list[_Job] = []
        count = 0
        while self._queues:
            line, queue = next(iter(self._queues.items()))
            if jobs and count + len(queue[0].uses) > COMMIT_RECORDS_MAX:
                break
            jobs.append(queue.popleft())
            count += len(jobs[-1].uses)
            del self._queues[line]
            if queue:
                self._queues[line] = queue  # Behind all others.
        return jobs

    def _forget(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            self._waiting[job.line[1]] -= len(job.uses)
            self._held[job.line] -= len(job.uses)
            if not self._held[job.line]:
                del self._held[job.line]

    async def _write(self) -> None:
        """Commit until nothing waits."""
        while self._queues:
            jobs = self._take()
            try:
                await self._write_together(jobs)
            except asyncio.CancelledError:
                # Nobody would commit what still waits until somebody else comes.
                jobs += [job for queue in self._queues.values() for job in queue]
                self._queues.clear()
                raise
            finally:
                self._forget(jobs)
                for job in jobs:
                    _tell(job, broken_off())  # nothing, where it was answered

    async def _write_together(self, jobs: Sequence[_Job]) -> None:
        try:
            verdicts = iter(await self._append([use for job in jobs for use in job.uses]))
        except Exception as error:  # noqa: BLE001 - each job is told its own
            if len(jobs) == 1 or isinstance(error, LedgerError):
                for job in jobs:
                    _tell(job, error)
                return
            # One call's poison is no other's.
            for job in jobs:
                await self._write_together([job])
            return
        for job in jobs:
            told = [next(verdicts) for _ in job.uses]
            if not job.done.done():
                job.done.set_result(told)

    async def _append(self, uses: Sequence[Use]) -> list[Result]:
        if all(use.reading is None for use in uses):
            return await self._append_plain(uses)
        results: dict[int, Result] = {}
        for places in rounds_of(uses):
            results.update(zip(places, await self._append_readings([uses[at] for at in places]), strict=True))
        return [results[at] for at in range(len(uses))]

    async def _append_readings(self, uses: Sequence[Use]) -> list[Result]:
        """Append what readings of counters add, and keep those that were stored, in one transaction."""

        async def commit(conn: Connection) -> list[Result]:
            await self._ingest.need_months(conn, [use.event_us for use in uses], await ledger_now(conn))
            async with conn.transaction():
                now = await self._ingest.lock_input(conn, self._producer_id)
                counting = await count_readings(conn, uses, now=now)
                results = {at: Result(Fate.INVALID, error) for at, error in counting.refused.items()}
                results |= dict.fromkeys(counting.again, Result(Fate.DUPLICATE))
                results |= dict.fromkeys(counting.other, Result(Fate.CONFLICT))
                results |= dict.fromkeys(counting.idle, _RECORDED)
                counted = [uses[at] for at in counting.idle]
                if counting.uses:
                    outcome = await self._ingest.append_input(conn, self._producer_id, counting.uses)
                    told = _results(outcome, len(counting.uses))
                    results |= dict(zip(counting.fit, told, strict=True))
                    counted += [use for use, one in zip(counting.uses, told, strict=True) if one.fate is Fate.RECORDED]
                await keep_counted(conn, counted, now=now)
            return [results[at] for at in range(len(uses))]

        return await self._ingest.attempted(commit)

    async def _append_plain(self, uses: Sequence[Use]) -> list[Result]:
        async def commit(conn: Connection) -> AppendOutcome:
            await self._ingest.need_months(conn, [use.event_us for use in uses], await ledger_now(conn))
            async with conn.transaction():
                return await self._ingest.append_input(conn, self._producer_id, uses)

        return _results(await self._ingest.attempted(commit), len(uses))


def _results(outcome: AppendOutcome, count: int) -> list[Result]:
    """Give what became of each record of an append."""
    first_seq = outcome.position.committed_seq - count + 1
    said = {one.seq - first_seq: _verdict(one.problem) for one in outcome.verdicts}
    return [said.get(place, _RECORDED) for place in range(count)]


def _tell(job: _Job, error: Exception) -> None:
    if not job.done.done():
        job.done.set_exception(error)


def _kept(
    use: Use,
    known: bool,  # noqa: FBT001
    meters: Mapping[str, MeterView],
    key: PseudonymKey | None,
    now_us: int,
) -> Use | LedgerError:
    """Give the record as it is stored, or why it isn't: with declared attributes only, hidden ones as pseudonyms."""
    if not known:
        return _unknown("tenant", "TENANT_UNKNOWN", use.tenant)
    for place, (meter, _) in enumerate(use.quantities):
        if meter not in meters:
            return _unknown(f"quantities[{place}].meter", "METER_UNKNOWN", meter)
    used = [meters[meter] for meter, _ in use.quantities]
    late_s, early_s = min(meter.late_max_s for meter in used), min(meter.early_max_s for meter in used)
    if not now_us - late_s * 1_000_000 <= use.event_us <= now_us + early_s * 1_000_000:
        return InvalidFieldError(
            "event_time",
            "is too late or too far ahead",
            reason="FIELD_OUT_OF_RANGE",
            value=f"{use.event_us} us",
            bound=f"{late_s} s back to {early_s} s ahead",
            remedy="send it in time, and set the caller's clock",
        )
    return replace(use, attributes=stored_pairs(use.attributes, used, key))


def _unknown(field: str, reason: str, name: str) -> InvalidFieldError:
    return InvalidFieldError(field, "does not exist", reason=reason, value=name, remedy="declare it in the catalogue")


def _verdict(problem: Problem | None) -> Result:
    if problem is None:
        return Result(Fate.DUPLICATE)
    if problem == CONFLICT:
        return Result(Fate.CONFLICT)
    return Result(Fate.INVALID, InvalidFieldError(problem.field, "was refused", reason=problem.reason))
