"""Heads of the chain and roots signed over them, in Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tollkeeper_ledger.domain.usage_proof import Head, SignedRoot
from tollkeeper_ledger.store.queries import sql
from tollkeeper_ledger.store.verifying import StoredLink, link_of_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection

_ROOTS_AT_ONCE = 1_000


async def read_heads(conn: Connection) -> list[Head]:
    """Give the last link of every stream."""
    return [Head(**row) for row in await conn.fetch(sql("audit.heads"))]


async def add_root(conn: Connection, root: SignedRoot, *, at: datetime) -> None:
    """Keep a signed root."""
    await conn.execute(sql("audit.add_root"), at, root.statement, root.signature, root.public_key)


async def last_root(conn: Connection) -> SignedRoot | None:
    """Give the newest signed root."""
    row = await conn.fetchrow(sql("audit.last_root"))
    return None if row is None else SignedRoot(**row)


class StoredRoot(NamedTuple):
    """A signed root as it is stored."""

    root_id: int
    signed_at: datetime
    root: SignedRoot


async def read_roots(conn: Connection) -> AsyncIterator[StoredRoot]:
    """Give every signed root in order."""
    after = 0
    while rows := await conn.fetch(sql("audit.roots"), after, _ROOTS_AT_ONCE):
        for row in rows:
            root = SignedRoot(row["statement"], row["signature"], row["public_key"])
            yield StoredRoot(row["root_id"], row["signed_at"], root)
        after = rows[-1]["root_id"]


async def roots_since(conn: Connection, at: datetime, *, skip: int, count_max: int) -> list[SignedRoot]:
    """Give signed roots of a time and later, in order, without the first `skip` of them."""
    return [SignedRoot(**row) for row in await conn.fetch(sql("audit.roots_since"), at, count_max, skip)]


async def link_hash_at(conn: Connection, stream: int, position: int) -> bytes | None:
    """Give the hash of a link; None where there is none."""
    found: bytes | None = await conn.fetchval(sql("audit.link_hash"), stream, position)
    return found


async def batch_of_record(conn: Connection, tenant_id: UUID, record_id: str, at: datetime | None) -> int | None:
    """Give the batch of a record in Postgres; without an event time the one that its id is kept for, if it still is."""
    found: int | None
    if at is None:
        found = await conn.fetchval(sql("audit.batch_of_id"), tenant_id, record_id)
    else:
        found = await conn.fetchval(sql("audit.batch_of_record"), tenant_id, record_id, at)
    return found


async def link_of_batch(conn: Connection, batch_id: int) -> tuple[int, bytes, StoredLink] | None:
    """Give stream, hash before and link of a batch; None where no link names it."""
    row: Any = await conn.fetchrow(sql("audit.link_of"), batch_id)
    return None if row is None else (row["stream"], row["previous_hash"] or bytes(32), link_of_row(row))
