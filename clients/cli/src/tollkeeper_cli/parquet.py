"""Write reports, records and money as Parquet.

A file stands under its name only when it is whole: rows go into a file beside it, which is renamed at the end.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from decimal import Context, Decimal, Inexact, InvalidOperation
from itertools import islice
from typing import TYPE_CHECKING, Any

from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.files import whole_file
from tollkeeper_cli.output import Amount

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from tollkeeper_cli.output import Cell, Row

_ROWS_PER_GROUP = 50_000
_DIGITS = 38
MONEY_SCALE = 18
"""Digits behind the point of money and prices in Parquet: as decimal128 they leave 20 before it."""
_EXACT = Context(prec=_DIGITS, traps=[Inexact, InvalidOperation])
_LAST_DIGIT = Decimal(1).scaleb(-MONEY_SCALE)
_INSTANTS = ("_at", "_start", "_end", "Start", "End")


def write_figures(file: Path, rows: Sequence[Row], columns: Sequence[str], *, texts: Sequence[str]) -> None:
    """Write a report. Sums are decimals of 38 digits, values texts of exact decimals, starts UTC instants."""
    import pyarrow as pa  # noqa: PLC0415 - slow to load, and most commands don't need it

    plain = {"meter", "aggregation", "value", "unit", "time_zone", *texts}
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


def write_money(
    file: Path, rows: Iterable[Row], columns: Sequence[str], *, amounts: Collection[str], counts: Collection[str]
) -> None:
    """Write rows of money, some thousand at a time, however many there are.

    Columns of `amounts` are decimals of 38 digits, 18 behind the point, never floats; those that end in `_minor`, and
    `counts`, are 64-bit integers; those that end in `_at`, `_start`, `_end`, `Start` or `End` UTC instants; all others
    texts. Empty cells are null. Raises UsageError: an amount that has more digits, or the file can't be written.
    """
    import pyarrow as pa  # noqa: PLC0415 - slow to load, and most commands don't need it

    kinds: dict[str, tuple[Any, Callable[[Cell], object]]] = {}
    for name in columns:
        if name in amounts:
            kinds[name] = pa.decimal128(_DIGITS, MONEY_SCALE), _decimal
        elif name in counts or name.endswith("_minor"):
            kinds[name] = pa.int64(), lambda cell: cell
        elif name.endswith(_INSTANTS):
            kinds[name] = pa.timestamp("us", tz="UTC"), _instant
        else:
            kinds[name] = pa.string(), lambda cell: None if cell in (None, "") else str(cell)
    schema = pa.schema([(name, kind) for name, (kind, _) in kinds.items()])
    told = (
        [{name: read(row.get(name)) for name, (_, read) in kinds.items()} for row in group] for group in _groups(rows)
    )
    _write(file, schema, told)


def _decimal(cell: Cell) -> Decimal | None:
    """Read an amount exactly. Raises UsageError where the column can't hold all of its digits."""
    text = cell.plain if isinstance(cell, Amount) else str(cell or "")
    if not text:
        return None
    amount = Decimal("NaN")
    with suppress(Inexact, InvalidOperation):
        amount = _EXACT.create_decimal(text).quantize(_LAST_DIGIT, context=_EXACT)
    if not amount.is_finite():
        bound = f"{_DIGITS - MONEY_SCALE} digits before and {MONEY_SCALE} behind the point"
        raise UsageError(f"{text} does not fit {bound}: export as CSV")
    return amount


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

    with whole_file(file) as part, parquet.ParquetWriter(part, schema, compression="zstd") as writer:
        for rows in groups:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
