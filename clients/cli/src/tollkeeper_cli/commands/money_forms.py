"""Reports of money in every form: tables, JSON, CSV, and Parquet with decimals."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tollkeeper_cli.commands.common import parquet_file
from tollkeeper_cli.output import Output, ReportOutput, show, write_csv
from tollkeeper_cli.parquet import write_money

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from tollkeeper_cli.output import Row


def tell(
    rows: Iterable[Row],
    columns: Sequence[str],
    output: ReportOutput,
    file: Path | None,
    *,
    amounts: Collection[str],
    counts: Collection[str] = (),
    title: str = "",
    brief: Sequence[str] = (),
) -> None:
    """Show rows of money, or write them to a file. CSV and Parquet hold few rows at a time, however many there are.

    `amounts` are columns of amounts and prices, decimals in Parquet; `counts` whole numbers.
    """
    target = parquet_file(output, file)
    if target is not None:
        write_money(target, rows, columns, amounts=amounts, counts=counts)
    elif output is ReportOutput.CSV:
        write_csv(sys.stdout, rows, columns)
    else:
        show(list(rows), columns, Output(output), title=title, brief=brief)
