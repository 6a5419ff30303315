"""Queue mails in the transactions that they tell of."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tollkeeper_ledger.store import mails
from tollkeeper_ledger.store.billing_profiles import read_profiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.billing_profile import BillingProfile
    from tollkeeper_ledger.store.money import Billed
    from tollkeeper_ledger.store.pool import Connection

_AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)


async def queue(conn: Connection, billed: Billed, kind: str, *, stage: str = "") -> UUID | None:
    """Queue a mail in the transaction that it tells of; None where the payer has no address.

    One per kind, invoice and stage, however often it is asked.
    """
    profiles = await read_profiles(conn, [billed.account.payer_id])
    queued = await queue_all(conn, [billed], profiles, kind, stage=stage)
    return queued[0] if queued else None


async def queue_all(
    conn: Connection,
    told: Sequence[Billed],
    profiles: Mapping[UUID, BillingProfile],
    kind: str,
    *,
    stage: str = "",
) -> list[UUID]:
    """Queue a mail about each invoice to its payer, whose profile is given, and give their ids; see `queue`."""
    queued = [
        _mail(billed, kind, stage=stage, recipient=recipient)
        for billed in told
        if (recipient := profiles[billed.account.payer_id].email)
    ]
    await mails.queue_mails(conn, queued, now=_AT_ONCE)
    return [mail.mail_id for mail in queued]


async def queue_to_seller(conn: Connection, billed: Billed, kind: str, *, stage: str) -> None:
    """Queue a mail about an invoice to the address of its seller; none where it has no address. Once, as `queue`."""
    recipient = json.loads(billed.document)["seller"]["email"]
    if recipient:
        await mails.queue_mails(conn, [_mail(billed, kind, stage=stage, recipient=recipient)], now=_AT_ONCE)


async def queue_alerts(conn: Connection, told: Sequence[tuple[UUID, str, UUID]]) -> None:
    """Queue a mail about each alert: payer, address, alert. Once per alert."""
    queued = [
        mails.Mail(
            tenant_id=payer_id,
            mail_id=uuid.uuid4(),
            kind="alert",
            invoice_id=None,
            stage=str(alert_id),
            recipient=recipient,
        )
        for payer_id, recipient, alert_id in told
    ]
    await mails.queue_mails(conn, queued, now=_AT_ONCE)


def _mail(billed: Billed, kind: str, *, stage: str, recipient: str) -> mails.Mail:
    return mails.Mail(
        tenant_id=billed.account.payer_id,
        mail_id=uuid.uuid4(),
        kind=kind,
        invoice_id=billed.invoice_id,
        stage=stage,
        recipient=recipient,
    )
