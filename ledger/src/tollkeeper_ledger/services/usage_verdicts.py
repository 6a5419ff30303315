"""Say again what an earlier append decided: its answer may have been lost, and somebody waits for the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage import Verdict
from tollkeeper_ledger.domain.usage_judgement import NOBODY
from tollkeeper_ledger.store.usage_batches import find_quarantined, find_taken

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.usage_batch import UsageBatch
    from tollkeeper_ledger.store.pool import Connection


async def earlier_verdicts(
    conn: Connection, batch: UsageBatch, *, count: int, tenant_ids: Sequence[UUID]
) -> list[Verdict]:
    """Give the verdicts on the first `count` records of a batch, all of them committed before.

    `tenant_ids`: per tenant of the batch. Resends are rare, so this costs two reads only where there is one. An id that
    has expired since tells nothing any more.
    """
    if not count:
        return []
    producer_id = batch.source.producer_id
    seqs = batch.records.seqs
    refused = await find_quarantined(
        conn, producer_id, tenant_ids=[*tenant_ids, NOBODY], first_seq=seqs[0], last_seq=seqs[count - 1]
    )
    # Whoever has a problem by itself was refused; what it holds may be nothing that Postgres can be asked about.
    places = [
        place
        for place in range(count)
        if place not in batch.problems
        and seqs[place] not in refused
        and tenant_ids[batch.records.tenant[place]] != NOBODY
    ]
    said = {seq: Verdict(seq, problem) for seq, problem in refused.items()}
    if places:
        records = batch.records.take(places)
        taken = await find_taken(conn, producer_id, tenant_ids=tenant_ids, records=records)
        said.update({seq: Verdict(seq, None) for seq in taken})
    return [said[seq] for seq in sorted(said)]
