"""Take usage back: a void record beside each record, so that nothing is edited and every figure forgets it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.usage import ID_BYTES_MAX, VOID_PREFIX
from tollkeeper_ledger.domain.usage_voids import void_columns
from tollkeeper_ledger.services.tenants import check_tenant
from tollkeeper_ledger.store.usage_batches import find_tenants
from tollkeeper_ledger.store.usage_records import stored_records

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.services.usage import UsageIngest
    from tollkeeper_ledger.store.pool import Connection

IDS_MAX = 1_000
"""Records that one call takes back."""


async def void_usage(
    conn: Connection, ingest: UsageIngest, producer_id: UUID, *, tenant: str, ids: Sequence[str], now: datetime
) -> tuple[int, int]:
    """Take records back, all or none; give how many were, and how many had been before. Idempotent.

    In the caller's transaction. What a closed period was billed is not changed: the next invoice takes it back.
    Units of limits are not given back. Raises UnknownNameError TENANT_UNKNOWN, USAGE_UNKNOWN for an id that is not
    stored or whose identity has expired; InvalidFieldError.
    """
    check_tenant(tenant)
    wanted = list(dict.fromkeys(ids))
    if not 1 <= len(wanted) <= IDS_MAX:
        raise InvalidFieldError(
            "ids", "must name records", reason="FIELD_OUT_OF_RANGE", value=len(wanted), bound=f"1 to {IDS_MAX} ids"
        )
    for at, name in enumerate(wanted):
        if not 1 <= len(name.encode()) <= ID_BYTES_MAX or "\0" in name or name.startswith(VOID_PREFIX):
            raise InvalidFieldError(
                f"ids[{at}]", "is no id of a record that can be taken back", bound=f"1 to {ID_BYTES_MAX} bytes, no void"
            )
    tenants = await find_tenants(conn, [tenant])
    if tenant not in tenants:
        raise UnknownNameError("tenant", tenant)
    found = await stored_records(conn, tenants[tenant], wanted)
    for name in wanted:
        if name not in found:
            raise UnknownNameError("usage", name, remedy="name a stored record of the last 49 days")
    columns = void_columns(tenant, [found[name] for name in wanted], now_us=to_us(now))
    outcome = await ingest.append_own(conn, producer_id, columns, now=now)
    if outcome.stored + outcome.duplicates != len(wanted):
        raise RuntimeError("a void was refused as a record")
    return outcome.stored, outcome.duplicates
