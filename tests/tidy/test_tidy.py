"""What the style says and a machine can check: lengths, TODO form, comments on every proto field, no machine paths."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
README_LINES_MAX = 120
ARCHITECTURE_LINES = (120, 180)
GUARANTEES = ROOT / "docs" / "guarantees.md"
GENERATED = ("proto/python/tollkeeper/", "sidecar/crates/quota-proto/src/gen/")


@cache
def tracked(*suffixes: str) -> tuple[Path, ...]:
    """Return the files that git tracks, or would, with one of these endings; generated code left out."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = sorted(name for name in set(listing.splitlines()) if not name.startswith(GENERATED))
    return tuple(ROOT / name for name in names if name.endswith(suffixes) and (ROOT / name).is_file())


def named(path: Path) -> str:
    """Return the path as messages show it."""
    return str(path.relative_to(ROOT))


def python_functions(path: Path) -> list[tuple[str, int]]:
    """Return (place, lines) of every Python function, its docstring and decorators not counted."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            found.append((f"{named(path)}:{node.lineno} {node.name}", lines))
    return found


def rust_functions(path: Path) -> list[tuple[str, int]]:
    """Return (place, lines) of every Rust function, found by rustfmt's indentation."""
    found = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"^( *)(?:pub(?:\([a-z]+\))? )?(?:const )?(?:async )?fn (\w+)", line)
        if match is None:
            continue
        closing = match[1] + "}"
        end = next((i for i in range(number, len(lines)) if lines[i] == closing or lines[i].endswith(";")), number)
        end = next((i for i in range(number, len(lines)) if lines[i] == closing), end)
        found.append((f"{named(path)}:{number + 1} {match[2]}", end - number + 1))
    return found


def test_files_are_short() -> None:
    """A file does one thing: none is over 600 lines."""
    counted = {
        named(path): len(path.read_text().splitlines())
        for path in tracked(".py", ".rs", ".sql", ".lua")
        if path.parent.name != "migrations"  # frozen text, never edited
    }
    assert {name: lines for name, lines in counted.items() if lines > FILE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    """A function fits on a screen: none is over 70 lines."""
    counted = [
        *(function for path in tracked(".py") for function in python_functions(path)),
        *(function for path in tracked(".rs") for function in rust_functions(path)),
    ]
    assert len(counted) > 100
    assert [function for function in counted if function[1] > FUNCTION_LINES_MAX] == []


def test_todo_names_an_issue() -> None:
    """What is left to do is written `TODO(#n)`, so that somebody can find who knows more."""
    loose = [
        f"{named(path)}:{number}"
        for path in tracked(".py", ".rs", ".sql", ".lua", ".proto", ".md")
        if path != Path(__file__) and path.name != "STYLE.md"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line) and not re.search(r"TODO\(#\d+\)", line)
    ]
    assert loose == []


def test_every_proto_element_has_a_comment() -> None:
    """The proto files are the contract's spec: every message, field, value and call says what it means."""
    bare = []
    element = re.compile(
        r"^\s*(message|service|enum|rpc|oneof|(repeated |optional )?[\w.<>, ]+ \w+ = \d+;|[A-Z_0-9]+ = \d+;)"
    )
    for path in tracked(".proto"):
        lines = path.read_text().splitlines()
        bare += [
            f"{named(path)}:{number + 1} {line.strip()}"
            for number, line in enumerate(lines)
            if element.match(line)
            and not line.startswith(("syntax", "package"))
            and not lines[number - 1].strip().startswith("//")
        ]
    assert bare == []


def test_no_query_is_unused() -> None:
    """A named query that nobody calls is dead SQL."""
    store = ROOT / "ledger" / "src" / "tollkeeper_ledger" / "store"
    code = "\n".join(path.read_text() for path in tracked(".py") if "ledger/src" in named(path))
    names = [
        f"{path.stem}.{match[1]}"
        for path in sorted((store / "sql").rglob("*.sql"))
        for match in re.finditer(r"^-- name: (\w+)", path.read_text(), re.MULTILINE)
    ]
    assert len(names) > 10
    assert [name for name in names if f'"{name}"' not in code] == []


@pytest.mark.parametrize(
    ("module", "importer"),
    [
        ("_native", "sidecar/python/tollkeeper_sidecar/native.py"),
        ("_columns", "ledger/src/tollkeeper_ledger/domain/columns.py"),
    ],
)
def test_one_file_imports_each_native_module(module: str, importer: str) -> None:
    """A bridge to Rust is crossed in one place."""
    imports = re.compile(rf"^\s*(from|import) .*\b{module}\b", re.MULTILINE)
    assert [named(path) for path in tracked(".py") if imports.search(path.read_text())] == [importer]


@pytest.mark.parametrize(
    ("name", "lowest", "highest"), [("README.md", 40, README_LINES_MAX), ("ARCHITECTURE.md", *ARCHITECTURE_LINES)]
)
def test_front_documents_keep_their_length(name: str, lowest: int, highest: int) -> None:
    """A front document is read to the end: it has neither too little nor too much."""
    assert lowest <= len((ROOT / name).read_text().splitlines()) <= highest


def test_every_guarantee_names_tests_that_exist() -> None:
    """The page of guarantees can't promise what no test holds."""
    named_there = set(
        re.findall(r"`((?:test_|[\w/-]+\.rs|[\w/-]+\.py|[a-z]+_[a-z_]+)[\w/.-]*)`", GUARANTEES.read_text())
    )
    files = {named(path) for path in tracked(".py", ".rs")}
    functions = {
        match[1] for path in tracked(".py", ".rs") for match in re.finditer(r"\b(?:def|fn) (\w+)", path.read_text())
    }
    assert len(named_there) > 30
    missing = [
        name
        for name in sorted(named_there)
        if name not in functions and not any(path.endswith("/" + name) for path in files)
    ]
    assert missing == []


def test_no_machine_paths_or_hosts() -> None:
    """The repository speaks of the product alone: no path of a machine, no host of a package registry."""
    banned = re.compile(r"/(home|root|work)/[a-z]|pypi[.]org|crates[.]io|registry[.]npmjs")
    found = [
        f"{named(path)}:{number}"
        for path in tracked(".py", ".rs", ".sql", ".lua", ".proto", ".md", ".toml", ".sh", ".yaml", "Makefile")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if banned.search(line)
    ]
    assert found == []


def test_every_decision_has_a_number_of_its_own() -> None:
    """Decisions are numbered without gaps, and each says its number and that of its file alike."""
    names = sorted(path.name for path in (ROOT / "docs" / "adr").glob("*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    titles = [(ROOT / "docs" / "adr" / name).read_text().partition(". ")[0] for name in names]
    assert titles == [f"# {number}" for number in range(1, len(names) + 1)]


def test_both_sides_find_redis_in_the_same_way() -> None:
    """Sidecar and ledger never import each other: the file that both need is the same to the letter."""
    sides = ("sidecar/python/tollkeeper_sidecar", "ledger/src/tollkeeper_ledger/store")
    ours, theirs = ((ROOT / side / "redis_topology.py").read_text() for side in sides)
    assert ours == theirs, "copy one over the other"
