"""How far topics are read, in Postgres, and what operators say of producers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class TopicPosition:
    """How far a reader has come in a partition."""

    topic: str
    partition: int
    next_offset: int
    """Everything before it is committed."""
    end_offset: int
    watermark: datetime | None
    """All that was in the partition before this ledger time is committed; None = not known."""


@dataclass(frozen=True, slots=True)
class TopicRow:
    """A partition as its readers said last."""

    consumer_group: str
    topic: str
    partition: int
    next_offset: int
    end_offset: int
    watermark: datetime | None
    state: str
    """`open` or `lost`."""
    seen_at: datetime
    quiet: timedelta
    """Real time since it was heard of."""

    @property
    def name(self) -> str:
        """Give it as operators write it."""
        return f"kafka/{self.consumer_group}/{self.topic}/{self.partition}"


async def put_topics(conn: Connection, group: str, positions: Sequence[TopicPosition]) -> None:
    """Note how far a group has read. Idempotent; a watermark never goes back."""
    await conn.execute(
        sql("producers.put_topics"),
        group,
        [one.topic for one in positions],
        [one.partition for one in positions],
        [one.next_offset for one in positions],
        [one.end_offset for one in positions],
        [one.watermark for one in positions],
    )


async def read_topics(conn: Connection) -> list[TopicRow]:
    """Give every partition that readers told of, in order of group, topic and number."""
    return [TopicRow(**row) for row in await conn.fetch(sql("producers.topics"))]


async def lose_producer(conn: Connection, producer_id: UUID) -> str | None:
    """Give a producer up; gives its state before, None where there is no such producer."""
    found: str | None = await conn.fetchval(sql("producers.lose_producer"), producer_id)
    return found


async def lose_topic(conn: Connection, group: str, topic: str, partition: int) -> str | None:
    """Give a partition up; gives its state before, None where no reader told of it."""
    found: str | None = await conn.fetchval(sql("producers.lose_topic"), group, topic, partition)
    return found


async def mark_safe(conn: Connection, before: datetime) -> datetime:
    """Note that a backup has what was committed before; gives what counts as safe then. It never goes back."""
    found: datetime = await conn.fetchval(sql("producers.mark_safe"), before)
    return found
