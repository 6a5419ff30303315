"""Declare a catalogue: all of it or nothing."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.catalogue.compare import compare
from tollkeeper_ledger.domain.catalogue.faults import Faults
from tollkeeper_ledger.domain.catalogue.known import (
    AddFeature,
    AddPlanVersion,
    AddSubscription,
    ChangeSubscription,
    PutMeter,
    PutSeller,
    PutTenant,
)
from tollkeeper_ledger.domain.catalogue.parse import parse_catalogue
from tollkeeper_ledger.domain.errors import LedgerError
from tollkeeper_ledger.domain.periods import period_at
from tollkeeper_ledger.services import trials
from tollkeeper_ledger.services.catalogue_source import read_source
from tollkeeper_ledger.store import catalogue_writes as writes
from tollkeeper_ledger.store.billing_closes import read_definitions
from tollkeeper_ledger.store.billing_segments import cut_segments, read_schedules
from tollkeeper_ledger.store.catalogue import find_tenant_ids, read_known
from tollkeeper_ledger.store.changes import record_changes
from tollkeeper_ledger.store.subscriptions import drop_eras
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.catalogue.known import Change
    from tollkeeper_ledger.domain.catalogue.model import Catalogue
    from tollkeeper_ledger.store.pool import Connection

# Errors travel in HTTP/2 trailers, of which clients take 8 KiB: the message stands in them twice, the list once.
_MESSAGE_CHARS_MAX = 900
_PROBLEMS_CHARS_MAX = 2400


class CatalogueInvalidError(LedgerError):
    """Refuse a catalogue as a whole and name everything that is wrong with it."""

    def __init__(self, faults: Faults, *, source_name: str) -> None:
        found = faults.in_order()
        first = found[0]
        count = len(found) + faults.more
        source = ascii(source_name)[1:-1][:128] or "catalogue"
        lines = [_in_ascii(fault.text()) for fault in found]
        super().__init__(
            f"{source}: {count} problem{'s' if count > 1 else ''}, nothing was stored: "
            + _joined(lines, "; ", _MESSAGE_CHARS_MAX, count),
            reason="CATALOGUE_INVALID",
            metadata={
                "file": source,
                "line": str(first.line),
                "field": first.field[:128],
                "value": first.value[:128],
                "bound": first.bound[:300],
                "remedy": first.remedy[:200],
                "problems": _joined(lines, "\n", _PROBLEMS_CHARS_MAX, count),
            },
        )
        self.faults = found


def _in_ascii(text: str) -> str:
    """Escape what can't stand in a trailer; quotes stay as they are."""
    return "".join(one if one.isascii() and one.isprintable() else ascii(one)[1:-1] for one in text)


def _joined(lines: Sequence[str], separator: str, chars_max: int, count: int) -> str:
    shown: list[str] = []
    room = chars_max
    for line in lines:
        room -= len(line) + len(separator)
        if room < 0 and shown:
            break
        shown.append(line[:chars_max])
    if len(shown) < count:
        shown.append(f"and {count - len(shown)} more")
    return separator.join(shown)


def read_catalogue(yaml_text: str, *, source_name: str) -> Catalogue:
    """Read a catalogue. Raises CatalogueInvalidError with all that is wrong in itself. Takes time: run in a thread."""
    faults = Faults()
    root = read_source(yaml_text, faults)
    if faults.found:
        raise CatalogueInvalidError(faults, source_name=source_name)
    catalogue = parse_catalogue(root, faults)
    if faults.found:
        raise CatalogueInvalidError(faults, source_name=source_name)
    return catalogue


async def diff_catalogue(conn: Connection, *, yaml_text: str, source_name: str, now: datetime) -> list[Change]:
    """Give what applying would change. Raises CatalogueInvalidError as applying would."""
    catalogue = await asyncio.to_thread(read_catalogue, yaml_text, source_name=source_name)
    return await _compare(conn, catalogue, source_name=source_name, now=now)


async def check_catalogue(conn: Connection, *, yaml_text: str, source_name: str, now: datetime) -> Catalogue:
    """Read a catalogue that could be applied. Raises CatalogueInvalidError as applying would."""
    catalogue = await asyncio.to_thread(read_catalogue, yaml_text, source_name=source_name)
    await _compare(conn, catalogue, source_name=source_name, now=now)
    return catalogue


async def apply_catalogue(
    conn: Connection,
    *,
    yaml_text: str,
    source_name: str,
    request_id: str,
    actor: str,
    now: datetime,
    new_id: Callable[[], UUID] = uuid.uuid4,
) -> list[Change]:
    """Store what a catalogue changes and push it to sidecars; give the changes. Repeated, it changes nothing.

    `conn` is in a transaction of the billing role, which the caller commits. Plan versions in use are never edited.
    Raises CatalogueInvalidError: something is wrong; nothing was stored.
    """
    catalogue = await asyncio.to_thread(read_catalogue, yaml_text, source_name=source_name)
    await writes.lock_catalogue(conn)
    changes = await _compare(conn, catalogue, source_name=source_name, now=now)
    changed = [change for change in changes if change.write is not None]
    if not changed:
        return changes
    await _write(conn, changed, now=now, new_id=new_id)
    names = {change.name for change in changed if change.kind in {"tenant", "subscription"}}
    tenant_ids = await find_tenant_ids(conn, names)
    entries = [
        writes.AuditEntry(
            subject=f"{change.kind}/{change.name}",
            tenant_id=tenant_ids.get(change.name) if change.kind in {"tenant", "subscription"} else None,
            before=change.before,
            after=change.after,
        )
        for change in changed
    ]
    await writes.add_audit(conn, entries, now=now, actor=actor, action="ApplyCatalogue", request_id=request_id)
    await record_changes(conn, list(tenant_ids.values()))
    return changes


async def _compare(conn: Connection, catalogue: Catalogue, *, source_name: str, now: datetime) -> list[Change]:
    named = {tenant.tenant for tenant in catalogue.tenants}
    named |= {reference.name for reference in catalogue.references if reference.kind == "tenant"}
    known = await read_known(conn, named, catalogue.meters)
    faults = Faults()
    changes = compare(catalogue, known, now=now, faults=faults)
    if faults.found:
        raise CatalogueInvalidError(faults, source_name=source_name)
    return changes


async def _write(conn: Connection, changes: Sequence[Change], *, now: datetime, new_id: Callable[[], UUID]) -> None:
    puts: list[tuple[UUID, PutTenant]] = []
    added: list[tuple[UUID, AddSubscription]] = []
    moved: list[ChangeSubscription] = []
    for change in changes:
        match change.write:
            case PutTenant() as put:
                puts.append((new_id(), put))
            case AddSubscription() as one:
                added.append((new_id(), one))
            case ChangeSubscription() as one:
                moved.append(one)
            case AddPlanVersion() as version:
                await writes.add_plan_version(conn, version, plan_id=new_id(), plan_version_id=new_id(), now=now)
            case other:
                await _write_shared(conn, other, now=now)
    await writes.put_tenants(conn, puts, now=now)
    await writes.add_subscriptions(conn, added)
    said = {one.tenant: one.declared for _, one in added if one.declared is not None}
    said |= {one.tenant: one.declared for one in moved if one.declared is not None}
    await writes.declare_subscriptions(conn, said)
    asking = {one.tenant for _, one in added if one.trial_asks and one.trial_end is not None}
    tenant_ids = await find_tenant_ids(conn, {one.tenant for one in moved} | asking)
    for tenant_id in sorted(tenant_ids[name] for name in asking):
        await trials.lay(conn, tenant_id, now=now)
    for one in sorted(moved, key=lambda one: tenant_ids[one.tenant]):
        await _change_subscription(conn, tenant_ids[one.tenant], one, now=now)


async def _write_shared(conn: Connection, write: PutSeller | PutMeter | AddFeature | None, *, now: datetime) -> None:
    match write:
        case PutSeller(seller=seller):
            await writes.put_seller(conn, seller)
        case PutMeter(seller_id=seller_id, meter=meter):
            await writes.put_meter(conn, seller_id, meter, now=now)
        case AddFeature(seller_id=seller_id, name=name):
            await writes.add_feature(conn, seller_id, name)
        case None:
            pass


async def _change_subscription(conn: Connection, tenant_id: UUID, change: ChangeSubscription, *, now: datetime) -> None:
    await writes.set_subscription_limits(conn, change.subscription_id, change.limits)
    if not change.plan:
        return
    # Alone: an append may be stamping usage of the next period with the version that this replaces.
    await lock_tenant(conn, tenant_id)
    await trials.lift(conn, tenant_id, now=now)
    schedules = await read_schedules(conn, [tenant_id])
    schedule = next(one for one in schedules if one.subscription_id == change.subscription_id)
    counted = schedule.era_at(now)
    running = period_at(counted, now)
    ends = [
        schedule.started_at,
        running.end if running is not None else schedule.started_at,
        await writes.last_segment_end(conn, tenant_id, change.subscription_id) or schedule.started_at,
    ]
    prices_from = change.prices_from or max(ends)
    # A move by the catalogue keeps the interval: another one that is scheduled is taken back with its plan.
    others = [one for one in schedule.eras if one.started_at > now and one.interval != counted.interval]
    if change.follows is not None and others:
        kept = await read_definitions(conn, [schedule.plan_version_at(one.started_at) for one in others])
        others = [
            one
            for one in others
            if json.loads(kept[schedule.plan_version_at(one.started_at)].definition)["name"] in change.follows
        ]
    await drop_eras(conn, schedule, others)
    await cut_segments(conn, tenant_id, change.subscription_id, at=prices_from)
    await writes.move_subscription(
        conn,
        tenant_id,
        change.subscription_id,
        plan=change.plan,
        prices_from=prices_from,
        follows=change.follows,
    )
    await trials.lay(conn, tenant_id, now=now)
