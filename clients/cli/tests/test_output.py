"""Printing listings."""

from __future__ import annotations

import csv
import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_cli.output import Cell, Output, csv_text, money, scaled, show


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_csv_neutralises_formulas(text: str) -> None:
    """Text that a spreadsheet would run arrives with an apostrophe; numbers stay numbers."""
    cells = next(iter(csv.DictReader(io.StringIO(csv_text([{"a": text, "b": -1}], ("a", "b")), newline=""))))
    assert cells == {"a": f"'{text}", "b": "-1"}


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=3))
def test_csv_never_starts_a_cell_with_a_formula(attributes: dict[str, str]) -> None:
    """Whatever a tenant puts into an attribute, the cell is harmless and the row stays one row."""
    rows = list(csv.reader(io.StringIO(csv_text([{"a": attributes}], ("a",)), newline="")))
    assert len(rows) <= 2
    assert not "".join(rows[-1]).startswith(("=", "+", "-", "@", "\t", "\r"))


def test_json_keeps_types(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON carries whole numbers beyond 2^53 and absent values as they are."""
    show([{"a": 2**60, "b": None, "c": True, "d": {"x": "y"}}], ("a", "b", "c", "d"), Output.JSON)
    assert json.loads(capsys.readouterr().out) == [{"a": 2**60, "b": None, "c": True, "d": {"x": "y"}}]


def test_table_shows_hostile_text_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Markup and terminal control in a name are shown, not obeyed."""
    show([{"name": "[red]x[/red]\x1b[31m"}], ("name",), Output.TABLE)
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("minor", "currency", "expected"),
    [
        (123_450, "USD", "1,234.50 USD"),
        (-5, "EUR", "-0.05 EUR"),
        (1_234, "JPY", "1,234 JPY"),
        (1_234, "KWD", "1.234 KWD"),
    ],
)
def test_money_follows_its_currency(minor: int, currency: str, expected: str) -> None:
    """Digits after the point are the currency's own."""
    assert money(minor, currency) == expected


def test_a_spreadsheet_gets_amounts_as_numbers() -> None:
    """Money and quantities are plain decimals in CSV, below zero too; readers get them grouped, in their currency."""
    row: dict[str, Cell] = {"a": money(-123_450, "USD"), "b": money(1_234, "JPY"), "c": scaled(-1_234_500, 3), "d": 7}
    assert csv_text([row], ("a", "b", "c", "d")).splitlines()[1] == "-1234.50,1234,-1234.5,7"
    assert [row[name] for name in "abc"] == ["-1,234.50 USD", "1,234 JPY", "-1,234.5"]
    assert (scaled(1500, 0), scaled(2000, 3)) == (1500, "2")


@pytest.mark.parametrize("columns", [20, 60, 200, None])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_nothing_is_cut_off(
    columns: int | None, *, is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However narrow the terminal, every name and figure is printed whole; a file has no width of its own."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    row = {f"column_{n}": f"2,599.0{n} USD" for n in range(6)}
    show([row, row], tuple(row), Output.TABLE)
    words = capsys.readouterr().out.split()
    assert [words.count(f"2,599.0{n}") for n in range(6)] == [2] * 6
    show([], tuple(row), Output.TABLE, title="Rows")
    assert capsys.readouterr().out == "Rows: none\n"
