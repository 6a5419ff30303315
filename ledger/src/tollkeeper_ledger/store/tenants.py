"""Read tenants as sidecars see them: state, parent, plan, features, effective limits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.catalogue.model import EARLY_MAX_S, LATE_MAX_S
from tollkeeper_ledger.domain.limits import EffectiveLimit, resolve
from tollkeeper_ledger.store.billing_segments import schedule_from
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    import asyncpg

    from tollkeeper_ledger.domain.periods import Schedule
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class TenantView:
    """One tenant whole, as of change number `change`."""

    tenant_id: UUID
    wire_id: str
    state: str
    """`active` or `suspended`."""
    parent: str
    """Wire id; empty = none."""
    plan: str
    """Name; empty = none."""
    features: tuple[str, ...]
    limits: tuple[EffectiveLimit, ...]
    """In name order."""
    schedule: Schedule | None
    """Billing periods of the running subscription."""
    change: int

    def limit(self, name: str) -> EffectiveLimit | None:
        """Find a limit by name."""
        return next((limit for limit in self.limits if limit.rule.name == name), None)


@dataclass(frozen=True, slots=True)
class MeterView:
    """One meter as sidecars see it."""

    name: str
    unit: str
    scale: int
    attributes: tuple[str, ...]
    pseudonymised: tuple[str, ...]
    value_attribute: str = ""
    """Unique meters: the attribute whose distinct values are counted."""
    late_max_s: int = LATE_MAX_S
    early_max_s: int = EARLY_MAX_S


async def load_tenants(
    conn: Connection, *, wire_ids: Collection[str] = (), tenant_ids: Collection[UUID] = ()
) -> list[TenantView]:
    """Read the named tenants and all their ancestors, in wire id order; names without a tenant are left out.

    All of one moment: give a connection that is not in a transaction, or in a REPEATABLE READ one, or one that has
    locked what must not change.
    """
    ids: set[UUID] = set()
    if wire_ids:
        ids.update(row["tenant_id"] for row in await conn.fetch(sql("tenants.by_wire_id"), list(wire_ids)))
    if tenant_ids:
        ids.update(row["tenant_id"] for row in await conn.fetch(sql("tenants.with_ancestors"), list(tenant_ids)))
    if not ids:
        return []
    rows = await conn.fetch(sql("tenants.facts"), list(ids))
    definitions = await _plan_definitions(conn, rows)
    return [_view(row, definitions) for row in rows]


async def _plan_definitions(conn: Connection, rows: Sequence[asyncpg.Record]) -> dict[UUID, dict[str, Any]]:
    wanted = {row["plan_version_id"] for row in rows if row["plan_version_id"] is not None}
    found = await conn.fetch(sql("tenants.plan_definitions"), list(wanted)) if wanted else []
    return {row["plan_version_id"]: json.loads(row["definition"]) for row in found}


def _view(row: asyncpg.Record, definitions: dict[UUID, dict[str, Any]]) -> TenantView:
    plan = definitions.get(row["plan_version_id"], {})
    versions: dict[str, int] = row["versions"]
    return TenantView(
        tenant_id=row["tenant_id"],
        wire_id=row["wire_id"],
        state=row["state"],
        parent=row["parent"] or "",
        plan=row["plan"] or "",
        features=tuple(sorted(plan.get("features", ()))),
        limits=tuple(
            EffectiveLimit(rule=rule, source=source, amount_version=versions.get(rule.name, 1))
            for rule, source in resolve(plan.get("limits", ()), row["subscription_limits"], row["overrides"])
        ),
        schedule=_schedule(row),
        change=row["change"],
    )


def _schedule(row: asyncpg.Record) -> Schedule | None:
    if row["anchor"] is None:
        return None
    return schedule_from(row, started_at=row["started_at"])


async def load_meters(conn: Connection) -> tuple[MeterView, ...]:
    """Read every meter in name order."""
    return tuple(
        MeterView(
            name=row["name"],
            unit=row["unit"],
            scale=row["scale"],
            attributes=tuple(row["attributes"]),
            pseudonymised=tuple(row["pseudonymised"]),
            value_attribute=row["value_attribute"],
            late_max_s=row["late_max_s"],
            early_max_s=row["early_max_s"],
        )
        for row in await conn.fetch(sql("tenants.meters"))
    )


async def write_limit_states(conn: Connection, tenant_ids: Collection[UUID]) -> None:
    """Bring the last effective amounts of these tenants up to date; a version rises exactly where one changed."""
    if not tenant_ids:
        return
    wanted = set(tenant_ids)
    views = [view for view in await load_tenants(conn, tenant_ids=wanted) if view.tenant_id in wanted]
    pairs = [(view, limit) for view in views for limit in view.limits]
    await conn.execute(
        sql("tenants.write_limit_states"),
        [view.tenant_id for view, _ in pairs],
        [limit.rule.name for _, limit in pairs],
        [limit.rule.amount for _, limit in pairs],
        [limit.rule.enforcement.value for _, limit in pairs],
    )
