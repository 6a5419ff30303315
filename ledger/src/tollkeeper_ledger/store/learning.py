"""What holders said after a restore, read and written many at a time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.learning import Told
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tollkeeper_ledger.store.limits import Identity
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class NamedPool:
    """A generation of a pool that a holder named."""

    identity: Identity
    window_id: bytes
    generation: int


async def add_told(conn: Connection, told: Sequence[tuple[Identity, Told]], *, timeline: int) -> None:
    """Keep what holders said in this timeline, never lowering a figure. One source of a holder stands once."""
    if not told:
        return
    await conn.execute(
        sql("learning.add_told"),
        [identity[0] for identity, _ in told],
        [identity[1] for identity, _ in told],
        [identity[2] for identity, _ in told],
        timeline,
        [one.window_id for _, one in told],
        [one.start_us for _, one in told],
        [one.end_us for _, one in told],
        [one.holder for _, one in told],
        [one.generation for _, one in told],
        [one.units for _, one in told],
        [one.total for _, one in told],
        [one.allotted for _, one in told],
    )


async def read_told(conn: Connection, identities: Collection[Identity]) -> dict[Identity, list[Told]]:
    """Read all that was said of identities since their windows were opened, and before."""
    if not identities:
        return {}
    asked = list(identities)
    rows = await conn.fetch(
        sql("learning.told"),
        [identity[0] for identity in asked],
        [identity[1] for identity in asked],
        [identity[2] for identity in asked],
    )
    found: dict[Identity, list[Told]] = defaultdict(list)
    for row in rows:
        tenant_id, name, key_hash, *figures = row
        found[tenant_id, name, key_hash].append(Told(*figures))
    return found


async def open_pools(conn: Connection, *, count_max: int) -> list[NamedPool]:
    """Read pools that were named in this timeline and are not known to be closed."""
    rows = await conn.fetch(sql("learning.open_pools"), count_max)
    return [
        NamedPool(
            identity=(row["tenant_id"], row["limit_name"], row["key_hash"]),
            window_id=row["window_id"],
            generation=row["generation"],
        )
        for row in rows
    ]


async def note_closed(conn: Connection, closed: Sequence[tuple[NamedPool, int, int]]) -> None:
    """Note what went into each pool, 0 = unknown, and what it never gave; the first note stands."""
    await conn.execute(
        sql("learning.close_pools"),
        [pool.identity[0] for pool, _, _ in closed],
        [pool.identity[1] for pool, _, _ in closed],
        [pool.identity[2] for pool, _, _ in closed],
        [pool.window_id for pool, _, _ in closed],
        [pool.generation for pool, _, _ in closed],
        [total for _, total, _ in closed],
        [unspent for _, _, unspent in closed],
    )


async def forget_ended(conn: Connection, *, now_us: int) -> None:
    """Forget what was said of windows that are over."""
    await conn.execute(sql("learning.forget_ended"), now_us)
