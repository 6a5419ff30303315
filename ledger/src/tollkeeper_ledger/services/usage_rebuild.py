"""Derive rollups anew from the records, where they are not what the records come to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage_audit import compare_rollups
from tollkeeper_ledger.domain.usage_rollup import roll_up
from tollkeeper_ledger.store import usage_archive as archives
from tollkeeper_ledger.store import usage_audit as audit
from tollkeeper_ledger.store import usage_rollups as store
from tollkeeper_ledger.store.pool import connection, transaction
from tollkeeper_ledger.store.tenant_locks import TENANTS_EACH_MAX, lock_tenant, tenant_lock_key
from tollkeeper_ledger.store.usage_rollups import all_meters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.usage_audit import Finding
    from tollkeeper_ledger.domain.usage_rollup import MeterFacts, Rollups
    from tollkeeper_ledger.store.pool import Connection, Pool


@dataclass(frozen=True, slots=True)
class RebuiltHour:
    """What was wrong with an hour's rollups; they are right now, unless it was only looked at."""

    hour: datetime
    findings: tuple[Finding, ...]


async def rebuild_rollups(pool: Pool, *, check_only: bool) -> AsyncIterator[RebuiltHour]:
    """Compare every hour's rollups with its records, and make those anew that differ. Safe beside appends.

    Appends and closes of a tenant wait while one hour of its rollups is made anew. Idempotent; stopped at any moment
    it leaves whole hours of whole tenants. Inputs of closed periods are frozen and stay as they are. An hour whose
    month was archived meanwhile keeps its rollups: its records are elsewhere.
    """
    async with connection(pool) as conn:
        hours = await audit.read_hours(conn)
    for hour in hours:
        async with transaction(pool) as conn:
            if await _is_away(conn, hour):
                continue
            findings, tenants = await _differences(conn, hour, await _meters(conn))
        if not check_only:
            # Each tenant is two locks, and Postgres has room for a few thousand.
            ordered = sorted(tenants, key=tenant_lock_key)
            for first in range(0, len(ordered), TENANTS_EACH_MAX):
                await _renew_alone(pool, hour, ordered[first : first + TENANTS_EACH_MAX])
        yield RebuiltHour(hour=hour, findings=findings)


async def _is_away(conn: Connection, hour: datetime) -> bool:
    """Tell whether an hour's records are in a file only; where they are not, they stay until the transaction ends."""
    await archives.hold_months(conn)
    return bool(await archives.archived_between(conn, hour, hour + audit.HOUR))


async def _meters(conn: Connection) -> dict[int, MeterFacts]:
    return {facts.meter_id: facts for facts in (await all_meters(conn)).values()}


async def _renew_alone(pool: Pool, hour: datetime, tenants: Sequence[UUID]) -> None:
    """Make an hour of these tenants anew while nobody appends to them; they are in the order of their locks."""
    async with transaction(pool) as conn:
        if await _is_away(conn, hour):
            return
        for tenant_id in tenants:
            await lock_tenant(conn, tenant_id)
        # Read under the locks: a meter that is declared by now may have records here.
        await _renew(conn, hour, await _meters(conn), set(tenants))


async def _differences(
    conn: Connection, hour: datetime, meters: dict[int, MeterFacts]
) -> tuple[tuple[Finding, ...], set[UUID]]:
    # One statement's snapshot each: an append in between looks like a difference, which is looked at again under locks.
    kept = await audit.rollups_of_hour(conn, hour)
    records = await audit.records_of_hour(conn, hour, meters.keys())
    derived = await asyncio.to_thread(roll_up, records, meters)
    tenants = await audit.tenant_names(conn)
    findings = tuple(compare_rollups(kept, derived, tenants=tenants, names={}))
    return findings, set(_tenants(kept, derived)) if findings else set()


def _tenants(*rollups: Rollups) -> Iterator[UUID]:
    for one in rollups:
        for keys in (one.minutes, one.quarters, one.states, one.values):
            yield from (key.tenant_id for key in keys)


async def _renew(conn: Connection, hour: datetime, meters: dict[int, MeterFacts], tenants: Collection[UUID]) -> None:
    records = [one for one in await audit.records_of_hour(conn, hour, meters.keys()) if one.tenant_id in tenants]
    derived = await asyncio.to_thread(roll_up, records, meters)
    await store.drop_hour(conn, tenants, hour, hour + audit.HOUR)
    await store.add_sums(conn, derived.minutes, derived.quarters)
    await store.add_values(conn, derived.values)
    await store.lock_states(conn, list(derived.states))
    await store.write_states(conn, dict(derived.states))
