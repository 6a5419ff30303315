"""Keep the last effective amount and enforcement of every limit, so that amount_version rises exactly with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.catalogue_limits import put_limit_states, read_declared_limits

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.store.pool import Connection


async def effective_rules(conn: Connection, tenant_ids: Collection[UUID]) -> dict[UUID, dict[str, JsonObject]]:
    """Give the stored rules in force by name: the plan's, replaced by the subscription's, replaced by overrides."""
    plans: dict[UUID, list[JsonObject]] = {}
    effective: dict[UUID, dict[str, JsonObject]] = {}
    for declared in await read_declared_limits(conn, tenant_ids):
        rules: dict[str, JsonObject] = {}
        if declared.plan_version_id is not None:
            if declared.plan_version_id not in plans:
                plans[declared.plan_version_id] = json.loads(declared.definition)["limits"]
            rules.update((rule["name"], rule) for rule in plans[declared.plan_version_id])
        rules.update((rule["name"], rule) for rule in declared.subscription)
        rules.update((rule["name"], rule) for rule in declared.overrides)
        effective[declared.tenant_id] = rules
    return effective


async def refresh(conn: Connection, tenant_ids: Collection[UUID]) -> dict[UUID, dict[str, JsonObject]]:
    """Bring limit_state up to date after a change of these tenants' limits; give the rules in force.

    Call it in the changing transaction, before `record_changes`.
    """
    effective = await effective_rules(conn, tenant_ids)
    rows = [
        (tenant_id, name, rule["amount"], rule["enforcement"])
        for tenant_id, rules in sorted(effective.items())
        for name, rule in sorted(rules.items())
    ]
    await put_limit_states(conn, rows)
    return effective
