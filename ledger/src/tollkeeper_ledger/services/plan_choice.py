"""Find the plan version that somebody means by a plan's name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.catalogue.canonical import list_plan, own_plan
from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.store import subscriptions as store

if TYPE_CHECKING:
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection


async def plan_in(conn: Connection, tenant_id: UUID, name: str, currency: str) -> store.PlanVersion:
    """Find a plan's newest version in a currency, with the tenant's own prices where the catalogue gives it some.

    Raises UnknownNameError: no such plan, or not in that currency; InvalidFieldError: another tenant's own.
    """
    tenant, declared = await store.read_declared(conn, tenant_id)
    if name != list_plan(name) and name != own_plan(list_plan(name), tenant):
        problem = "has another tenant's own prices"
        raise InvalidFieldError("plan", problem, value=name, remedy=f"name {list_plan(name)!r}")
    found = await store.read_newest_plan(conn, name)
    if found is not None and currency and json.loads(found.definition)["currency"] != currency:
        name = f"{list_plan(name)}/{currency}"
        found = await store.read_newest_plan(conn, name)
    if found is not None and own_plan(name, tenant) == declared:
        found = await store.read_newest_plan(conn, declared)
    if found is None:
        raise UnknownNameError("plan", name, remedy="declare it in the catalogue")
    return found
