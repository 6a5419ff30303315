"""Hide what the catalogue hides of records, and destroy the keys of pseudonyms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.pseudonyms import PseudonymKey, version_of
from tollkeeper_ledger.services.notes import NOTE_BYTES_MAX
from tollkeeper_ledger.store import catalogue_writes as writes
from tollkeeper_ledger.store.changes import record_changes
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.pseudonyms import read_keys, turn_key
from tollkeeper_ledger.store.tenants import hidden_attributes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from uuid import UUID

    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.pool import Connection, Pool
    from tollkeeper_ledger.store.tenants import MeterView

_CACHED_MAX = 200_000


class PseudonymKeys:
    """Keys of tenants' pseudonyms in memory, one notification behind Postgres at most. A version never goes back."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._keys: dict[UUID, PseudonymKey] = {}

    def known(self, tenant_id: UUID) -> PseudonymKey | None:
        """Give a tenant's key where it was read before."""
        return self._keys.get(tenant_id)

    async def get(self, tenant_ids: Collection[UUID]) -> dict[UUID, PseudonymKey]:
        """Give the keys of tenants that exist; made where there are none."""
        found = {tenant_id: key for tenant_id in tenant_ids if (key := self._keys.get(tenant_id)) is not None}
        # Not out of memory again: it may have no room for all of them.
        return found | await self.read([tenant_id for tenant_id in tenant_ids if tenant_id not in found])

    async def read(self, tenant_ids: Collection[UUID]) -> dict[UUID, PseudonymKey]:
        """Read and give the keys of tenants that exist, whatever is in memory; made where there are none."""
        if not tenant_ids:
            return {}
        async with connection(self._pool) as conn:
            found = await read_keys(conn, set(tenant_ids))
        for tenant_id, key in found.items():
            before = self._keys.pop(tenant_id, None)
            found[tenant_id] = before if before is not None and before.version > key.version else key
        self._keys |= found
        while len(self._keys) > _CACHED_MAX:
            del self._keys[next(iter(self._keys))]
        return found

    def clear(self) -> None:
        """Forget every key: Postgres may have gone back."""
        self._keys.clear()


def hides(meters: Iterable[MeterView]) -> bool:
    """Say whether one of these meters hides an attribute."""
    return any(meter.pseudonymised for meter in meters)


def stored_pairs(
    pairs: Iterable[tuple[str, str]], meters: Collection[MeterView], key: PseudonymKey | None
) -> list[tuple[str, str]]:
    """Give the attributes that a record with these meters stores in name order, hidden ones as pseudonyms.

    `key` is needed where one of the meters hides something.
    """
    hidden = hidden_attributes(meters)
    declared = {name for meter in meters for name in meter.attributes}
    kept = {
        name: value if name not in hidden else _hidden(key, name, value) for name, value in pairs if name in declared
    }
    return sorted(kept.items(), key=lambda pair: pair[0].encode())


def stored_reserved(
    pairs: Iterable[tuple[str, str]], meters: Iterable[MeterView], key: PseudonymKey | None
) -> list[tuple[str, str]]:
    """Give a reservation's attributes as the record of its end stores them, as its home signed them.

    What one of the end's meters hides and no meter of the reservation did stands there as its pseudonym.
    """
    hidden = hidden_attributes(meters)
    return [
        (name, _hidden(key, name, value) if name in hidden and version_of(value) is None else value)
        for name, value in pairs
    ]


def _hidden(key: PseudonymKey | None, name: str, value: str) -> str:
    if key is None:
        raise LookupError("a key of pseudonyms was not read before it was needed")
    return key.pseudonym(name, value)


async def forget_pseudonyms(conn: Connection, tenant_id: UUID, *, note: str, act: Act) -> int:
    """Destroy the key of a tenant's pseudonyms and tell every replica and sidecar; give the next key's version.

    0 where there was no key. Stored records stay as they are. Who hears nothing for a while still makes pseudonyms of
    the old key, in memory. `conn` is in a transaction of this tenant.
    """
    if not note or len(note.encode()) > NOTE_BYTES_MAX:
        raise InvalidFieldError(
            "note",
            "is too long" if note else "is missing",
            reason="FIELD_TOO_LONG" if note else "FIELD_REQUIRED",
            bound=f"1 to {NOTE_BYTES_MAX} bytes",
            remedy="say why, for the audit log",
        )
    destroyed, version = await turn_key(conn, tenant_id)
    before = {"version": destroyed} if destroyed else {}
    after = {"version": version, "note": note}
    entry = writes.AuditEntry(subject="pseudonyms", tenant_id=tenant_id, before=before, after=after)
    await writes.add_audit(
        conn, [entry], now=act.now, actor=act.actor, action="ForgetPseudonyms", request_id=act.request_id
    )
    await record_changes(conn, [tenant_id])
    return version
