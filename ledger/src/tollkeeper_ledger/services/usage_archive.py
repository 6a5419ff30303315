"""Put months of raw records into files, and bring them back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.usage_archive import (
    LATE_FOR,
    ArchivedMonth,
    ArchiveError,
    due_months,
    file_name,
    named_file,
    span_of_month,
)
from tollkeeper_ledger.domain.usage_audit import check_batch
from tollkeeper_ledger.services.archive_file import MonthFile, file_digest, make_directory, read_month_file
from tollkeeper_ledger.store import usage_archive as store
from tollkeeper_ledger.store import usage_audit as audit
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.damaged import UNREADABLE
from tollkeeper_ledger.store.pool import connection, transaction
from tollkeeper_ledger.store.usage_batches import make_month
from tollkeeper_ledger.store.usage_rollups import all_meters

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.domain.usage_audit import AuditedRecord
    from tollkeeper_ledger.store.pool import Connection, Pool

_BATCHES_AT_ONCE = 20
_RECORDS_AT_ONCE = 10_000


class Archiver:
    """Keep raw records for so many whole months after their own, then in files alone.

    A month goes when every period that has records of it is billed, and only as the chain says it was committed. Any
    number may run, and be stopped at any moment: the file is complete before the records go.
    """

    def __init__(self, pool: Pool, directory: Path, *, months_kept: int, log: FilteringBoundLogger) -> None:
        self._pool = pool
        self._directory = directory
        self._months_kept = months_kept
        self._log = log

    async def archive_due(self) -> list[ArchivedMonth]:
        """Archive every month that is due; gives them. One that an operator brought back stays."""
        async with connection(self._pool) as conn:
            today = (await ledger_now(conn)).date()
            known = await store.read_archives(conn)
            months = [month for month in await store.read_months(conn) if month not in known]
        done = []
        for month in due_months(months, today=today, kept=self._months_kept):
            try:
                archived = await self.archive(month)
            except (ArchiveError, OSError, ValueError) as error:
                # A month may have its reason to stay; the others have none.
                self._log.warning("month not archived", month=f"{month:%Y-%m}", error=str(error))
                continue
            if archived is not None:
                done.append(archived)
        return done

    async def archive(self, month: date) -> ArchivedMonth | None:
        """Archive one month; None where it has no records, or is away already.

        Raises ArchiveError: a period with records of it is not billed for good, its ids are still kept, a record is not
        what was committed, somebody reads the records for long, another archives a month, or the file that it was in
        before it was brought back is gone.
        """
        async with transaction(self._pool) as guard:
            await audit.allow_pauses(guard)
            if not await store.claim_archive(guard):
                raise ArchiveError(f"{month:%Y-%m} stays: another process is archiving a month")
            counts: dict[int, int] = {}
            archived = await self._write_file(guard, month, counts)
            # Whoever lost the claim, with the connection, drops nothing: another may be writing the file by now.
            if archived is None or not await store.archive_month(guard, archived, counts):
                return None
        self._log.info("month archived", month=f"{month:%Y-%m}", records=archived.records, file=archived.file)
        return archived

    async def _write_file(self, guard: Connection, month: date, counts: dict[int, int]) -> ArchivedMonth | None:
        """Write a month's file and count its records by batch; None where there are none. `guard` has the claim."""
        first, end = span_of_month(month)
        async with connection(self._pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            await store.hold_months(conn)
            await audit.allow_pauses(conn)
            late_after = await ledger_now(conn) - LATE_FOR
            unbilled = await store.open_period(conn, first, end, late_after=late_after)
            if unbilled is not None:
                told = f"a period up to {unbilled.isoformat()} is not billed yet, or late usage of it"
                raise ArchiveError(f"{month:%Y-%m} stays: {told}")
            batches = await store.batches_of_month(conn, first, end)
            if not batches:
                return None
            before, _ = (await store.read_archives(conn)).get(month, (None, False))
            await asyncio.to_thread(make_directory, self._directory)
            path = self._directory / file_name(month)
            with await asyncio.to_thread(MonthFile, path) as file:
                names = {facts.meter_id: name for name, facts in (await all_meters(conn)).items()}
                now_us = to_us(await ledger_now(conn))
                for at in range(0, len(batches), _BATCHES_AT_ONCE):
                    page = batches[at : at + _BATCHES_AT_ONCE]
                    records = await _checked_records(conn, page, names, now_us=now_us)
                    kept = [one for one in records if to_us(first) <= one.event_us < to_us(end)]
                    if any(one.kept is not None for one in kept):
                        raise ArchiveError(f"{month:%Y-%m} stays: its ids have not expired (`ledger jobs`)")
                    for one in kept:
                        counts[one.batch_id] = counts.get(one.batch_id, 0) + 1
                    await asyncio.to_thread(file.add, kept)
                    # Says that the claim is still ours, and keeps its transaction from being idle for too long.
                    await store.claim_archive(guard)
                rows_digest, digest = await asyncio.to_thread(file.finish)
                await store.claim_archive(guard)
                made = ArchivedMonth(month, file.records, rows_digest, path.name, digest)
                if before is None or before.file_digest == digest:
                    await asyncio.to_thread(file.place)
                elif not await asyncio.to_thread(_is_file, path, before.file_digest):
                    told = f"{path} is not the file that was written when it was archived first: put that back"
                    raise ArchiveError(f"{month:%Y-%m} stays: {told}")
                # Else the same records have other bytes today, as of another version of Parquet: the file stays.
                return replace(made, file_digest=before.file_digest) if before is not None else made

    async def bring_back(self, month: date) -> int:
        """Put the records of an archived month into Postgres again; gives how many. It stays until it is archived anew.

        Raises ArchiveError: the month is not away, or its file is not the one that was written.
        """
        async with transaction(self._pool) as conn:
            if not await store.claim_archive(conn):
                raise ArchiveError(f"{month:%Y-%m} stays: another process is archiving a month, or bringing one back")
            archived, away = (await store.read_archives(conn)).get(month, (None, False))
            if archived is None or not away:
                raise ArchiveError(f"{month:%Y-%m} is not archived")
            try:
                path = self._directory / named_file(month, archived.file)
                digest = await asyncio.to_thread(file_digest, path)
            except (OSError, ValueError) as error:
                raise ArchiveError(f"{month:%Y-%m} stays: {error}") from error
            if digest != archived.file_digest:
                raise ArchiveError(f"{path} is not the file that was written when {month:%Y-%m} was archived")
            await audit.allow_pauses(conn)
            await make_month(conn, month)
            tenants = {name: tenant_id for tenant_id, name in (await audit.tenant_names(conn)).items()}
            meters = {name: facts.meter_id for name, facts in (await all_meters(conn)).items()}
            records = read_month_file(path)
            try:
                while page := await asyncio.to_thread(lambda: list(islice(records, _RECORDS_AT_ONCE))):
                    await store.put_records(conn, page, tenants=tenants, meters=meters)
            except UNREADABLE as error:
                raise ArchiveError(f"{path} has no records that could have been archived: {error!r}") from error
        self._log.info("month brought back", month=f"{month:%Y-%m}", records=archived.records, file=str(path))
        return archived.records


def _is_file(path: Path, digest: bytes) -> bool:
    try:
        return file_digest(path) == digest
    except OSError:
        return False


async def _checked_records(
    conn: Connection, batches: list[int], names: Mapping[int, str], *, now_us: int
) -> list[AuditedRecord]:
    """Give the records of batches in order. Raises ArchiveError where they aren't those of the chain."""
    rows = await audit.batch_rows(conn, batches, names)
    bodies = await store.bodies_of(conn, batches)
    away = await store.archived_counts(conn, batches)
    records = []
    for batch in batches:
        body = bodies.get(batch)
        if body is None:
            raise ArchiveError(f"batch {batch} stands in no link of the chain")
        for finding in check_batch(body, rows[batch], now_us=now_us, away=away.get(batch, 0)):
            raise ArchiveError(f"{finding.table}: {finding.row} {finding.problem}")
        records += rows[batch]
    return records
