"""Money and units are exact: no float stands in the ledger's domain, nor in any other code that handles amounts."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEDGER = ROOT / "ledger" / "src" / "tollkeeper_ledger"

CLI = ROOT / "clients" / "cli" / "src" / "tollkeeper_cli"

_MODULES = {"math", "statistics"}
_SECONDS = re.compile(r"\w_[sS]\b")
"""Names of times, which may be floats."""


def floats_in(source: str) -> list[int]:
    """Give the lines in which a float may come about: literal, type, true division, rounding, modules of floats."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=float() | complex()):
                is_float = True
            case ast.Name(id="float") | ast.Call(func=ast.Name(id="round")):
                is_float = True
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                is_float = True
            case ast.Import(names=names):
                is_float = any(one.name in _MODULES for one in names)
            case ast.ImportFrom(module=module):
                is_float = module in _MODULES
            case _:
                is_float = False
        if is_float:
            found.append(getattr(node, "lineno", 0))
    return sorted(set(found))


def money_code() -> list[Path]:
    """Give the domain, and all modules of the ledger that name an amount of minor units."""
    paths = sorted(path for path in LEDGER.rglob("*.py"))
    return [path for path in paths if LEDGER / "domain" in path.parents or "_minor" in path.read_text()]


def test_money_has_no_float() -> None:
    """No literal, conversion, true division or rounding of floats, in any module that handles money or units."""
    files = money_code()
    assert {"rpc", "services", "store", "domain"} <= {path.parent.name for path in files}
    found = {f"{path.relative_to(ROOT)}:{line}" for path in files for line in floats_in(path.read_text())}
    assert found == set()


def test_the_command_line_shows_money_without_floats() -> None:
    """Commands that name an amount have floats for seconds alone, in lines that say so."""
    files = [path for path in CLI.rglob("*.py") if "_minor" in path.read_text()]
    shown = [path for path in files if path.parent.name != "demo" or path.stem == "verify"]
    assert {"invoice_whole", "payments", "money_views", "verify", "output"} <= {path.stem for path in shown}
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in shown
        for line in floats_in(path.read_text())
        if not _SECONDS.search(path.read_text().splitlines()[line - 1])
    }
    assert found == set()


@pytest.mark.parametrize(
    "line",
    [
        "x = 0.1", "x = 1e3", "x = 1j", "y = float(x)", "def f(z: float) -> int: ...", "x = a / b", "x /= 100",
        "x = round(a, 2)", "import math", "from math import floor", "import statistics", "import decimal, math as m",
    ],
)  # fmt: skip
def test_a_float_would_be_found(line: str) -> None:
    """Each way to a float that is put into sound money code is seen, in its line."""
    sound = (LEDGER / "domain" / "money.py").read_text()
    assert floats_in(sound) == []
    assert floats_in(f"{sound}\n{line}\n") == [sound.count("\n") + 2]
