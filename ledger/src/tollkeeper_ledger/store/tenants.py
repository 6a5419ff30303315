"""Read tenants as sidecars see them: state, parent, plan, features, effective limits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.catalogue.model import EARLY_MAX_S, LATE_MAX_S
from tollkeeper_ledger.domain.features import features_of
from tollkeeper_ledger.domain.limits import merge, rule_from_json
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.reshape import Hold, Use, hold_after, limits_in_turn
from tollkeeper_ledger.store.billing_segments import schedule_from
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from uuid import UUID

    import asyncpg

    from tollkeeper_ledger.domain.limits import EffectiveLimit, Json, Source
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
    """In name order; two of a name where a change of kind or key waits for a window's end, the present one first."""
    schedule: Schedule | None
    """Billing periods of the running subscription."""
    change: int

    def limit(self, name: str, at_us: int | None = None) -> EffectiveLimit | None:
        """Find a limit by name: with the kind and key that it has at `at_us`, or else as it is declared."""
        # The one that is declared comes last.
        found = (limit for limit in reversed(self.limits) if limit.rule.name == name)
        if at_us is not None:
            found = (limit for limit in found if limit.from_us <= at_us < limit.until_us)
        return next(found, None)


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


def hidden_attributes(meters: Iterable[MeterView]) -> set[str]:
    """Name the attributes that a record with these meters stores as pseudonyms: those that any of them hides."""
    return {name for meter in meters for name in meter.pseudonymised}


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
    return [_view(row, plan) for row, plan in await _facts(conn, ids)]


async def _facts(conn: Connection, ids: Collection[UUID]) -> list[tuple[asyncpg.Record, dict[str, Any]]]:
    """Read what snapshots are made of, with the plan's definition."""
    if not ids:
        return []
    rows = await conn.fetch(sql("tenants.facts"), list(ids))
    definitions = await _plan_definitions(conn, rows)
    return [(row, definitions.get(row["plan_version_id"], {})) for row in rows]


async def _plan_definitions(conn: Connection, rows: Sequence[asyncpg.Record]) -> dict[UUID, dict[str, Any]]:
    wanted = {row["plan_version_id"] for row in rows if row["plan_version_id"] is not None}
    found = await conn.fetch(sql("tenants.plan_definitions"), list(wanted)) if wanted else []
    return {row["plan_version_id"]: json.loads(row["definition"]) for row in found}


def _declared(row: asyncpg.Record, plan: dict[str, Any]) -> list[tuple[Json, Source]]:
    return merge(plan.get("limits", ()), row["subscription_limits"], row["overrides"])


def _view(row: asyncpg.Record, plan: dict[str, Any]) -> TenantView:
    limits: list[EffectiveLimit] = []
    for rule, source in _declared(row, plan):
        state: dict[str, Any] = row["states"].get(rule["name"], {})
        hold = Hold(rule=state["held"], until_us=state["until_us"]) if "held" in state else None
        version, shape = state.get("version", 1), state.get("shape", 0)
        limits += limits_in_turn(rule_from_json(rule), source, hold, amount_version=version, shape=shape)
    return TenantView(
        tenant_id=row["tenant_id"],
        wire_id=row["wire_id"],
        state=row["state"],
        parent=row["parent"] or "",
        plan=row["plan"] or "",
        features=tuple(features_of(plan, row["features"])),
        limits=tuple(limits),
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
    """Bring what is known of these tenants' limits up to date; a version rises exactly where an amount changed.

    Where a kind or key changed the rule before is held until its windows are over.
    """
    facts = await _facts(conn, set(tenant_ids))
    schedules = {row["tenant_id"]: _schedule(row) for row, _ in facts}
    declared = {(row["tenant_id"], str(rule["name"])): rule for row, plan in facts for rule, _ in _declared(row, plan)}
    if not declared:
        return
    holds = await _holds(conn, declared, schedules)
    await conn.execute(
        sql("tenants.write_limit_states"),
        [tenant_id for tenant_id, _ in declared],
        [name for _, name in declared],
        [int(rule["amount"]) for rule in declared.values()],
        [str(rule.get("enforcement", "hard")) for rule in declared.values()],
        [json.dumps(rule) for rule in declared.values()],
        [json.dumps(holds[limit].rule) if limit in holds else None for limit in declared],
        [int(holds[limit].rule["amount"]) if limit in holds else None for limit in declared],
        [holds[limit].until_us if limit in holds else None for limit in declared],
    )


async def _holds(
    conn: Connection, declared: dict[tuple[UUID, str], Json], schedules: dict[UUID, Schedule | None]
) -> dict[tuple[UUID, str], Hold]:
    """Find what is held of limits whose kind or key changes."""
    rows = await conn.fetch(
        sql("tenants.reshaped_limits"),
        [tenant_id for tenant_id, _ in declared],
        [name for _, name in declared],
        [json.dumps(rule) for rule in declared.values()],
    )
    if not rows:
        return {}
    now_us = to_us(await ledger_now(conn))
    used = await conn.fetch(sql("tenants.limit_use"), [row["tenant_id"] for row in rows], [row["name"] for row in rows])
    uses = {(row["tenant_id"], row["name"]): Use(is_used=row["is_used"], last_end_us=row["end_us"]) for row in used}
    holds: dict[tuple[UUID, str], Hold] = {}
    for row in rows:
        limit = (row["tenant_id"], row["name"])
        before = None if row["held"] is None else Hold(rule=row["held"], until_us=row["held_until_us"])
        schedule = schedules[row["tenant_id"]]
        hold = hold_after(row["rule"], before, declared[limit], uses[limit], schedule=schedule, now_us=now_us)
        if hold is not None:
            holds[limit] = hold
    return holds
