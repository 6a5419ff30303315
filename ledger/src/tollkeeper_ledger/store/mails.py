"""Mails to payers and every try to send them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection, Row


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail that waits to be sent."""

    tenant_id: UUID
    mail_id: UUID
    kind: str
    invoice_id: UUID | None
    """None of an alert, which `stage` names."""
    stage: str
    recipient: str
    queued_at: datetime | None = None
    """None before it is stored."""


@dataclass(frozen=True, slots=True)
class LastTry:
    """The newest try of a mail."""

    attempt: int
    is_handed: bool
    """The server may have been given it."""
    is_ended: bool


async def queue_mails(conn: Connection, queued: Sequence[Mail], *, now: datetime) -> None:
    """Queue mails; nothing where one of its kind, invoice and stage was queued before."""
    if queued:
        await conn.execute(
            sql("mail.queue"),
            now,
            [mail.tenant_id for mail in queued],
            [mail.mail_id for mail in queued],
            [mail.kind for mail in queued],
            [mail.invoice_id for mail in queued],
            [mail.stage for mail in queued],
            [mail.recipient for mail in queued],
        )


async def read_expiring(conn: Connection, *, now: datetime) -> list[Row]:
    """Read the payers whose card is good for 30 more days at most."""
    return await conn.fetch(sql("mail.expiring"), now)


async def was_warned(conn: Connection, mail: Mail) -> bool:
    """Say whether the payer was warned of this card before."""
    found: bool = await conn.fetchval(sql("mail.was_warned"), mail.tenant_id, mail.stage)
    return found


async def claim_mail(conn: Connection, *, now: datetime) -> Mail | None:
    """Take the mail that waits longest, for ten minutes; None where none waits."""
    row = await conn.fetchrow(sql("mail.claim"), now)
    if row is None:
        return None
    return Mail(
        tenant_id=row["tenant_id"],
        mail_id=row["mail_id"],
        kind=row["kind"],
        invoice_id=row["invoice_id"],
        stage=row["stage"],
        recipient=row["recipient"],
        queued_at=row["queued_at"],
    )


async def last_try(conn: Connection, mail: Mail) -> LastTry | None:
    """Read the newest try of a mail."""
    row = await conn.fetchrow(sql("mail.last_attempt"), mail.mail_id)
    if row is None:
        return None
    return LastTry(attempt=row["attempt"], is_handed=row["handed_at"] is not None, is_ended=row["ended_at"] is not None)


async def begin_try(conn: Connection, mail: Mail, number: int, *, now: datetime) -> None:
    """Begin a try."""
    await conn.execute(sql("mail.begin_attempt"), mail.tenant_id, mail.mail_id, number, now)


async def hand_over(conn: Connection, mail: Mail, number: int, *, now: datetime) -> None:
    """Note that the server is about to be given the mail."""
    await conn.execute(sql("mail.hand_over"), mail.mail_id, number, now)


async def end_try(conn: Connection, mail: Mail, number: int, *, now: datetime, reply: str) -> None:
    """End a try with what the server said."""
    await conn.execute(sql("mail.end_attempt"), mail.mail_id, number, now, reply)


async def set_state(conn: Connection, mail: Mail, state: str, *, next_at: datetime) -> None:
    """Set a mail's state and when it is tried next."""
    await conn.execute(sql("mail.set_state"), mail.mail_id, state, next_at)


async def read_content(conn: Connection, invoice_id: UUID | None, *, credit_note: str) -> Row:
    """Read what a mail is made of."""
    row = await conn.fetchrow(sql("mail.content"), invoice_id, credit_note)
    if row is None:
        raise RuntimeError(f"invoice {invoice_id} is gone")
    return row


async def read_mails(conn: Connection, *, count_max: int) -> list[Row]:
    """Read mails, newest first."""
    return await conn.fetch(sql("mail.mails"), count_max)
