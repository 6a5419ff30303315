"""Check stored usage against its chain, and everything derived from it against the records."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.usage_audit import (
    Checked,
    Finding,
    check_batch,
    check_link,
    check_refused,
    compare_rollups,
)
from tollkeeper_ledger.domain.usage_chain import CHAIN_START
from tollkeeper_ledger.domain.usage_proof import key_name, read_statement
from tollkeeper_ledger.domain.usage_quarantine import act_problem, counted_as
from tollkeeper_ledger.domain.usage_rollup import roll_up
from tollkeeper_ledger.services.archive_audit import check_archives
from tollkeeper_ledger.services.closed_usage import check_usage, read_away
from tollkeeper_ledger.services.usage_roots import is_signed
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store import usage_archive as archives
from tollkeeper_ledger.store import usage_audit as store
from tollkeeper_ledger.store import usage_quarantine as quarantine
from tollkeeper_ledger.store import usage_roots as roots
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.damaged import UNREADABLE
from tollkeeper_ledger.store.usage_rollups import all_meters
from tollkeeper_ledger.store.verifying import read_links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from tollkeeper_ledger.domain.usage_audit import Found
    from tollkeeper_ledger.domain.usage_proof import SignedRoot
    from tollkeeper_ledger.domain.usage_rollup import MeterFacts
    from tollkeeper_ledger.store.pool import Connection
    from tollkeeper_ledger.store.verifying import StoredLink

_LINKS_AT_ONCE = 200
_PERIODS_AT_ONCE = 100


async def verify_usage(
    conn: Connection, *, outside: Sequence[SignedRoot] = (), archive: Path | None = None
) -> AsyncIterator[Found]:
    """Recompute every link, record, id and rollup; give what is wrong in order, and how far it is in between.

    `outside`: roots that are kept outside of Postgres. Whoever can rewrite all of the chain can't rewrite those.
    `archive`: directory with the files of archived months; without it they are taken at Postgres' word, and their
    rollups are not compared.

    `conn` is in a REPEATABLE READ transaction of a role that sees everything, so that all is of one moment; it begins
    with `hold_months`. A row that was changed is named by itself; of rows that are gone the batch is named. Reads
    everything that is stored.
    """
    await store.allow_pauses(conn)
    checked = Checked()
    meters = await all_meters(conn)
    names = {facts.meter_id: name for name, facts in meters.items()}
    now_us = to_us(await ledger_now(conn))
    async for archived in check_archives(conn, archive, meters, checked):
        yield archived
    for stream in await store.read_streams(conn):
        async for found in _stream(conn, stream, names, checked, now_us=now_us):
            yield found
    for finding in await _strays(conn):
        yield finding
    async for finding in _acts(conn, names):
        yield finding
    parts = (
        _roots(conn, outside, checked),
        _rollups(conn, meters, checked),
        _periods(conn, checked),
    )
    for part in parts:
        async for part_found in part:
            yield part_found


async def _strays(conn: Connection) -> list[Finding]:
    """Find what stands in no batch of the chain, or not where the chain says."""
    records, ids = await store.unchained_records(conn), await store.lone_ids(conn)
    refused, producers = await store.unchained_refused(conn), await store.misplaced_producers(conn)
    return [
        *(Finding("usage_record", row, "stands in no batch of the chain") for row in records),
        *(Finding("usage_quarantine", row, "stands in no batch of the chain") for row in refused),
        *(Finding("usage_id", row, "has no record") for row in ids),
        *(Finding("producer", one.hex, "stands elsewhere than its last link says") for one in producers),
    ]


async def _acts(conn: Connection, names: Mapping[int, str]) -> AsyncIterator[Finding]:
    """Compare what operators did about quarantine with the records that it released, and with the audit log."""
    async for page in quarantine.all_acts(conn):
        places = [(one.act.batch_id, one.act.batch_seq) for one in page if one.act.batch_id]
        counted = await store.placed_rows(conn, places, names)
        away = await archives.archived_counts(conn, [batch for batch, _ in places])
        for one in page:
            record = counted.get((one.act.batch_id, one.act.batch_seq))
            problem = act_problem(
                one.act,
                stored_check=one.row_check,
                refused_hash=one.content_hash,
                counted_hash=None if record is None or one.record is None else counted_as(record, one.record),
                away=one.act.batch_id in away,
            )
            if problem or not one.noted:
                yield Finding("usage_quarantine_act", one.act.name, problem or "is not in the audit log")
    for subject in await quarantine.lost_acts(conn, count_max=store.FINDINGS_MAX):
        yield Finding("usage_quarantine_act", subject, "is told by the audit log and is not there")


async def _rollups(conn: Connection, meters: Mapping[str, MeterFacts], checked: Checked) -> AsyncIterator[Found]:
    """Derive every hour's rollups from its records again."""
    tenants = await store.tenant_names(conn)
    names = {facts.meter_id: name for name, facts in meters.items()}
    facts = {one.meter_id: one for one in meters.values()}
    for hour in await store.read_hours(conn):
        kept = await store.rollups_of_hour(conn, hour)
        records = await store.records_of_hour(conn, hour, facts.keys())
        derived = await asyncio.to_thread(roll_up, records, facts)
        for finding in compare_rollups(kept, derived, tenants=tenants, names=names):
            yield finding
        checked.hours += 1
        yield checked


async def _periods(conn: Connection, checked: Checked) -> AsyncIterator[Found]:
    """Sum what every closed period was billed for again, from the records of its segments."""
    for tenant, start in await closes.read_closes_beyond(conn, count_max=store.FINDINGS_MAX):
        yield Finding("billing_close", f"tenant {tenant}, period from {start}", "begins when no calendar has a day")
    after: closes.CloseKey | None = None
    while page := await closes.read_closes_after(conn, after, count_max=_PERIODS_AT_ONCE):
        for one in page:
            if problem := await _billed_otherwise(conn, one):
                row = f"tenant {one.tenant}, period from {one.key.period_start.isoformat()}"
                yield Finding("billing_close", row, problem)
            checked.periods += 1
        after = page[-1].key
        yield checked


async def _billed_otherwise(conn: Connection, close: closes.StoredClose) -> str:
    """Say what is wrong with what a period was billed for; empty where nothing is."""
    try:
        async with conn.transaction():
            inputs = json.loads(close.inputs)
            away = await read_away(conn, inputs, close.key.tenant_id)
            told = await check_usage(conn, inputs, close.key.tenant_id, away=away)
    except UNREADABLE as error:
        # Whoever changed them, or what they name, may have left anything there.
        return f"its inputs can't be read: {error!r}"
    return "" if told.ok else told.detail


async def _roots(conn: Connection, outside: Sequence[SignedRoot], checked: Checked) -> AsyncIterator[Found]:
    """Compare what was signed with the chain: a link that was signed must be there as it was."""
    inside = [stored async for stored in roots.read_roots(conn)]
    known = {stored.root.statement for stored in inside}
    hashes: dict[tuple[int, int], bytes | None] = {}
    both: list[tuple[SignedRoot, str, datetime | None]] = [
        (one.root, f"number {one.root_id}", one.signed_at) for one in inside
    ]
    both += [(root, "kept outside", None) for root in outside if root.statement not in known]
    for root, place_told, signed_at in both:
        checked.roots += 1
        try:
            signed_us, heads = read_statement(root.statement)
        except ValueError as error:
            yield Finding("usage_root", f"{place_told}, key {key_name(root.public_key)}", str(error))
            continue
        name = f"{place_told}, signed at {from_us(signed_us).isoformat()} with key {key_name(root.public_key)}"
        if signed_at is not None and to_us(signed_at) != signed_us:
            yield Finding("usage_root", name, f"says that it was signed at {signed_at.isoformat()}")
        if not is_signed(root):
            yield Finding("usage_root", name, "its signature is not of its statement")
        for head in heads:
            place = (head.stream, head.position)
            if place not in hashes:
                hashes[place] = await roots.link_hash_at(conn, *place)
            if hashes[place] != head.hash:
                problem = f"link {head.position} of stream {head.stream} is not the one that was signed"
                yield Finding("usage_root", name, problem)
    yield checked


async def _stream(
    conn: Connection, stream: store.StreamState, names: Mapping[int, str], checked: Checked, *, now_us: int
) -> AsyncIterator[Found]:
    previous, position = CHAIN_START, 0
    page: list[StoredLink] = []
    async for link in read_links(conn, stream.stream, last=stream.last or 0):
        page.append(link)
        if len(page) == _LINKS_AT_ONCE or link.position == stream.last:
            batches = [one.body.batch_id for one in page]
            rows = await store.batch_rows(conn, batches, names)
            refused = await store.batch_refused(conn, batches)
            away = await archives.archived_counts(conn, batches)
            for one in page:
                position += 1
                records = rows.get(one.body.batch_id, [])
                problem = check_link(
                    stream.stream, position, stored=one.position, previous=previous, body=one.body, hashed=one.hash
                )
                if problem:
                    yield Finding("usage_chain", f"stream {stream.stream}, position {one.position}", problem)
                gone = away.get(one.body.batch_id, 0)
                for finding in check_batch(one.body, records, now_us=now_us, away=gone):
                    if not problem or not finding.row.startswith("batch "):
                        yield finding
                for finding in check_refused(one.body, refused.get(one.body.batch_id, [])):
                    if not problem or not finding.row.startswith("batch "):
                        yield finding
                previous, position = one.hash, one.position
                checked.links += 1
                checked.records += len(records)
            page = []
            yield checked
    expected = (stream.last, previous, stream.stored, stream.refused)
    if expected != (stream.position, stream.hash, stream.stored_total, stream.quarantined_total):
        yield Finding("usage_chain_head", f"stream {stream.stream}", "is not what the links of its stream come to")
