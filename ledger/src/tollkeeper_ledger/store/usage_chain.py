"""The chain over batches in Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.usage_chain import CHAIN_START, BatchBody, link_hash
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.store.pool import Connection


async def claim_stream(conn: Connection, stream: int) -> bool:
    """Take a stream for as long as this session lives; False where another session has it."""
    claimed: bool = await conn.fetchval(sql("usage.claim_stream"), stream)
    return claimed


async def add_links(conn: Connection, bodies: Sequence[BatchBody], *, stream: int) -> None:
    """Add batches, in their order, to the end of a stream. Holds the stream's head until commit."""
    head = await conn.fetchrow(sql("usage.chain_head"), stream)
    if head is None:
        await conn.execute(sql("usage.add_stream"), stream, CHAIN_START)
        head = await conn.fetchrow(sql("usage.chain_head"), stream)
    if head is None:
        raise RuntimeError(f"stream {stream} of the chain has no head")
    position, linked = head["position"], head["hash"]
    links = []
    for body in bodies:
        position += 1
        linked = link_hash(stream=stream, position=position, previous=linked, body_digest=body.digest())
        links.append(_link(body, stream=stream, position=position, linked=linked))
    await conn.executemany(sql("usage.add_link"), links)
    stored = sum(body.stored for body in bodies)
    quarantined = sum(body.conflicts + body.quarantined for body in bodies)
    await conn.execute(sql("usage.move_head"), stream, position, linked, stored, quarantined)


def _link(body: BatchBody, *, stream: int, position: int, linked: bytes) -> tuple[object, ...]:
    return (
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
