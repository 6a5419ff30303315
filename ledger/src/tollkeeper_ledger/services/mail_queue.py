"""Queue mails in the transactions that they tell of."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tollkeeper_ledger.store import mails
from tollkeeper_ledger.store.billing_profiles import read_profile

if TYPE_CHECKING:
    from uuid import UUID

    from tollkeeper_ledger.store.money import Billed
    from tollkeeper_ledger.store.pool import Connection

_AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)


async def queue(conn: Connection, billed: Billed, kind: str, *, stage: str = "") -> UUID | None:
    """Queue a mail in the transaction that it tells of; None where the payer has no address.

    One per kind, invoice and stage, however often it is asked.
    """
    profile = await read_profile(conn, billed.account.payer_id)
    if not profile.email:
        return None
    mail = mails.Mail(
        tenant_id=billed.account.payer_id,
        mail_id=uuid.uuid4(),
        kind=kind,
        invoice_id=billed.invoice_id,
        stage=stage,
        recipient=profile.email,
    )
    await mails.queue_mail(conn, mail, now=_AT_ONCE)
    return mail.mail_id
