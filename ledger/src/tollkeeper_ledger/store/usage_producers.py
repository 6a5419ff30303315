"""Producers in Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage_producer import Producer
from tollkeeper_ledger.store.literals import array_literal
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection


async def lock_producer(conn: Connection, producer_id: UUID) -> Producer | None:
    """Lock a producer until the transaction ends and give it; None where it was never opened."""
    row = await conn.fetchrow(sql("usage.find_producer"), producer_id)
    if row is None:
        return None
    return Producer(
        producer_id=producer_id,
        incarnation=row["incarnation"],
        holder=row["holder"],
        committed_seq=row["committed_seq"],
        h=row["h"],
    )


async def add_producer(conn: Connection, producer: Producer, *, version: int, now: datetime) -> None:
    """Add a producer; one that is there stays as it is."""
    await conn.execute(
        sql("usage.add_producer"), producer.producer_id, producer.incarnation, producer.holder, version, producer.h, now
    )


async def announce_producer(
    conn: Connection, producer_id: UUID, *, incarnation: int, holder: bytes, version: int, now: datetime
) -> None:
    """Take over the announcement of a producer's process."""
    await conn.execute(sql("usage.open_producer"), producer_id, incarnation, holder, version, now)


async def advance_producer(
    conn: Connection, producer_id: UUID, *, committed_seq: int, h: bytes, watermark: datetime | None, closing: bool
) -> None:
    """Move a producer to the end of its batch. Its watermark never goes back."""
    await conn.execute(sql("usage.advance_producer"), producer_id, committed_seq, h, watermark, closing)


async def see_producer(conn: Connection, producer_id: UUID) -> None:
    """Note that a producer was heard of."""
    await conn.execute(sql("usage.see_producer"), producer_id)


async def safe_seq(conn: Connection, producer_id: UUID, *, before: datetime) -> int:
    """Give the last sequence number that was committed by then; 0 = none."""
    found: int | None = await conn.fetchval(sql("usage.safe_seq"), producer_id, before)
    return found or 0


async def serve_tenants(conn: Connection, producer_id: UUID, tenant_ids: Iterable[UUID]) -> None:
    """Note tenants that a producer serves. Idempotent."""
    await conn.execute(sql("usage.serve_tenants"), producer_id, array_literal(sorted(set(tenant_ids))))
