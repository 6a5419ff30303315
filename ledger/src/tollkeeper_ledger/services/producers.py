"""Readers of topics say how far they are; operators say whom nobody need wait for, and what a backup has."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError
from tollkeeper_ledger.domain.usage import SEQ_MAX
from tollkeeper_ledger.services.notes import check_note, need_note
from tollkeeper_ledger.store import usage_topics as store
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.clock import ledger_now

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.pool import Connection
    from tollkeeper_ledger.store.usage_topics import TopicPosition

POSITIONS_MAX = 1_000
GROUP_BYTES_MAX = 255
PARTITION_MAX = 2**31 - 1
IN_FLIGHT_MAX = timedelta(minutes=5)
"""An append that was noted before a backup began was committed within so long, or never."""

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}\Z")
_PARTITION_NAME = re.compile(r"kafka/(.+)/([A-Za-z0-9._-]{1,249})/([0-9]{1,10})\Z")
_PRODUCER = re.compile(r"[0-9a-f]{32}\Z")


async def report_topics(conn: Connection, group: str, positions: Sequence[TopicPosition]) -> datetime:
    """Note how far a reader has come; gives ledger time. Idempotent. No watermark is believed beyond that.

    Raises InvalidFieldError.
    """
    if not 1 <= len(group.encode()) <= GROUP_BYTES_MAX or not group.isprintable():
        raise InvalidFieldError("group", "is no name of a group", bound=f"1 to {GROUP_BYTES_MAX} printable bytes")
    if len(positions) > POSITIONS_MAX:
        raise InvalidFieldError(
            "positions", "are too many", reason="FIELD_TOO_LONG", value=len(positions), bound=str(POSITIONS_MAX)
        )
    if len({(one.topic, one.partition) for one in positions}) != len(positions):
        raise InvalidFieldError("positions", "name a partition twice", reason="FIELD_REPEATED")
    for at, one in enumerate(positions):
        _check(one, field=f"positions[{at}]")
    now = await ledger_now(conn)
    early = [one if one.watermark is None or one.watermark <= now else replace(one, watermark=now) for one in positions]
    await store.put_topics(conn, group, early)
    return now


def _check(one: TopicPosition, *, field: str) -> None:
    if not _TOPIC.match(one.topic):
        raise InvalidFieldError(f"{field}.topic", "is no name of a topic", value=one.topic[:64])
    if not 0 <= one.partition <= PARTITION_MAX:
        raise InvalidFieldError(f"{field}.partition", "is out of range", reason="FIELD_OUT_OF_RANGE")
    if not (0 <= one.next_offset <= SEQ_MAX and 0 <= one.end_offset <= SEQ_MAX):
        raise InvalidFieldError(f"{field}.next_offset", "is no offset", reason="FIELD_OUT_OF_RANGE")


async def mark_lost(conn: Connection, producer: str, note: str, act: Act) -> str:
    """Say that nobody need wait for a producer or a partition of a topic; gives its state before. Audited.

    It is waited for again once its watermark moves on. Raises PreconditionError PRODUCER_UNKNOWN, InvalidFieldError.
    """
    need_note(note)
    if _PRODUCER.match(producer):
        before = await store.lose_producer(conn, UUID(hex=producer))
    elif (named := _PARTITION_NAME.match(producer)) and int(named[3]) <= PARTITION_MAX:
        before = await store.lose_topic(conn, named[1], named[2], int(named[3]))
    else:
        raise InvalidFieldError(
            "producer", "names none", value=producer[:64], bound="32 hexadecimal digits, or kafka/GROUP/TOPIC/PARTITION"
        )
    if before is None:
        raise PreconditionError(
            f"nothing was heard of {producer}",
            reason="PRODUCER_UNKNOWN",
            metadata={"field": "producer", "value": producer, "remedy": "name one that `GetIngestStatus` lists"},
        )
    entry = AuditEntry(
        subject=f"producer/{producer}", tenant_id=None, before={"state": before}, after={"state": "lost", "note": note}
    )
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action="MarkProducerLost", request_id=act.request_id)
    return before


async def mark_safe(conn: Connection, begun: datetime | None, note: str, act: Act) -> datetime:
    """Say that a backup that was begun then is made; gives before when commits count as safe. Audited.

    Raises InvalidFieldError for a time to come.
    """
    check_note(note)
    begun = begun or act.now
    if begun > act.now:
        raise InvalidFieldError(
            "at", "is still to come", reason="FIELD_OUT_OF_RANGE", value=begun.isoformat(), bound=act.now.isoformat()
        )
    safe = await store.mark_safe(conn, begun - IN_FLIGHT_MAX)
    entry = AuditEntry(
        subject="safe", tenant_id=None, before=None, after={"safe_before": safe.isoformat(), "note": note}
    )
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action="MarkSafe", request_id=act.request_id)
    return safe
