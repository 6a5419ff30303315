"""Print listings as a table, as JSON or as CSV."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

Cell = str | int | bool | Sequence[str] | Mapping[str, str] | Mapping[str, int] | None
Row = Mapping[str, Cell]

# Spreadsheets take a cell that begins so for a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
# ISO 4217: currencies whose minor unit isn't a hundredth.
_MINOR_DIGITS = {
    "BHD": 3,
    "IQD": 3,
    "JOD": 3,
    "KWD": 3,
    "LYD": 3,
    "OMR": 3,
    "TND": 3,
    "CLF": 4,
    "UYW": 4,
} | dict.fromkeys(
    (
        "BIF",
        "CLP",
        "DJF",
        "GNF",
        "ISK",
        "JPY",
        "KMF",
        "KRW",
        "PYG",
        "RWF",
        "UGX",
        "UYI",
        "VND",
        "VUV",
        "XAF",
        "XOF",
        "XPF",
    ),
    0,
)
_MINOR_DIGITS_DEFAULT = 2
# Texts up to a time's length stand whole in a table, longer ones are folded.
_WHOLE_CHARS_MAX = 20
# A table in a pipe or a file is as wide as its rows.
_FILE_WIDTH = 10_000


class Output(StrEnum):
    """A listing's form."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class ReportOutput(StrEnum):
    """A report's form: a listing's, or Parquet."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


def show(
    rows: Sequence[Row], columns: Sequence[str], output: Output, *, title: str = "", brief: Sequence[str] = ()
) -> None:
    """Print rows to standard output. JSON and CSV carry every column as it is; the table shows those of `brief`."""
    if output is Output.JSON:
        show_json([{name: row.get(name) for name in columns} for row in rows])
    elif output is Output.CSV:
        write_csv(sys.stdout, rows, columns)
    else:
        _print_table(rows, brief or columns, title)


def show_json(value: object) -> None:
    """Print JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(stream: TextIO, rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Write rows as CSV; text that a spreadsheet would run as a formula gets an apostrophe before it."""
    stream.write(_csv_line(columns))
    stream.writelines(_csv_line([_csv_cell(row.get(column)) for column in columns]) for row in rows)


def csv_text(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Return rows as CSV text."""
    stream = io.StringIO()
    write_csv(stream, rows, columns)
    return stream.getvalue()


class Amount(str):
    """An amount for reading, which a spreadsheet gets as the plain number that it is."""

    __slots__ = ("plain",)
    plain: str
    """For example `-1234.50`; its currency stands in a column of its own."""


def money(amount_minor: int, currency: str) -> Amount:
    """Return an amount for reading, for example `1,234.50 USD`."""
    digits = _MINOR_DIGITS.get(currency, _MINOR_DIGITS_DEFAULT)
    whole, rest = divmod(abs(amount_minor), 10**digits)
    sign = "-" if amount_minor < 0 else ""
    fraction = f".{rest:0{digits}d}" if digits else ""
    shown = Amount(f"{sign}{whole:,}{fraction} {currency}")
    shown.plain = f"{sign}{whole}{fraction}"
    return shown


def scaled(quantity: int, scale: int) -> int | Amount:
    """Return a quantity in whole units, for example 1500 of scale 3 as `1.5`; whole numbers stay numbers."""
    if not scale:
        return quantity
    whole, rest = divmod(abs(quantity), 10**scale)
    sign, fraction = "-" if quantity < 0 else "", f"{rest:0{scale}d}".rstrip("0")
    shown = Amount(f"{sign}{whole:,}" + (f".{fraction}" if fraction else ""))
    shown.plain = shown.replace(",", "")
    return shown


def plain_figures(row: Row, names: Iterable[str]) -> dict[str, Cell]:
    """Return a row for JSON: figures that `scaled` gave of these names as plain decimals in text."""
    return {**row, **{name: cell.plain for name in names if isinstance(cell := row.get(name), Amount)}}


def _csv_line(cells: Sequence[str | int]) -> str:
    """Return one line. The writer quotes what is in its terminator: with CR LF a lone CR can't fake a row."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _csv_cell(value: Cell) -> str | int:
    """Turn a value into a cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return value
    if isinstance(value, Amount):
        return value.plain
    text = _plain(value)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _plain(value: Cell) -> str:
    """Turn a value into text on one line."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={item}" for name, item in value.items())
    return " ".join(value)


def _print_table(rows: Sequence[Row], columns: Sequence[str], title: str) -> None:
    """Print a table; numbers stand right, names and numbers whole; columns with nothing in any row are left out.

    Nothing is ever cut off: where a terminal is too narrow each row is a block of lines. A file has no width, unless
    COLUMNS says one.
    """
    table = Table(
        title=title or None,
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    shown = [column for column in columns if not rows or any(_plain(row.get(column)) for row in rows)]
    for index, column in enumerate(shown):
        is_number = any(isinstance(row.get(column), int) and not isinstance(row.get(column), bool) for row in rows)
        widest = max((len(_plain(row.get(column))) for row in rows), default=0)
        is_whole = is_number or index == 0 or widest <= _WHOLE_CHARS_MAX
        table.add_column(
            column.replace("_", "\n" if is_number else " "),
            justify="right" if is_number else "left",
            overflow="fold",
            no_wrap=is_whole,
        )
    for row in rows:
        table.add_row(*(_escape(_plain(row.get(column))) for column in shown))
    wide = Console(width=_FILE_WIDTH)
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console() if has_width else wide
    if not rows:
        console.print(f"[italic]{_escape(title)}[/]: none" if title else "none")
    elif Measurement.get(wide, wide.options, table).minimum > console.width:
        _print_blocks(console, rows, shown, title)
    else:
        console.print(table)


def _print_blocks(console: Console, rows: Sequence[Row], columns: Sequence[str], title: str) -> None:
    if title:
        console.print(_escape(title), style="italic")
    widest = max(len(column) for column in columns)
    for row in rows:
        console.print()
        for column in columns:
            told = _escape(_plain(row.get(column)))
            console.print(f"[bold]{column.replace('_', ' '):{widest}}[/]  {told}", soft_wrap=True, highlight=False)


def _escape(text: str) -> str:
    """Keep text from being read as markup or as terminal control."""
    visible = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return visible.replace("[", "\\[")
