"""Derive rollups anew from the records, where they are not what the records come to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.usage_rollup import roll_up
from tollkeeper_ledger.services.usage_audit import compare_rollups
from tollkeeper_ledger.store import usage_audit as audit
from tollkeeper_ledger.store import usage_rollups as store
from tollkeeper_ledger.store.pool import connection, transaction
from tollkeeper_ledger.store.tenant_locks import lock_tenant, tenant_lock_key
from tollkeeper_ledger.store.usage_rollups import all_meters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator
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
    it leaves whole hours. Inputs of closed periods are frozen and stay as they are.
    """
    async with connection(pool) as conn:
        hours = await audit.read_hours(conn)
    for hour in hours:
        async with transaction(pool) as conn:
            meters = {facts.meter_id: facts for facts in (await all_meters(conn)).values()}
            findings, tenants = await _differences(conn, hour, meters)
            if tenants and not check_only:
                for tenant_id in sorted(tenants, key=tenant_lock_key):
                    await lock_tenant(conn, tenant_id)
                await _renew(conn, hour, meters, tenants)
        yield RebuiltHour(hour=hour, findings=findings)


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
