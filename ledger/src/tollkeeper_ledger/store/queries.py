"""Named SQL: every statement of the ledger stands in `store/sql/<file>.sql` under a `-- name:` line.

    -- name: lock_windows
    -- Locks the windows in id order. $1 window ids.
    SELECT ...

is `sql("limits.lock_windows")` when the file is `limits.sql`. The comment lines are its description and arguments.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: ([a-z0-9_]+)$", re.MULTILINE)


@cache
def load(file: str) -> dict[str, str]:
    """Read one file of named statements. Raises ValueError where a statement has no description or stands twice."""
    text = files("tollkeeper_ledger.store").joinpath("sql", f"{file}.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)
    statements: dict[str, str] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if not body.strip().startswith("--"):
            raise ValueError(f"{file}.sql: {name} has no description")
        if name in statements:
            raise ValueError(f"{file}.sql: {name} stands twice")
        statements[name] = body.strip()
    return statements


def sql(name: str) -> str:
    """Give the statement `file.name`. Raises KeyError where there is none."""
    file, _, statement = name.partition(".")
    return load(file)[statement]
