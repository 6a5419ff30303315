"""The chain over batches in Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage_chain import CHAIN_START, BatchBody, link_hash
from tollkeeper_ledger.store.clock import from_us
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from tollkeeper_ledger.store.pool import Connection


async def add_link(conn: Connection, body: BatchBody, *, stream: int) -> bytes:
    """Add a batch to the end of a stream and give the link's hash. Holds the stream's head until commit."""
    head = await conn.fetchrow(sql("usage.chain_head"), stream)
    if head is None:
        await conn.execute(sql("usage.add_stream"), stream, CHAIN_START)
        head = await conn.fetchrow(sql("usage.chain_head"), stream)
    if head is None:
        raise RuntimeError(f"stream {stream} of the chain has no head")
    position: int = head["position"] + 1
    linked = link_hash(stream=stream, position=position, previous=head["hash"], body_digest=body.digest())
    await conn.execute(
        sql("usage.add_link"),
        stream,
        position,
        body.batch_id,
        body.producer_id,
        body.incarnation,
        body.first_seq,
        body.last_seq,
        body.h,
        body.merkle_root,
        body.stored,
        body.duplicates,
        body.conflicts,
        body.quarantined,
        body.holes,
        linked,
        from_us(body.committed_us),
        body.rows_digest,
        body.refused_digest,
    )
    return linked
