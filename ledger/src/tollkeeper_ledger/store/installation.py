"""What this installation is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key for reservation tokens. Never logged."""

    key_id: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class Installation:
    """The installation's id, its timeline at the start (restores of Postgres, plus 1) and its token keys."""

    installation_id: bytes
    timeline: int
    token_keys: tuple[TokenKey, ...]


async def read_installation(conn: Connection) -> Installation:
    """Read the installation. Raises RuntimeError where the database was never migrated."""
    row = await conn.fetchrow(sql("installation.installation"))
    if row is None:
        raise RuntimeError("installation has no row: run `tollkeeper-ledger migrate`")
    keys = await conn.fetch(sql("installation.token_keys"))
    return Installation(
        installation_id=row["installation_id"],
        timeline=row["timeline"],
        token_keys=tuple(TokenKey(key_id=key["key_id"], secret=key["secret"]) for key in keys),
    )
