"""Tell every replica that units are there again which were denied."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tollkeeper_ledger.store.limits import Identity
    from tollkeeper_ledger.store.pool import Connection

UNITS_CHANNEL = "tollkeeper_units"
_IDENTITIES_PER_NOTICE = 30


@dataclass(frozen=True, slots=True)
class Notice:
    """Units may be there again, or (`recall`) leases should come back."""

    tenant_id: UUID
    limit: str
    key_hash: bytes
    recall: bool = False
    replaced: bytes = b""
    """A window whose next round has begun."""
    units: int = 0
    """Recalls of levels and units in flight: somebody lacks so many."""
    lacking: bytes = b""
    """The only holder that lacks them: it needn't give any back."""


async def announce_units(conn: Connection, identities: Iterable[Identity], *, recall: bool = False) -> None:
    """Announce identities at commit. A lost notice costs time, never units: proofs also end with their connection."""
    await _announce(
        conn, [[tenant.hex, limit, key_hash.hex(), recall, "", 0, ""] for tenant, limit, key_hash in identities]
    )


async def announce_replaced(conn: Connection, windows: Iterable[tuple[Identity, bytes]]) -> None:
    """Announce windows whose next round has begun, at commit. Who misses it is told after the next hello."""
    await _announce(
        conn,
        [
            [tenant.hex, limit, key_hash.hex(), False, window_id.hex(), 0, ""]
            for (tenant, limit, key_hash), window_id in windows
        ],
    )


async def _announce(conn: Connection, told: Sequence[Sequence[object]]) -> None:
    for begin in range(0, len(told), _IDENTITIES_PER_NOTICE):
        text = json.dumps(told[begin : begin + _IDENTITIES_PER_NOTICE], separators=(",", ":"))
        await conn.execute(sql("installation.notify"), UNITS_CHANNEL, text)


async def announce_lacking(conn: Connection, lacking: Mapping[Identity, Mapping[bytes, int]]) -> None:
    """Announce at commit that holders lack units of levels or in flight, so that others give back what lies idle.

    `lacking`: per identity, units by holder.
    """
    told: list[list[object]] = []
    for (tenant, limit, key_hash), needs in lacking.items():
        only = next(iter(needs)).hex() if len(needs) == 1 else ""
        told.append([tenant.hex, limit, key_hash.hex(), True, "", sum(needs.values()), only])
    await _announce(conn, told)


def read_notices(text: str) -> list[Notice]:
    """Parse what `announce_units` sent."""
    return [
        Notice(
            tenant_id=UUID(hex=tenant),
            limit=limit,
            key_hash=bytes.fromhex(key_hash),
            recall=recall,
            replaced=bytes.fromhex(replaced),
            units=units,
            lacking=bytes.fromhex(lacking),
        )
        for tenant, limit, key_hash, recall, replaced, units, lacking in json.loads(text)
    ]
