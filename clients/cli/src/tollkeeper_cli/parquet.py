"""Write reports and records as Parquet."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any

from tollkeeper_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tollkeeper_cli.output import Row

_ROWS_PER_GROUP = 50_000


class UsageOutput(StrEnum):
    """A usage report's form."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


def write_figures(file: Path, rows: Sequence[Row], columns: Sequence[str], *, texts: Sequence[str]) -> None:
    """Write a report. Sums are decimals of 38 digits, values texts of exact decimals, starts UTC instants."""
    import pyarrow as pa  # noqa: PLC0415 - slow to load, and most commands don't need it

    plain = {"meter", "aggregation", "value", "unit", *texts}
    kinds: dict[str, Any] = {
        "start": pa.timestamp("us", tz="UTC"),
        "sum": pa.decimal128(38, 0),
        **dict.fromkeys(plain, pa.string()),
    }
    schema = pa.schema([(name, kinds.get(name, pa.int64())) for name in columns])
    told = [{**row, "start": _instant(row["start"])} for row in rows]
    _write(file, schema, iter([told]))


def write_records(file: Path, rows: Iterable[Row]) -> None:
    """Write stored records: units and attributes as maps, event times as UTC instants."""
    import pyarrow as pa  # noqa: PLC0415 - slow to load, and most commands don't need it

    schema = pa.schema(
        [
            ("id", pa.string()),
            ("event_time", pa.timestamp("us", tz="UTC")),
            ("units", pa.map_(pa.string(), pa.int64())),
            ("attributes", pa.map_(pa.string(), pa.string())),
            ("producer_id", pa.string()),
            ("seq", pa.uint64()),
            ("flags", pa.uint32()),
        ]
    )
    told = ([_record(row) for row in group] for group in _groups(rows))
    _write(file, schema, told)


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while group := list(islice(left, _ROWS_PER_GROUP)):
        yield group


def _record(row: Row) -> dict[str, Any]:
    told: dict[str, Any] = {**row, "event_time": _instant(row["event_time"])}
    for name in ("units", "attributes"):
        told[name] = list(told[name].items())
    return told


def _instant(text: object) -> datetime | None:
    return datetime.fromisoformat(str(text)) if text else None


def _write(file: Path, schema: Any, groups: Iterator[list[dict[str, Any]]]) -> None:
    import pyarrow as pa  # noqa: PLC0415 - slow to load, and most commands don't need it
    from pyarrow import parquet  # noqa: PLC0415 - likewise

    try:
        with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for rows in groups:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    except OSError as error:
        raise UsageError(f"{file}: {error}") from error
