"""Months of raw records that are kept as files: what Postgres knows of them, and how they leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg

from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.usage_archive import ArchivedMonth, ArchiveError, span_of_month
from tollkeeper_ledger.store.queries import sql
from tollkeeper_ledger.store.usage_audit import FINDINGS_MAX, LONG_READ_S
from tollkeeper_ledger.store.verifying import link_of_row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.usage_audit import AuditedRecord
    from tollkeeper_ledger.domain.usage_chain import BatchBody
    from tollkeeper_ledger.store.pool import Connection


async def read_months(conn: Connection) -> list[date]:
    """Give the first days of the months whose records are in Postgres."""
    return [row["month"] for row in await conn.fetch(sql("audit.usage_months"))]


async def read_archives(conn: Connection) -> dict[date, tuple[ArchivedMonth, bool]]:
    """Give every month that was ever archived, and whether its records are in the file only, by month."""
    return {
        row["month"]: (
            ArchivedMonth(
                month=row["month"],
                records=row["records"],
                rows_digest=row["rows_digest"],
                file=row["file"],
                file_digest=row["file_digest"],
            ),
            row["away"],
        )
        for row in await conn.fetch(sql("audit.archives"))
    }


async def parts_of(conn: Connection, month: date) -> dict[int, int]:
    """Give how many records of each batch are in a month's file, as Postgres has it."""
    rows = await conn.fetch(sql("audit.parts_of"), month, timeout=LONG_READ_S)
    return {row["batch_id"]: row["records"] for row in rows}


async def stray_parts(conn: Connection) -> list[tuple[int, date]]:
    """Give batches that have records in a month that was never archived, with the month."""
    rows = await conn.fetch(sql("audit.stray_parts"), FINDINGS_MAX, timeout=LONG_READ_S)
    return [(row["batch_id"], row["month"]) for row in rows]


async def rollup_hours(conn: Connection, month: date) -> list[datetime]:
    """Give the hours of UTC in a month that rollups are of."""
    rows = await conn.fetch(sql("audit.rollup_hours"), *span_of_month(month), timeout=LONG_READ_S)
    return [row["hour"] for row in rows]


async def archives_of_batch(conn: Connection, batch_id: int) -> dict[date, str]:
    """Give the names of the files that records of a batch are in alone, by month."""
    return {row["month"]: row["file"] for row in await conn.fetch(sql("audit.archives_of_batch"), batch_id)}


async def archive_at(conn: Connection, at: datetime) -> dict[date, str]:
    """Give the name of the file that records of an event time are in alone, by month; nothing where they are here."""
    return {row["month"]: row["file"] for row in await conn.fetch(sql("audit.archive_at"), at)}


async def archived_counts(conn: Connection, batches: Sequence[int]) -> dict[int, int]:
    """Give how many records of batches are in files only; batches without any are left out."""
    rows = await conn.fetch(sql("audit.archived_counts"), batches)
    return {row["batch_id"]: row["records"] for row in rows}


async def archived_between(conn: Connection, first: datetime, end: datetime) -> list[date]:
    """Give the months of a span whose records are in files only, in order."""
    return [row["month"] for row in await conn.fetch(sql("audit.archives_between"), first, end)]


async def batches_of_month(conn: Connection, first: datetime, end: datetime) -> list[int]:
    """Give the batches that have records of a span, in order."""
    return [row["batch_id"] for row in await conn.fetch(sql("audit.batches_of_month"), first, end)]


async def bodies_of(conn: Connection, batches: Sequence[int]) -> dict[int, BatchBody]:
    """Give what the chain says of batches, by batch."""
    rows = await conn.fetch(sql("audit.links_of_batches"), batches)
    return {row["batch_id"]: link_of_row(row).body for row in rows}


async def open_period(conn: Connection, first: datetime, end: datetime, *, late_after: datetime) -> datetime | None:
    """Give the end of a period that has records of a span and is not billed for good; None where all are.

    `late_after`: late usage may still come of periods that end after it.
    """
    found: datetime | None = await conn.fetchval(sql("audit.open_periods"), first, end, late_after, timeout=LONG_READ_S)
    return found


async def put_records(
    conn: Connection, records: Sequence[AuditedRecord], *, tenants: Mapping[str, UUID], meters: Mapping[str, int]
) -> None:
    """Store records as they were, in the partitions that are there. `tenants` and `meters`: ids by name."""
    await conn.executemany(
        sql("audit.put_record"),
        [
            (
                tenants[one.tenant],
                one.segment_id,
                from_us(one.event_us),
                from_us(one.received_us),
                one.batch_id,
                one.seq,
                one.flags,
                one.id,
                [meters[meter] for meter, _ in one.quantities],
                [units for _, units in one.quantities],
                one.attributes,
                one.row_check,
            )
            for one in records
        ],
    )


async def claim_archive(conn: Connection) -> bool:
    """Take the right to archive until this transaction ends; False where another has it."""
    claimed: bool = await conn.fetchval(sql("audit.claim_archive"), "archiving")
    return claimed


async def hold_months(conn: Connection) -> None:
    """Keep months from being archived until this transaction ends; they wait a moment and then for the next turn.

    First in a transaction that sees one moment: a month that left between that moment and the first look at its records
    would be missing, although nothing says that it is away.
    """
    await conn.execute(sql("audit.hold_months"))


async def archive_month(conn: Connection, month: ArchivedMonth, batches: Mapping[int, int]) -> bool:
    """Drop a month's records, which are in its file; gives whether they were there. `batches`: records of each.

    Raises ArchiveError where Postgres has other records than the file, or somebody reads them for long.
    """
    told = (month.month, month.records, month.rows_digest, month.file, month.file_digest)
    try:
        gone: bool = await conn.fetchval(sql("audit.archive_month"), *told, list(batches), list(batches.values()))
    except (asyncpg.LockNotAvailableError, asyncpg.InvalidParameterValueError) as error:
        raise ArchiveError(str(error)) from error
    return gone
