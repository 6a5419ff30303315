"""Commit a batch around the record that the database refuses, whatever it is: that one goes to quarantine."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import LedgerError
from tollkeeper_ledger.domain.usage import AppendOutcome, Problem
from tollkeeper_ledger.store.usage_attempts import REFUSALS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.domain.usage_batch import UsageBatch

UNSTORABLE = Problem("UNSTORABLE", "")
"""Nothing that a rule of ours names is wrong with the record, and yet it can't be stored."""


IN_A_ROW_MAX = 100
"""Records that go to quarantine behind each other before it is Postgres that is doubted."""

PAUSE_S = 60.0
"""Then one goes each minute, until a record of anybody is stored: somebody may really send nothing else."""


@dataclass(slots=True)
class Suspicion:
    """Doubt that records are bad where many in a row are and none is stored: then it is the database that refuses.

    What is refused stays with its producer, which sends it again. `clock`: monotonic seconds.
    """

    clock: Callable[[], float]
    _in_a_row: int = 0
    _last_s: float = 0.0

    def stored(self) -> None:
        """Note that something was stored: the database takes records."""
        self._in_a_row = 0

    def admit(self) -> None:
        """Let one record go to quarantine. Raises LedgerError LEDGER_UNREACHABLE where it is to stay."""
        left_s = self._last_s + PAUSE_S - self.clock()
        if self._in_a_row >= IN_A_ROW_MAX and left_s > 0:
            raise LedgerError(
                f"the database refuses every record, {self._in_a_row} in a row",
                reason="LEDGER_UNREACHABLE",
                retry_after_ms=int(left_s * 1_000) + 1,
            )
        self._in_a_row += 1
        self._last_s = self.clock()


async def commit_around(
    commit: Callable[[UsageBatch], Awaitable[AppendOutcome]],
    batch: UsageBatch,
    *,
    suspicion: Suspicion,
    first: int = 0,
    log: FilteringBoundLogger | None = None,
) -> AppendOutcome:
    """Commit a batch; where it is refused, in halves, down to the entries that can't be stored.

    `commit` is one transaction; entries before `first` are committed already. Takes about twice the work of the batch
    and 2·log2 of its entries in transactions for each bad record; what is committed stays so if the caller gives up.
    Raises LedgerError LEDGER_UNREACHABLE where so many are refused that it is the database.
    """
    try:
        return await commit(batch)
    except REFUSALS as error:
        last = len(batch.entry_ends)
        if last - first > 1:
            middle = (first + last) // 2
            one = await commit_around(commit, _prefix(batch, middle), suspicion=suspicion, first=first, log=log)
            return _together(one, await commit_around(commit, batch, suspicion=suspicion, first=middle, log=log))
        place = bisect_left(batch.records.seqs, batch.entry_ends[first]) if first < last else len(batch.records)
        if place >= len(batch.records) or place in batch.problems:
            raise
        try:
            suspicion.admit()
        except LedgerError as doubt:
            if log is not None:
                log.exception("Postgres refuses every record; they stay with their producers")
            raise doubt from error
        if log is not None:
            seq, producer = batch.records.seqs[place], batch.source.producer_id.hex
            log.exception("a record can't be stored and goes to quarantine", producer=producer, seq=seq)
        return await commit(replace(batch, problems={**batch.problems, place: UNSTORABLE}))


def _prefix(batch: UsageBatch, entries: int) -> UsageBatch:
    """Give the batch up to, not with, an entry. Columns as they came stay whole: places in them stay true."""
    last_seq = batch.entry_ends[entries - 1]
    count = bisect_left(batch.records.seqs, last_seq + 1)
    holes = [hole for hole in batch.source.holes if hole.last_seq <= last_seq]
    return replace(
        batch,
        source=replace(batch.source, holes=holes, watermark_us=0, closing=False),
        last_seq=last_seq,
        records=batch.records.take(range(count)),
        problems={place: problem for place, problem in batch.problems.items() if place < count},
        entry_ends=batch.entry_ends[:entries],
        entry_h=batch.entry_h[:entries],
        levels={place: changes for place, changes in batch.levels.items() if place < count},
    )


def _together(one: AppendOutcome, other: AppendOutcome) -> AppendOutcome:
    """Give the outcome of a batch whose first part was committed by itself; the second says all verdicts again."""
    return AppendOutcome(
        position=other.position,
        stored=one.stored + other.stored,
        duplicates=one.duplicates + other.duplicates,
        conflicts=one.conflicts + other.conflicts,
        quarantined=one.quarantined + other.quarantined,
        trimmed=one.trimmed,
        verdicts=other.verdicts,
    )
