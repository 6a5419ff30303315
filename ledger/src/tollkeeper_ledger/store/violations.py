"""Windows that were used beyond their limits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.alerts import WindowUse
    from tollkeeper_ledger.store.pool import Connection, Row


async def note_violations(conn: Connection, seen: Sequence[tuple[WindowUse, str]], *, now: datetime) -> None:
    """Keep how far windows are beyond their limits, each with its enforcement; figures only rise."""
    if not seen:
        return
    await conn.execute(
        sql("alerts.note_violations"),
        now,
        [use.tenant_id for use, _ in seen],
        [use.window_id for use, _ in seen],
        [use.limit for use, _ in seen],
        [enforcement for _, enforcement in seen],
        [json.dumps(use.key_values, ensure_ascii=False) for use, _ in seen],
        [from_us(use.start_us) for use, _ in seen],
        [from_us(use.end_us) for use, _ in seen],
        [use.amount for use, _ in seen],
        [use.consumed for use, _ in seen],
        [use.over for use, _ in seen],
    )


async def list_violations(
    conn: Connection, *, before: tuple[datetime, UUID] | None, count_max: int, only: UUID | None
) -> list[Row]:
    """Read violations, those that began last first."""
    at, window = before or (None, None)
    return await conn.fetch(sql("alerts.violations"), at, None if window is None else window.bytes, count_max, only)
