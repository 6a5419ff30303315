"""Money as Parquet: exact, whole or not there, row group by row group."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from pyarrow import parquet
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import money
from tollkeeper_cli.parquet import write_money

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tollkeeper_cli.output import Cell

COLUMNS = ("tenant", "cost", "cost_minor", "tenants", "due_at", "ChargePeriodStart")
EVIL = "=cmd()"


def written(file: Path, *costs: Cell) -> list[object]:
    """Write a row per cost and read the costs again."""
    rows = [{"tenant": EVIL, "cost": cost, "cost_minor": 2**53, "tenants": 1, "due_at": ""} for cost in costs]
    write_money(file, rows, COLUMNS, amounts=("cost",), counts=("tenants",))
    read: list[object] = parquet.read_table(file).column("cost").to_pylist()
    return read


def test_amounts_are_exact_decimals(tmp_path: Path) -> None:
    """Texts and amounts of any currency come back to the last digit; nothing in the file is a float."""
    file = tmp_path / "money.parquet"
    most = "99999999999999999999.999999999999999999"
    costs = ("0.1", most, f"-{most}", "", money(-123_456, "USD"), money(5, "JPY"), money(1, "KWD"), "1E-18")
    expected = ["0.1", most, f"-{most}", None, "-1234.56", "5", "0.001", "0.000000000000000001"]
    assert [None if one is None else Decimal(one) for one in expected] == written(file, *costs)
    table = parquet.read_table(file)
    assert [pa.string(), pa.decimal128(38, 18), pa.int64(), pa.int64(), *[pa.timestamp("us", tz="UTC")] * 2] == [
        field.type for field in table.schema
    ]
    assert table.to_pylist()[0]["tenant"] == EVIL
    rows = [{"due_at": "2026-01-31T00:00:00Z"}]
    write_money(file, rows, COLUMNS, amounts=("cost",), counts=())
    assert datetime(2026, 1, 31, tzinfo=UTC) == parquet.read_table(file).to_pylist()[0]["due_at"]


@pytest.mark.parametrize(
    "cost", ["1E-19", "0.1234567890123456789", "100000000000000000000", "1E+30", "NaN", "Infinity", "x"]
)
def test_what_does_not_fit_is_refused_and_not_rounded(tmp_path: Path, cost: str) -> None:
    """More digits than the column has, or no number, is said by its value; no file is left."""
    with pytest.raises(UsageError, match="does not fit"):
        written(tmp_path / "money.parquet", "1", cost)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    """A listing that breaks off after some row groups leaves the file as it was before, and nothing beside it."""
    file = tmp_path / "money.parquet"
    written(file, "7")

    def broken() -> Iterator[dict[str, Cell]]:
        for at in range(120_000):
            yield {"tenant": str(at), "cost": "1"}
        raise LookupError

    with pytest.raises(LookupError):
        write_money(file, broken(), COLUMNS, amounts=("cost",), counts=())
    assert [Decimal(7)] == parquet.read_table(file).column("cost").to_pylist()
    assert [file] == list(tmp_path.iterdir())


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    """Not more rows than a row group's are taken before some are on disk, so that memory does not grow with them."""
    file = tmp_path / "money.parquet"
    sizes: list[int] = []

    def rows() -> Iterator[dict[str, Cell]]:
        for at in range(150_000):
            if at % 50_000 == 0:
                sizes.append(sum(one.stat().st_size for one in tmp_path.iterdir()))
            yield {"tenant": f"{at * 7_919 % 104_729}", "cost": f"{at}.5"}

    write_money(file, rows(), COLUMNS, amounts=("cost",), counts=())
    assert sizes[0] < sizes[1] < sizes[2]
    with parquet.ParquetFile(file) as read:
        assert (read.num_row_groups, read.metadata.num_rows) == (3, 150_000)


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    """The message names the file; no trace of the program."""
    with pytest.raises(UsageError, match="No such file"):
        written(tmp_path / "none" / "money.parquet", "1")
