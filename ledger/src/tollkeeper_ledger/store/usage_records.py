"""Stored records, read one by one or in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.usage_voids import StoredRecord
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection


async def stored_records(conn: Connection, tenant_id: UUID, ids: Sequence[str]) -> dict[str, StoredRecord]:
    """Give those records of a tenant whose ids are kept, by id."""
    rows = await conn.fetch(sql("usage.stored_records"), tenant_id, ids)
    return {
        row["id"]: StoredRecord(
            id=row["id"],
            event_us=to_us(row["event_time"]),
            flags=row["flags"],
            quantities=list(zip(row["meters"], row["units"], strict=True)),
            attributes=row["attributes"],
        )
        for row in rows
    }
