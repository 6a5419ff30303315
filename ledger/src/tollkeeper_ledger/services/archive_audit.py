"""Check months whose raw records are in files: the files against the chain, and rollups against the files."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from itertools import groupby, islice
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.usage_archive import named_file, span_of_month
from tollkeeper_ledger.domain.usage_audit import Finding, check_batch, compare_rollups, hashes_of
from tollkeeper_ledger.domain.usage_rollup import RawRecord, roll_up
from tollkeeper_ledger.services.archive_file import file_digest, read_month_file, records_between
from tollkeeper_ledger.services.batch_records import records_of_batch
from tollkeeper_ledger.store import usage_archive as store
from tollkeeper_ledger.store import usage_audit as audit
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.damaged import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path
    from uuid import UUID

    from tollkeeper_ledger.domain.usage_archive import ArchivedMonth
    from tollkeeper_ledger.domain.usage_audit import AuditedRecord, Checked, Found
    from tollkeeper_ledger.domain.usage_rollup import MeterFacts
    from tollkeeper_ledger.store.pool import Connection

_BATCHES_AT_ONCE = 20
_HOUR_US = 3_600_000_000


class _Fold:
    """What the records of a file come to."""

    def __init__(self) -> None:
        self.records = 0
        self.batches: dict[int, int] = {}
        self.hours_us: set[int] = set()
        self.digest = sha256()

    def add(self, batch_id: int, records: list[AuditedRecord]) -> None:
        self.records += len(records)
        self.batches[batch_id] = self.batches.get(batch_id, 0) + len(records)
        for record in records:
            self.hours_us.add(record.event_us // _HOUR_US * _HOUR_US)
            self.digest.update(hashes_of(record)[1])


class _Month:
    """An archived month, and what was found so far."""

    def __init__(self, directory: Path, archived: ArchivedMonth) -> None:
        self.directory = directory
        self.archived = archived
        self.path = directory / archived.file
        self.label = f"{archived.month:%Y-%m}"
        self.fold = _Fold()
        self.records: list[Finding] = []
        """About its records: told when what leads to the files is known to be right."""
        self.hours_us: list[int] = []
        """Whose rollups its file can be held against."""

    def finding(self, problem: str) -> Finding:
        return Finding("usage_archive", f"month {self.label}", problem)


async def check_archives(
    conn: Connection, directory: Path | None, meters: Mapping[str, MeterFacts], checked: Checked
) -> AsyncIterator[Found]:
    """Hold every archived month's file against what Postgres has of it and the chain, its rollups against the file.

    Without a directory months are only counted, as Postgres has them. One that was brought back is checked by its rows.
    """
    months = []
    for archived, away in (await store.read_archives(conn)).values():
        if not away:
            continue
        checked.archived += archived.records
        yield checked
        if directory is not None:
            months.append(_Month(directory, archived))
            for finding in await _wrong_with(conn, months[-1], meters):
                yield finding
    for batch_id, day in await store.stray_parts(conn):
        yield Finding("usage_archive_batch", _part(batch_id, f"{day:%Y-%m}"), "is of no archived month")
    for month in months:
        for finding in month.records:
            yield finding
    tenants = await audit.tenant_names(conn) if months else {}
    for month in months:
        async for found in _check_rollups(conn, month, meters, tenants, checked):
            yield found


async def _wrong_with(conn: Connection, month: _Month, meters: Mapping[str, MeterFacts]) -> list[Finding]:
    """Give what is wrong with a month's file; that it can't be read, where somebody left anything there."""
    try:
        async with conn.transaction():
            return [finding async for finding in _check_month(conn, month, meters)]
    except UNREADABLE as error:
        return [month.finding(f"its file can't be read: {error!r}")]


async def _check_month(conn: Connection, month: _Month, meters: Mapping[str, MeterFacts]) -> AsyncIterator[Finding]:
    """Hold a month's file against what Postgres has of it."""
    archived = month.archived
    try:
        named_file(archived.month, archived.file)
    except ValueError as error:
        yield month.finding(str(error))
        return
    try:
        found = await asyncio.to_thread(file_digest, month.path)
    except OSError as error:
        yield month.finding(f"its file can't be read: {error}")
        return
    if found != archived.file_digest:
        yield month.finding(f"its file {archived.file} is not the one that was written")
        return
    await _read_file(conn, month, meters)
    fold = month.fold
    if (fold.records, fold.digest.digest()) != (archived.records, archived.rows_digest):
        yield month.finding(f"its file has {fold.records} records, or others than it says")
    first, end = (to_us(instant) for instant in span_of_month(archived.month))
    if any(not first <= hour_us < end for hour_us in fold.hours_us):
        yield month.finding("its file has records of another month")
        return
    kept = await store.parts_of(conn, archived.month)
    for batch_id in sorted(kept.keys() | fold.batches.keys()):
        if kept.get(batch_id) != fold.batches.get(batch_id):
            told = f"says {kept.get(batch_id)} records, its file has {fold.batches.get(batch_id)}"
            yield Finding("usage_archive_batch", _part(batch_id, month.label), told)
    stored = {to_us(hour) for hour in await store.rollup_hours(conn, archived.month)}
    month.hours_us = sorted(fold.hours_us | stored)


async def _read_file(conn: Connection, month: _Month, meters: Mapping[str, MeterFacts]) -> None:
    """Hold the records of a file against the links of their batches; batches that straddle months are put together."""
    names = {facts.meter_id: name for name, facts in meters.items()}
    now_us = to_us(await ledger_now(conn))
    batches = _batches_of(read_month_file(month.path))
    while page := await asyncio.to_thread(lambda: list(islice(batches, _BATCHES_AT_ONCE))):
        bodies = await store.bodies_of(conn, [batch_id for batch_id, _ in page])
        for batch_id, records in page:
            await asyncio.to_thread(month.fold.add, batch_id, records)
            body = bodies.get(batch_id)
            if body is None:
                month.records.append(month.finding(f"has records of batch {batch_id}, which stands in no link"))
                continue
            whole = records
            if len(records) != body.stored:
                try:
                    whole = await records_of_batch(conn, batch_id, names, month.directory)
                except PreconditionError:
                    continue  # The file of another month can't be read, which is told of that month.
            month.records += check_batch(body, whole, now_us=now_us)


def _batches_of(records: Iterator[AuditedRecord]) -> Iterator[tuple[int, list[AuditedRecord]]]:
    for batch_id, group in groupby(records, key=lambda record: record.batch_id):
        yield batch_id, list(group)


async def _check_rollups(
    conn: Connection,
    month: _Month,
    meters: Mapping[str, MeterFacts],
    tenants: Mapping[UUID, str],
    checked: Checked,
) -> AsyncIterator[Found]:
    """Derive every hour's rollups of a month from its file again."""
    ids = {name: tenant_id for tenant_id, name in tenants.items()}
    facts = {one.meter_id: one for one in meters.values()}
    names = {facts.meter_id: name for name, facts in meters.items()}
    for hour_us in month.hours_us:
        hour = from_us(hour_us)
        read = await asyncio.to_thread(records_between, month.path, hour, from_us(hour_us + _HOUR_US))
        records = [
            RawRecord(
                tenant_id=ids[record.tenant],
                segment_id=record.segment_id,
                flags=record.flags,
                event_us=record.event_us,
                id=record.id,
                quantities=[(meters[meter].meter_id, units) for meter, units in record.quantities if meter in meters],
                attributes=record.attributes,
            )
            for record in read
            if record.tenant in ids
        ]
        kept = await audit.rollups_of_hour(conn, hour)
        derived = await asyncio.to_thread(roll_up, records, facts)
        for finding in compare_rollups(kept, derived, tenants=tenants, names=names):
            yield finding
        checked.hours += 1
        yield checked


def _part(batch_id: int, month: str) -> str:
    return f"batch {batch_id}, month {month}"
