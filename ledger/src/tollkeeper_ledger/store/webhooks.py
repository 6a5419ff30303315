"""Receivers of alerts, and messages to them. Times are real time."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection, Row


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to one receiver about one alert."""

    tenant_id: UUID
    webhook_id: UUID
    alert_id: UUID
    body: bytes


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message that is this worker's for two minutes."""

    tenant_id: UUID
    message_id: UUID
    webhook_id: UUID
    body: bytes
    tries: int
    """This one included."""
    url: str
    secrets: tuple[str, ...]
    """As they are stored."""


async def add_webhook(conn: Connection, webhook_id: UUID, *, url: str, only: UUID | None, secret: str) -> None:
    """Add a receiver of one tenant's alerts, or of all; `secret` as it is stored."""
    await conn.execute(sql("webhooks.add"), webhook_id, url, only, secret)


async def rotate_secret(conn: Connection, webhook_id: UUID, *, secret: str) -> bool:
    """Sign with another secret as well, and no longer with the one before the newest; False: no such receiver.

    `secret` as it is stored.
    """
    return await conn.fetchval(sql("webhooks.rotate"), webhook_id, secret) is not None


async def remove_webhook(conn: Connection, webhook_id: UUID) -> bool:
    """Send to a receiver no more, and forget its secrets; False: there is none."""
    if await conn.fetchval(sql("webhooks.remove"), webhook_id) is None:
        return False
    # A statement of its own, which sees what was queued while the first one waited for it.
    await conn.execute(sql("webhooks.give_up"), webhook_id)
    return True


async def read_secrets(conn: Connection, webhook_id: UUID) -> Sequence[str]:
    """Read a receiver's secrets as they are stored, the newest first; none of one that is removed."""
    return await conn.fetchval(sql("webhooks.secrets"), webhook_id) or ()


async def read_webhooks(conn: Connection) -> list[Row]:
    """Read receivers, oldest first."""
    return await conn.fetch(sql("webhooks.webhooks"))


async def read_receivers(conn: Connection, tenant_ids: Collection[UUID]) -> list[Row]:
    """Read who hears of tenants' alerts."""
    return await conn.fetch(sql("webhooks.receivers"), list(tenant_ids))


async def queue_messages(conn: Connection, queued: Sequence[NewMessage], *, now: datetime) -> None:
    """Queue messages in the transaction that they tell of, one per receiver and alert."""
    if queued:
        await conn.execute(
            sql("webhooks.queue"),
            now,
            [one.tenant_id for one in queued],
            [uuid.uuid4() for _ in queued],
            [one.webhook_id for one in queued],
            [one.alert_id for one in queued],
            [one.body for one in queued],
        )


async def claim_message(conn: Connection, *, now: datetime, but: Collection[UUID]) -> Claimed | None:
    """Take the message that waits longest, of other receivers than these; None where none waits."""
    row = await conn.fetchrow(sql("webhooks.claim"), now, list(but))
    if row is None:
        return None
    return Claimed(
        tenant_id=row["tenant_id"],
        message_id=row["message_id"],
        webhook_id=row["webhook_id"],
        body=row["body"],
        tries=row["tries"],
        url=row["url"],
        secrets=tuple(row["secrets"]),
    )


async def end_try(
    conn: Connection, message: Claimed, *, state: str, next_at: datetime, status: int, reply: str
) -> None:
    """Keep what became of a try."""
    await conn.execute(
        sql("webhooks.end_try"), message.tenant_id, message.message_id, message.tries, state, next_at, status, reply
    )


async def replay(conn: Connection, *, now: datetime, message_id: UUID | None, webhook_id: UUID | None) -> int:
    """Send again one message, or all of a receiver that were given up; gives how many."""
    count: int = await conn.fetchval(sql("webhooks.replay"), now, message_id, webhook_id)
    return count


async def list_messages(
    conn: Connection, *, before: tuple[datetime, UUID] | None, count_max: int, state: str | None
) -> list[Row]:
    """Read messages, newest first."""
    at, message_id = before or (None, None)
    return await conn.fetch(sql("webhooks.messages"), at, message_id, count_max, state)


async def expire_messages(conn: Connection, *, age: timedelta, count_max: int) -> int:
    """Forget the oldest messages queued so long ago, sent or given up, at most so many; give how many."""
    done = await conn.execute(sql("webhooks.expire"), age, count_max)
    return int(done.rpartition(" ")[2])
