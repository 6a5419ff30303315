"""Take in what the provider says of disputes, as it was read there; each only moves forward."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain import receivable as owed
from tollkeeper_ledger.services.mail_queue import queue_to_seller
from tollkeeper_ledger.services.receivables import change_receivable, need_billed
from tollkeeper_ledger.store import money
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.disputes import Dispute, lock_dispute, put_dispute

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.domain.receivable import Change
    from tollkeeper_ledger.store.pool import Connection

_RANKS: Mapping[str, int] = MappingProxyType({"": 0, "warned": 1, "open": 2, "won": 3, "lost": 3})


async def dispute_said(
    conn: Connection,
    invoice_id: UUID,
    said: Mapping[str, Any],
    *,
    provider: str,
    now: datetime,
    log: FilteringBoundLogger | None,
) -> None:
    """Book what moved since the provider was last heard of a dispute, and say loudly that there is one.

    A late or repeated answer changes nothing: a dispute goes from warned to open to won or lost, and what was missed on
    the way is booked, and so is the provider's fee; the seller gets a mail of each step. Money in another currency than
    the invoice's is not booked, only told.
    """
    billed = await need_billed(conn, invoice_id)
    balance_minor = await money.lock_account(conn, billed.account)
    dispute_id = str(said["id"])
    before = await lock_dispute(conn, provider, dispute_id)
    stage, amount_minor, fee_before = before or ("", int(said["amount"]), 0)
    reached = _stage_of(str(said.get("status", "")))
    if str(said.get("currency", "")).upper() != billed.account.currency:
        reached = "warned"
    if _RANKS[reached] < _RANKS[stage] or (_RANKS[reached] == _RANKS[stage] and reached != stage):
        return
    steps: list[Callable[..., Change]] = []
    if _RANKS[stage] < _RANKS["open"] <= _RANKS[reached]:
        steps.append(owed.dispute)
    if reached == "won" != stage:
        steps.append(owed.dispute_won)
    elif reached == "lost" != stage:
        steps.append(partial(owed.dispute_lost, balance_minor=balance_minor))
    fee_minor = _fee_of(said, billed.account.currency)
    amounts = [(step, amount_minor) for step in steps]
    if fee_minor != fee_before:
        amounts.append((owed.dispute_fee, fee_minor - fee_before))
    ledger_time = await ledger_now(conn)
    for step, amount in amounts:
        booked = partial(step, amount_minor=amount)
        await change_receivable(conn, billed, booked, subject=dispute_id, now=ledger_time)
    due = (said.get("evidence_details") or {}).get("due_by")
    found = Dispute(
        provider=provider,
        dispute_id=dispute_id,
        amount_minor=amount_minor,
        currency=str(said.get("currency", "")).upper(),
        reason=str(said.get("reason", "")),
        status=str(said.get("status", "")),
        stage=reached,
        evidence_by=datetime.fromtimestamp(int(due), UTC) if due else None,
        fee_minor=fee_minor,
    )
    await put_dispute(conn, billed, found, now=now)
    if reached != stage:
        await queue_to_seller(conn, billed, "dispute", stage=f"{dispute_id}/{reached}")
    if log is not None and reached != stage:
        log.error("payment disputed", invoice=billed.number, dispute=dispute_id, stage=reached, reason=found.reason)


def _fee_of(said: Mapping[str, Any], currency: str) -> int:
    """Sum what the provider kept for a dispute in the invoice's currency; fees in another one are only told there."""
    moved = [one for one in said.get("balance_transactions") or () if isinstance(one, dict)]
    return sum(int(one.get("fee") or 0) for one in moved if str(one.get("currency", "")).upper() == currency)


def _stage_of(status: str) -> str:
    """Give the stage; of words that we don't know, no money is said to have moved."""
    if status in ("needs_response", "under_review"):
        return "open"
    return status if status in ("won", "lost") else "warned"
