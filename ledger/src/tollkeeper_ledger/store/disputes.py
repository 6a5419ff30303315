"""Payments that payers had their banks take back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from datetime import datetime

    from tollkeeper_ledger.store.money import Billed
    from tollkeeper_ledger.store.pool import Connection, Row


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute as the provider has it."""

    provider: str
    dispute_id: str
    amount_minor: int
    currency: str
    reason: str
    status: str
    stage: str
    """`warned`, `open`, `won` or `lost`."""
    evidence_by: datetime | None
    fee_minor: int
    """What the provider kept for it."""


async def lock_dispute(conn: Connection, provider: str, dispute_id: str) -> tuple[str, int, int] | None:
    """Lock a dispute and give its stage, amount and fee; None where it is new."""
    row = await conn.fetchrow(sql("disputes.stage"), provider, dispute_id)
    return None if row is None else (row["stage"], row["amount_minor"], row["fee_minor"])


async def put_dispute(conn: Connection, billed: Billed, found: Dispute, *, now: datetime) -> None:
    """Keep a dispute as it is now."""
    await conn.execute(
        sql("disputes.put"),
        billed.account.payer_id,
        found.provider,
        found.dispute_id,
        billed.invoice_id,
        found.amount_minor,
        found.currency,
        found.reason,
        found.status,
        found.stage,
        found.evidence_by,
        now,
        found.fee_minor,
    )


async def read_disputes(conn: Connection, *, count_max: int) -> list[Row]:
    """Read disputes, open ones first."""
    return await conn.fetch(sql("disputes.disputes"), count_max)
