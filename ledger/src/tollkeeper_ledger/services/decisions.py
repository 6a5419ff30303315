"""Store what limits decided, as sidecars tell it: each batch once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.decisions import add_counts, add_entries, take_batch
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.store.decisions import DecisionCount, DecisionEntry
    from tollkeeper_ledger.store.pool import Pool


@dataclass(frozen=True, slots=True)
class Batch:
    """What a holder tells at once; `batch_seq` counts its batches from 1."""

    holder: bytes
    batch_seq: int
    counts: Sequence[DecisionCount]
    entries: Sequence[DecisionEntry]


@dataclass(frozen=True, slots=True)
class Stored:
    """What came of a batch."""

    repeated: bool
    """It had been stored before."""
    unknown: int
    """Counts and entries that named a tenant which does not exist."""


async def store_decisions(pool: Pool, batch: Batch) -> Stored:
    """Store a batch whole or not at all; one that is not later than the holder's last adds nothing.

    A holder sends the next batch only when it knows that the one before is stored, so whatever is earlier was.
    """
    async with transaction(pool) as conn:
        if not await take_batch(conn, batch.holder, batch.batch_seq):
            return Stored(repeated=True, unknown=0)
        named = {one.tenant for one in batch.counts} | {one.tenant for one in batch.entries}
        ids = await find_tenant_ids(conn, named)
        counts = [(ids[one.tenant], one) for one in batch.counts if one.tenant in ids]
        entries = [(ids[one.tenant], one) for one in batch.entries if one.tenant in ids]
        if counts:
            await add_counts(conn, counts, day=(await ledger_now(conn)).date())
        if entries:
            await add_entries(conn, entries)
    unknown = len(batch.counts) + len(batch.entries) - len(counts) - len(entries)
    return Stored(repeated=False, unknown=unknown)
