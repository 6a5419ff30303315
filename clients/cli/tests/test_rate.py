"""Pricing worked cases needs no server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tollkeeper_cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

GOOD = {"id": "a", "model": "per_unit", "params": {"unit": "0.10"}, "input": {"quantity": "5"}}


def run(path: Path, *cases: dict[str, Any], output: str = "json") -> int:
    """Write the cases to a file and rate them."""
    file = path / "cases.json"
    file.write_text(json.dumps({"cases": cases}))
    return main(["rate", "--cases", str(file), "-o", output])


def test_answers_carry_the_keys_that_are_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With `expect` exactly its keys come out; without it every key of the model."""
    assert run(tmp_path, GOOD | {"expect": {"amount": "0.5"}}, GOOD | {"id": "b"}) == 0
    answers = json.loads(capsys.readouterr().out)
    assert answers["a"] == {"amount": "0.5"}
    assert {"amount", "gross", "discount", "lines_amounts"} <= set(answers["b"])


@pytest.mark.parametrize("output", ["json", "table", "csv"])
def test_a_case_that_differs_ends_with_one(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 names the cases that differ; the others are printed all the same."""
    assert run(tmp_path, GOOD, GOOD | {"id": "off", "expect": {"amount": "0.51"}}, output=output) == 1
    captured = capsys.readouterr()
    assert "1 of 2 cases are wrong: off" in captured.err
    assert "off" in captured.out


def test_a_known_divergence_is_reported_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A case of the group `divergence` may differ; the table says how."""
    case = GOOD | {"group": "divergence", "expect": {"amount": "9"}}
    assert run(tmp_path, case, output="csv") == 0
    assert "expected '9', rated '0.5'" in capsys.readouterr().out


def test_one_bad_case_holds_up_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A case that can't be rated is answered with its field and a remedy, and makes the exit code 1."""
    assert run(tmp_path, GOOD | {"id": "bad", "params": {"unti": "1"}}, GOOD) == 1
    answers = json.loads(capsys.readouterr().out)
    assert "params.unit is missing" in answers["bad"]["error"]
    assert answers["a"]["amount"] == "0.5"


def test_a_table_shows_what_an_amount_is_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step has a line below its case, and CSV one column; where something is expected, that alone is told."""
    priced = {**GOOD, "params": {"unit": "0.10", "maximum": "0.4"}}
    assert run(tmp_path, priced, output="table") == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert {"use: 5 x 0.1 = 0.5", "maximum 0.4: -0.1"} <= set(lines)
    assert run(tmp_path, priced, priced | {"id": "b", "expect": {"amount": "0.4"}}, output="csv") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1].endswith(",use: 5 x 0.1 = 0.5; maximum 0.4: -0.1")
    assert told[2] == "b,,amount 0.4,agrees,"


def test_an_id_names_one_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody's answer takes the place of another's."""
    assert run(tmp_path, GOOD, GOOD) == 2
    assert "several cases have one id: a" in capsys.readouterr().err


def test_a_file_without_cases_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 names the file and what it should hold."""
    file = tmp_path / "none.json"
    file.write_text("[]")
    assert main(["rate", "--cases", str(file)]) == 2
    assert "list `cases`" in capsys.readouterr().err
