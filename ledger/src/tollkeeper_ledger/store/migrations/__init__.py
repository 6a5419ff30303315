"""Bring a database to this version's schema; forward only, one transaction per migration.

`store/schema/*.sql` is the schema to read; `store/migrations/NNNN_*.sql` is how databases get there. A test proves that
both make the same catalogue. Until the first release `python -m tollkeeper_ledger.store.migrations freeze` rewrites
0001_initial.sql from the schema files; after it, a released migration is never edited.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING

import asyncpg

from tollkeeper_ledger.store.pool import SEARCH_PATH

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from pathlib import Path

_LOCK = 7205759403792796


def _scripts(folder: str) -> list[tuple[str, str]]:
    found: list[Traversable] = [
        entry for entry in files("tollkeeper_ledger.store").joinpath(folder).iterdir() if entry.name.endswith(".sql")
    ]
    return [(entry.name, entry.read_text(encoding="utf-8")) for entry in sorted(found, key=lambda entry: entry.name)]


def schema_files() -> list[tuple[str, str]]:
    """Give name and text of every schema file in the order in which they apply."""
    return _scripts("schema")


def migration_files() -> list[tuple[str, str]]:
    """Give name and text of every migration in the order in which they apply."""
    return _scripts("migrations")


async def bootstrap(conn: asyncpg.Connection[asyncpg.Record]) -> None:
    """Make the roles and the schema where they are missing. Needs a user who may create roles."""
    await conn.execute(files("tollkeeper_ledger.store").joinpath("bootstrap.sql").read_text(encoding="utf-8"))


async def _as_owner(conn: asyncpg.Connection[asyncpg.Record], script: str) -> None:
    await conn.execute(
        f"SET LOCAL ROLE tollkeeper_owner; SET LOCAL search_path = {SEARCH_PATH}; SET LOCAL timezone = 'UTC'"
    )
    await conn.execute(script)


async def apply_schema(url: str) -> None:
    """Build an empty database from the schema files alone. For tests; nothing records what was applied."""
    conn = await asyncpg.connect(url)
    try:
        await bootstrap(conn)
        async with conn.transaction():
            for _, text in schema_files():
                await _as_owner(conn, text)
    finally:
        await conn.close()


async def migrate(url: str) -> list[str]:
    """Apply every migration that this database lacks and give their names. Idempotent; concurrent callers queue.

    Raises RuntimeError where an applied migration differs from the file of the same name.
    """
    conn = await asyncpg.connect(url)
    applied: list[str] = []
    try:
        await bootstrap(conn)
        await conn.execute("SELECT pg_advisory_lock($1)", _LOCK)
        async with conn.transaction():
            await _as_owner(
                conn,
                "CREATE TABLE IF NOT EXISTS schema_migration (name text PRIMARY KEY, digest bytea NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())",
            )
        known = {row["name"]: row["digest"] for row in await conn.fetch("SELECT * FROM tollkeeper.schema_migration")}
        for name, text in migration_files():
            digest = hashlib.sha256(text.encode()).digest()
            if name in known:
                if known[name] != digest:
                    raise RuntimeError(f"migration {name} was applied with other content; it must not be edited")
                continue
            async with conn.transaction():
                await _as_owner(conn, text)
                await conn.execute(
                    "INSERT INTO tollkeeper.schema_migration (name, digest) VALUES ($1, $2)", name, digest
                )
            applied.append(name)
    finally:
        await conn.close()
    return applied


def freeze(folder: Path) -> Path:
    """Write 0001_initial.sql into `folder` from the schema files. Only before the first release."""
    parts = [f"-- From schema/{name}\n{text.rstrip()}\n" for name, text in schema_files()]
    target = folder / "0001_initial.sql"
    target.write_text(
        "-- Made by `python -m tollkeeper_ledger.store.migrations freeze`.\n\n" + "\n".join(parts), encoding="utf-8"
    )
    return target
