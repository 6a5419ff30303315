"""Producers in Postgres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage_producer import Producer
from tollkeeper_ledger.store.literals import array_literal
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a producer is committed now."""

    producer_id: UUID
    committed_seq: int
    h: bytes
    watermark: datetime | None
    """All that it received before is committed; None = it has not said."""
    closing: bool


async def lock_producer(conn: Connection, producer_id: UUID) -> Producer | None:
    """Lock a producer until the transaction ends and give it; None where it was never opened."""
    return (await lock_producers(conn, [producer_id])).get(producer_id)


async def lock_producers(conn: Connection, producer_ids: Sequence[UUID]) -> dict[UUID, Producer]:
    """Lock producers, in the order of their ids, until the transaction ends and give those that were ever opened."""
    return {
        row["producer_id"]: Producer(
            producer_id=row["producer_id"],
            incarnation=row["incarnation"],
            holder=row["holder"],
            committed_seq=row["committed_seq"],
            h=row["h"],
            server_started_at=row["server_started_at"],
        )
        for row in await conn.fetch(sql("usage.find_producers"), producer_ids)
    }


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


async def advance_producers(conn: Connection, moved: Sequence[Advance]) -> None:
    """Move producers, which are locked, to the end of their batches. A watermark never goes back."""
    await conn.execute(
        sql("usage.advance_producers"),
        [one.producer_id for one in moved],
        [one.committed_seq for one in moved],
        [one.h for one in moved],
        [one.watermark for one in moved],
        [one.closing for one in moved],
    )


async def see_producer(conn: Connection, producer_id: UUID) -> None:
    """Note that a producer was heard of."""
    await conn.execute(sql("usage.see_producer"), producer_id)


async def safe_seq(conn: Connection, producer_id: UUID, *, before: datetime) -> int:
    """Give the last sequence number that was committed by then, or is in a backup; 0 = none."""
    found: int | None = await conn.fetchval(sql("usage.safe_seq"), producer_id, before)
    return found or 0


async def serve_tenants(conn: Connection, served: Sequence[tuple[UUID, UUID]]) -> None:
    """Note producers and the tenants that they serve. Idempotent."""
    await conn.execute(
        sql("usage.serve_tenants"),
        array_literal(tenant_id for _, tenant_id in served),
        array_literal(producer_id for producer_id, _ in served),
    )
