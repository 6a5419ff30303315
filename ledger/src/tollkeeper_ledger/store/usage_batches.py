"""Batches in Postgres: ids, records, sums, what was refused, holes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import asyncpg

from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.usage import Problem
from tollkeeper_ledger.store.literals import array_literal, number_literal, number_literals
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date, datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.usage import Hole
    from tollkeeper_ledger.domain.usage_batch import Records
    from tollkeeper_ledger.domain.usage_rollup import Part
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class IdClaim:
    """Ids to claim, as columns of equal length."""

    batch_ids: Sequence[int]
    starts: Sequence[int]
    """Per batch: where its records begin, from 0."""
    tenant_ids: Sequence[UUID]
    tenant: Sequence[int]
    """Per record: index into tenant_ids."""
    ids: Sequence[str]
    seqs: Sequence[int]
    hashes: Sequence[bytes]
    all_free: bool = False
    """Whether to begin as if nobody had any: faster where that is so, about twice the work where not."""


@dataclass(frozen=True, slots=True)
class NewRecords:
    """Records to store, as columns of equal length."""

    batch_ids: Sequence[int]
    starts: Sequence[int]
    """Per batch: where its records begin, from 0."""
    parts: Sequence[Part]
    """Tenant, segment and flags that records have together."""
    part: Sequence[int]
    """Per record: index into parts."""
    shapes: Sequence[Sequence[int]]
    """Meter ids that records have together."""
    shape: Sequence[int]
    """Per record: index into shapes."""
    ids: Sequence[str]
    seqs: Sequence[int]
    event_us: Sequence[int]
    received_us: Sequence[int]
    units: Sequence[tuple[int, ...]]
    attributes: Sequence[str]
    """Per record: JSON without line breaks."""
    checks: Sequence[int]
    """Per record: what the row carries of its own hash."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A record for quarantine."""

    tenant_id: UUID
    """All zeros where the tenant is unknown."""
    seq: int
    reason: str
    field: str
    content_hash: bytes
    record: bytes
    """Canonical JSON."""
    row_check: int
    """What the row carries of its own hash."""


async def find_tenants(conn: Connection, wire_ids: Iterable[str]) -> dict[str, UUID]:
    """Give the ids of those tenants that exist."""
    # None has a line break: what has one, or what text can't hold, is nobody's.
    possible = [wire_id for wire_id in wire_ids if "\0" not in wire_id and "\n" not in wire_id]
    rows = await conn.fetch(sql("usage.tenant_ids"), "\n".join(possible))
    return {wire_id: tenant_id for wire_id, tenant_id in rows}  # noqa: C416 - rows are no tuples


async def next_batches(conn: Connection, count: int) -> list[int]:
    """Take the numbers of batches, ascending."""
    return [row["number"] for row in await conn.fetch(sql("usage.next_batches"), count)]


async def claim_ids(conn: Connection, claim: IdClaim) -> dict[int, bool]:
    """Claim the ids of records that nobody has, in the caller's transaction; wait for who is claiming the same.

    Gives, for each record whose id was taken (by an earlier one of this claim as well), its place and whether the
    one that has it has the same content.
    """
    text, separator = _joined(claim.ids)
    arguments = (
        array_literal(claim.tenant_ids),
        number_literal([place + 1 for place in claim.tenant]),
        text,
        separator,
        number_literal(claim.seqs),
        b"".join(claim.hashes),
        claim.batch_ids,
        [start + 1 for start in claim.starts],
    )
    if claim.all_free and await _claim_free(conn, arguments):
        return {}
    done = await conn.execute(sql("usage.claim_ids"), *arguments)
    if int(done.rpartition(" ")[2]) == len(claim.ids):
        return {}
    rows = await conn.fetch(sql("usage.taken_ids"), *arguments)
    return {row["place"]: row["same"] for row in rows}


async def _claim_free(conn: Connection, arguments: Sequence[object]) -> bool:
    """Claim all ids or, where one was taken, none."""
    try:
        async with conn.transaction():
            await conn.execute(sql("usage.claim_free_ids"), *arguments)
    except asyncpg.UniqueViolationError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class RecordTexts:
    """Records as a statement takes them: columns that became text."""

    tenants: Sequence[str]
    """Per part: its tenant's id."""
    segments: Sequence[str]
    """Per part: its segment's id."""
    part: str
    """Per record: its part, from 1, as an array literal."""
    units: str
    """Per record: a line, its units as an array literal."""
    arguments: tuple[object, ...]


def texts_of(records: NewRecords) -> RecordTexts:
    """Make text of columns. CPU-bound, some microseconds a record."""
    text, separator = _joined(records.ids)
    tenants = [str(part.tenant_id) for part in records.parts]
    segments = [str(part.segment_id) for part in records.parts]
    part = number_literal([place + 1 for place in records.part])
    units = number_literals(records.units)
    arguments = (
        array_literal(tenants),
        array_literal(segments),
        number_literal([part.flags for part in records.parts]),
        part,
        [number_literal(shape) for shape in records.shapes],
        number_literal([place + 1 for place in records.shape]),
        text,
        separator,
        number_literal(records.seqs),
        number_literal(records.event_us),
        number_literal(records.received_us),
        units,
        "\n".join(records.attributes),
        records.batch_ids,
        number_literal(records.checks),
        [start + 1 for start in records.starts],
    )
    return RecordTexts(tenants, segments, part, units, arguments)


async def add_records(conn: Connection, texts: RecordTexts) -> None:
    """Store records whose ids these batches have claimed. Their months must exist."""
    await conn.execute(sql("usage.add_records"), *texts.arguments)


async def add_quarantine(
    conn: Connection, refused: Sequence[Refused], *, producer_id: UUID, batch_id: int, now: datetime
) -> None:
    """Keep records that were not stored, with why."""
    await conn.execute(
        sql("usage.add_quarantine"),
        producer_id,
        batch_id,
        now,
        [one.tenant_id for one in refused],
        [one.seq for one in refused],
        [one.reason for one in refused],
        [one.field for one in refused],
        [one.content_hash for one in refused],
        [one.record for one in refused],
        [one.row_check for one in refused],
    )


async def audit_holes(conn: Connection, holes: Sequence[Hole], *, producer_id: UUID, now: datetime) -> None:
    """Note in the audit log that sequence numbers were taken by damage."""
    said = [json.dumps(_said(hole)) for hole in holes]
    subjects = [f"producer/{producer_id.hex}/{hole.first_seq}" for hole in holes]
    await conn.execute(sql("usage.audit_holes"), now, f"producer/{producer_id.hex}", subjects, said)


def _said(hole: Hole) -> dict[str, object]:
    told: dict[str, object] = {
        "first_seq": hole.first_seq,
        "last_seq": hole.last_seq,
        "reason": hole.reason.replace("\0", "?"),
    }
    return {**told, "content_hash": hole.content_hash.hex()} if hole.content_hash else told


async def find_quarantined(
    conn: Connection, producer_id: UUID, *, tenant_ids: Sequence[UUID], first_seq: int, last_seq: int
) -> dict[int, Problem]:
    """Give why records of a producer were refused, by number, both ends included."""
    rows = await conn.fetch(sql("usage.quarantined"), producer_id, tenant_ids, first_seq, last_seq)
    return {row["seq"]: Problem(row["reason"], row["field"]) for row in rows}


async def find_taken(
    conn: Connection, producer_id: UUID, *, tenant_ids: Sequence[UUID], records: Records
) -> Sequence[int]:
    """Give the numbers of those committed records of a producer whose id is kept for another record."""
    text, separator = _joined(records.ids)
    rows = await conn.fetch(
        sql("usage.taken_elsewhere"),
        array_literal(tenant_ids),
        number_literal([place + 1 for place in records.tenant]),
        text,
        separator,
        number_literal(records.seqs),
        producer_id,
    )
    return [row["seq"] for row in rows]


async def find_stored(
    conn: Connection, asked: Sequence[tuple[UUID, str, int | None]]
) -> dict[tuple[UUID, str], tuple[dict[str, str], bytes]]:
    """Give attributes and content hashes of stored records by (tenant, id); archived ones are left out.

    `asked`: tenant id, id, and event time in microseconds; None = at any time, which looks through every month.
    """
    found: dict[tuple[UUID, str], tuple[dict[str, str], bytes]] = {}
    placed = {(tenant_id, record_id, event_us) for tenant_id, record_id, event_us in asked if event_us is not None}
    others = {(tenant_id, record_id) for tenant_id, record_id, event_us in asked if event_us is None}
    for statement, columns in (
        ("usage.stored_at", [(*key, from_us(event_us)) for *key, event_us in placed]),
        ("usage.stored_of_ids", list(others)),
    ):
        if columns:
            rows = await conn.fetch(sql(statement), *map(list, zip(*columns, strict=True)))
            found |= {(row["tenant_id"], row["id"]): (row["attributes"], row["content_hash"]) for row in rows}
    return found


async def make_month(conn: Connection, month: date) -> None:
    """Make the partitions of the month that starts on this day; nothing happens where they are there."""
    await conn.execute(sql("usage.make_month"), month)


def _joined(texts: Sequence[str]) -> tuple[str, str]:
    """Join texts by a character that is in none of them; Postgres takes one text far faster than an array."""
    joined = "\n".join(texts)
    if joined.count("\n") == len(texts) - 1:
        return joined, "\n"
    used = set("".join(texts))
    characters = map(chr, chain(range(1, 0xD800), range(0xE000, 0x110000)))
    separator = next(character for character in characters if character not in used)
    return separator.join(texts), separator
