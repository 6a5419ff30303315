"""Set a trace's part of Postgres back to what a backup had, and go on in the timeline after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tollkeeper_ledger.domain.issuing import Issuing
from tollkeeper_ledger.services.restores import Restores

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from tollkeeper_ledger.domain.issuing import Witness
    from tollkeeper_ledger.store.pool import Connection

_TABLES: Final = (
    "limit_cursor",
    "limit_window",
    "pool_generation",
    "holder_lease",
    "lost_return",
    "holder_consumption",
    "bucket_shard",
)
"""What the ledger knows of units. Amounts are the operator's: they are as they are."""


async def back_up(conn: Any, tenants: Collection[UUID]) -> dict[str, str]:
    """Give all rows of these tenants, as JSON by table."""
    return {
        name: await conn.fetchval(
            f"SELECT coalesce(json_agg(t), '[]') FROM {name} t WHERE tenant_id = ANY ($1)",  # noqa: S608 - ours
            list(tenants),
        )
        for name in _TABLES
    }


async def set_back(conn: Any, tenants: Collection[UUID], rows: dict[str, str]) -> None:
    """Put rows that were backed up in the place of all that these tenants have."""
    async with conn.transaction():
        for name in _TABLES:
            await conn.execute(f"DELETE FROM {name} WHERE tenant_id = ANY ($1)", list(tenants))  # noqa: S608 - ours
            await conn.execute(
                f"INSERT INTO {name} SELECT * FROM json_populate_recordset(NULL::{name}, $1)",  # noqa: S608 - ours
                rows[name],
            )


class TimelineOf(Restores):
    """The real witnesses, but timeline and freeze of one trace: others on the same Postgres never went back."""

    def freeze(self, frozen_before_us: int) -> None:
        """Issue nothing from windows that began before this."""
        self._frozen_before_us = frozen_before_us

    async def issue(self, conn: Connection) -> tuple[Witness, Issuing]:
        """Commit a witness as ever; what may be issued is the trace's."""
        witness, _ = await super().issue(conn)
        return witness, Issuing(timeline=self.timeline, frozen_before_us=self._frozen_before_us)
