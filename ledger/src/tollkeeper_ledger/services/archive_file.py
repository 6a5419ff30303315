"""The file of an archived month: Parquet, one row per record, in order of batch and sequence number.

Tenants and meters stand by name, so that the file can be read without Postgres, for as long as anyone wants.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.usage_audit import AuditedRecord, hashes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

_CHUNK = 1 << 20


class MonthFile:
    """Write a month's file: nothing stands under its name before all of it is on disk and was read back."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa  # noqa: PLC0415 - slow to load, and serving needs none of it
        from pyarrow import parquet  # noqa: PLC0415 - likewise

        self._path = path
        self._part = path.with_name(path.name + ".part")
        instant = pa.timestamp("us", tz="UTC")
        self._schema = pa.schema(
            [
                ("tenant", pa.string()),
                ("id", pa.string()),
                ("batch_id", pa.int64()),
                ("seq", pa.int64()),
                ("event_time", instant),
                ("received_at", instant),
                ("flags", pa.int16()),
                ("segment_id", pa.string()),
                ("meters", pa.list_(pa.string())),
                ("units", pa.list_(pa.int64())),
                ("attributes", pa.map_(pa.string(), pa.string())),
                ("row_check", pa.int64()),
            ]
        )
        self._writer = parquet.ParquetWriter(self._part, self._schema, compression="zstd")
        self._digest = hashlib.sha256()
        self.records = 0

    def add(self, records: Sequence[AuditedRecord]) -> None:
        """Write further records, which come after all that were written."""
        import pyarrow as pa  # noqa: PLC0415 - slow to load, and serving needs none of it

        if not records:
            return
        self._writer.write_table(pa.Table.from_pylist([_row(record) for record in records], schema=self._schema))
        for record in records:
            self._digest.update(hashes_of(record)[1])
        self.records += len(records)

    def finish(self) -> tuple[bytes, bytes]:
        """Write the rest, all of it to disk; gives the digests of its records and of its bytes. It is not in its place.

        Raises ValueError where what is read back is not what was written.
        """
        self._writer.close()
        read = hashlib.sha256()
        for record in read_month_file(self._part):
            read.update(hashes_of(record)[1])
        if read.digest() != self._digest.digest():
            raise ValueError(f"{self._part.name}: what is read back is not what was written")
        digest = file_digest(self._part)
        _sync(self._part)
        return read.digest(), digest

    def place(self) -> None:
        """Put what is finished in its place."""
        self._part.replace(self._path)
        _sync(self._path.parent)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing half done behind."""
        try:
            self._writer.close()
        finally:
            self._part.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, so that a crash leaves what is synced in it where it is."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def read_month_file(path: Path) -> Iterator[AuditedRecord]:
    """Give the records of a month's file in order. Their ids are long gone from Postgres, so none is `kept`."""
    from pyarrow import parquet  # noqa: PLC0415 - slow to load, and serving needs none of it

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                yield _record(row)


def find_in_file(path: Path, **values: str | int | datetime) -> list[AuditedRecord]:
    """Give the records of a month's file whose columns have these values, in order.

    Reads of the file only what may have them: records of a batch lie together. Raises OSError and ValueError where it
    can't be read.
    """
    return _filtered(path, [(column, "=", value) for column, value in values.items()])


def records_between(path: Path, first: datetime, end: datetime) -> list[AuditedRecord]:
    """Give the records of a month's file from an event time to another, exclusive, in order; as `find_in_file`."""
    return _filtered(path, [("event_time", ">=", first), ("event_time", "<", end)])


def _filtered(path: Path, wanted: Sequence[tuple[str, str, str | int | datetime]]) -> list[AuditedRecord]:
    from pyarrow import parquet  # noqa: PLC0415 - slow to load, and serving needs none of it otherwise

    return [_record(row) for row in parquet.read_table(path, filters=list(wanted)).to_pylist()]


def file_digest(path: Path) -> bytes:
    """Give SHA-256 over a file's bytes. Raises OSError where it can't be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()


def _record(row: dict[str, Any]) -> AuditedRecord:
    return AuditedRecord(
        tenant=row["tenant"],
        id=row["id"],
        batch_id=row["batch_id"],
        seq=row["seq"],
        event_us=to_us(row["event_time"]),
        received_us=to_us(row["received_at"]),
        flags=row["flags"],
        segment_id=UUID(row["segment_id"]),
        quantities=list(zip(row["meters"], row["units"], strict=True)),
        attributes=dict(row["attributes"]),
        row_check=row["row_check"],
        kept=None,
    )


def _row(record: AuditedRecord) -> dict[str, Any]:
    return {
        "tenant": record.tenant,
        "id": record.id,
        "batch_id": record.batch_id,
        "seq": record.seq,
        "event_time": from_us(record.event_us),
        "received_at": from_us(record.received_us),
        "flags": record.flags,
        "segment_id": str(record.segment_id),
        "meters": [meter for meter, _ in record.quantities],
        "units": [units for _, units in record.quantities],
        "attributes": list(record.attributes.items()),
        "row_check": record.row_check,
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
