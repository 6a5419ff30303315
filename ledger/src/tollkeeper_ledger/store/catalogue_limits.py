"""Read where limits come from and keep what is in force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class DeclaredLimits:
    """The three sources of a tenant's limits, least specific first."""

    tenant_id: UUID
    plan_version_id: UUID | None
    definition: bytes
    """Of the plan version; empty without one."""
    subscription: list[JsonObject]
    overrides: list[JsonObject]


async def read_declared_limits(conn: Connection, tenant_ids: Collection[UUID]) -> list[DeclaredLimits]:
    """Read the sources of these tenants' limits."""
    rows = await conn.fetch(sql("catalogue.declared_limits"), sorted(tenant_ids))
    return [
        DeclaredLimits(
            tenant_id=row["tenant_id"],
            plan_version_id=row["plan_version_id"],
            definition=row["definition"] or b"",
            subscription=row["limits"] or [],
            overrides=row["overrides"],
        )
        for row in rows
    ]


async def put_limit_states(conn: Connection, rows: Sequence[tuple[UUID, str, int, str]]) -> None:
    """Keep (tenant id, limit name, amount, enforcement); the version rises where one of the last two changed."""
    await conn.execute(
        sql("catalogue.put_limit_states"),
        [row[0] for row in rows],
        [row[1] for row in rows],
        [row[2] for row in rows],
        [row[3] for row in rows],
    )


async def read_limit_versions(conn: Connection, tenant_id: UUID) -> dict[str, int]:
    """Read amount versions by limit name."""
    rows = await conn.fetch(sql("catalogue.limit_versions"), tenant_id)
    return {row["name"]: row["amount_version"] for row in rows}
