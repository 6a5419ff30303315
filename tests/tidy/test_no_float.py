"""Money and units are exact: no float stands in the ledger's domain."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = ROOT / "ledger" / "src" / "tollkeeper_ledger" / "domain"


def floats_in(source: str) -> list[int]:
    """Give the lines in which a float literal, or the type float, stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        is_literal = isinstance(node, ast.Constant) and isinstance(node.value, float | complex)
        is_type = isinstance(node, ast.Name) and node.id == "float"
        if is_literal or is_type:
            found.append(getattr(node, "lineno", 0))
    return sorted(found)


def test_the_domain_has_no_float() -> None:
    """No literal and no conversion, in any module that calculates with money or units."""
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted(DOMAIN.rglob("*.py"))
        for line in floats_in(path.read_text())
    }
    assert found == set()


def test_a_float_would_be_found() -> None:
    """The check sees literals, conversions and annotations."""
    assert floats_in("x = 0.1\ny = float(x)\ndef f(z: float) -> int: return 1\n") == [1, 2, 3]
