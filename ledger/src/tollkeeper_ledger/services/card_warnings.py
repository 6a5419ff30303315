"""Warn payers by mail of cards that expire."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from tollkeeper_ledger.store import mails
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from datetime import datetime

    from tollkeeper_ledger.store.pool import Pool


async def warn_of_cards(pool: Pool, *, now: datetime) -> int:
    """Queue a mail to every payer whose card is good for 30 more days at most, once per card; give how many such.

    `now` is real time: cards expire by it. Who has no address or no invoice yet is not warned.
    """
    async with transaction(pool) as conn:
        found = await mails.read_expiring(conn, now=now)
        for row in found:
            mail = mails.Mail(
                tenant_id=row["tenant_id"],
                mail_id=uuid.uuid4(),
                kind="card_expires",
                invoice_id=row["invoice_id"],
                stage=f"{row['method_label']}/{row['expires']}",
                recipient=row["email"],
            )
            if not await mails.was_warned(conn, mail):
                await mails.queue_mails(conn, [mail], now=now)
    return len(found)
