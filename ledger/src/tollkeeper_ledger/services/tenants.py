"""Find and change tenants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.catalogue.reader import NAME
from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.store import catalogue_writes as writes
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.changes import record_changes
from tollkeeper_ledger.store.pool import connection

if TYPE_CHECKING:
    from uuid import UUID

    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.pool import Connection, Pool


def check_tenant(wire_id: str) -> None:
    """Refuse what can't be a tenant's wire id. Raises InvalidFieldError."""
    if not wire_id:
        raise InvalidFieldError("tenant", "is missing", reason="FIELD_REQUIRED", remedy="name the tenant")
    if NAME.fullmatch(wire_id) is None:
        raise InvalidFieldError(
            "tenant", "is not a wire id", value=ascii(wire_id[:64]), bound="1 to 128 of A-Z a-z 0-9 . _ : -"
        )


async def need_tenant(pool: Pool, wire_id: str) -> UUID:
    """Give a tenant's internal id; `pool` sees all tenants. Raises InvalidFieldError or UnknownNameError."""
    check_tenant(wire_id)
    # One statement is a transaction by itself: to begin and end one would be two more round trips of every report.
    async with connection(pool) as conn:
        found = await find_tenant_ids(conn, [wire_id])
    if wire_id not in found:
        raise unknown_tenant(wire_id)
    return found[wire_id]


def unknown_tenant(wire_id: str) -> UnknownNameError:
    """Give the error for a tenant that nobody declared."""
    return UnknownNameError("tenant", wire_id, remedy="declare it in the catalogue")


async def set_tenant_state(conn: Connection, tenant_id: UUID, *, state: str, act: Act) -> None:
    """Suspend or reactivate a tenant and push it; nothing happens where it is in that state.

    `conn` is in a transaction of this tenant.
    """
    before = await writes.set_tenant_state(conn, tenant_id, state)
    if before == state:
        return
    entry = writes.AuditEntry(subject="tenant", tenant_id=tenant_id, before={"state": before}, after={"state": state})
    await writes.add_audit(
        conn, [entry], now=act.now, actor=act.actor, action="SetTenantState", request_id=act.request_id
    )
    await record_changes(conn, [tenant_id])
