"""Declaring on a real Postgres: all or nothing, once, and in force everywhere."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from billing_bench import catalogue
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.services.catalogue import CatalogueInvalidError
from tollkeeper_ledger.services.segments import ensure_segment, ensure_segments
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.tenant_locks import share_tenants

if TYPE_CHECKING:
    import uuid

    from billing_bench import BillingBench
    from tollkeeper_ledger.services.segments import Segment

pytestmark = pytest.mark.asyncio

EXAMPLES = {
    path.stem: path.read_text()
    for path in sorted((Path(__file__).resolve().parents[3] / "examples" / "catalogues").glob("*.yaml"))
}

COUNTS = """
    SELECT (SELECT count(*) FROM seller) + (SELECT count(*) FROM meter) + (SELECT count(*) FROM plan_version)
         + (SELECT count(*) FROM tenant) + (SELECT count(*) FROM subscription)
         + (SELECT count(*) FROM subscription_phase) + (SELECT count(*) FROM audit_log)
         + (SELECT last FROM change_counter) AS everything"""


async def everything(bench: BillingBench) -> int:
    """Count all that a catalogue could store, change numbers included."""
    (row,) = await bench.rows(COUNTS)
    counted: int = row["everything"]
    return counted


async def ensure(bench: BillingBench, *used: tuple[uuid.UUID, int]) -> list[Segment]:
    """Stamp in a transaction of its own, as an append does."""
    async with transaction(bench.ingest_pool) as conn:
        await share_tenants(conn, {tenant_id for tenant_id, _ in used})
        return await ensure_segments(conn, used)


async def test_a_repeat_changes_nothing(bench: BillingBench) -> None:
    """Applied again, a catalogue stores nothing: no version, no audit entry, no change number."""
    yaml = catalogue(bench.start, "code", "conv")
    first = await bench.apply(yaml)
    assert {change.action for change in first} == {"create"}
    before = await everything(bench)
    again = await bench.apply(yaml)
    assert {change.action for change in again} == {"unchanged"}
    assert before == await everything(bench)


async def test_the_same_catalogue_twice_at_once_is_applied_once(bench: BillingBench) -> None:
    """Of concurrent appliers one creates and the others find it there."""
    yaml = catalogue(bench.start, "code", "conv")
    runs = await asyncio.gather(*(bench.apply(yaml) for _ in range(4)))
    actions = sorted({change.action for change in run}.pop() for run in runs)
    assert actions == ["create", "unchanged", "unchanged", "unchanged"]
    (row,) = await bench.rows("SELECT count(*) FROM plan_version")
    assert row[0] == 2


async def test_a_faulty_catalogue_stores_nothing(bench: BillingBench) -> None:
    """One fault anywhere, in itself or beside what is stored, and nothing of the file is stored."""
    await bench.apply(catalogue(bench.start, "code"))
    before = await everything(bench)
    changed = catalogue(bench.start, "code", "new", price="11.00")
    for faulty in (changed + "plans: []\n", changed.replace("unit: tokens", "unit: words", 1), changed[:-200]):
        with pytest.raises(CatalogueInvalidError):
            await bench.apply(faulty)
        assert before == await everything(bench)


async def test_versions_are_pinned(bench: BillingBench) -> None:
    """A changed plan makes version 2; version 1 and its subscribers stay as they are; the audit log says so."""
    await bench.apply(catalogue(bench.start, "code"))
    (before,) = await bench.rows(
        "SELECT definition, digest FROM plan_version JOIN plan USING (plan_id) WHERE name = 'hourly'"
    )
    await bench.apply(catalogue(bench.start, "code", price="11.00"))
    rows = await bench.rows(
        "SELECT version, definition, digest FROM plan_version JOIN plan USING (plan_id)"
        " WHERE name = 'hourly' ORDER BY version"
    )
    assert [row["version"] for row in rows] == [1, 2]
    assert (before["definition"], before["digest"]) == (rows[0]["definition"], rows[0]["digest"])
    (pinned,) = await bench.rows("SELECT version FROM subscription JOIN plan_version USING (plan_version_id)")
    assert pinned["version"] == 1
    (entry,) = await bench.rows(
        "SELECT before, after FROM audit_log WHERE subject = 'plan/hourly' AND before IS NOT NULL ORDER BY audit_id"
    )
    assert '"version": 1' in entry["before"]
    assert '"version": 2' in entry["after"]


async def test_amount_versions_rise_exactly_with_amounts(bench: BillingBench) -> None:
    """A move to a version with another amount raises that limit's version; other limits keep theirs."""
    versions = "SELECT name, amount_version FROM limit_state ORDER BY name"
    await bench.apply(catalogue(bench.start, "code"))
    assert [tuple(row) for row in await bench.rows(versions)] == [("day", 1), ("rate", 1)]
    moved = catalogue(bench.start, "code", extra=", plan_version: latest").replace("amount: 1000,", "amount: 2000,")
    await bench.apply(moved)
    assert [tuple(row) for row in await bench.rows(versions)] == [("day", 2), ("rate", 1)]
    await bench.apply(moved)
    assert [tuple(row) for row in await bench.rows(versions)] == [("day", 2), ("rate", 1)]


async def test_usage_is_stamped_with_its_period(bench: BillingBench) -> None:
    """Each record gets the segment of its hour; what lies outside every subscription gets one that nobody bills."""
    await bench.apply(catalogue(bench.start, "code", "conv"))
    rows = await bench.rows("SELECT tenant_id FROM tenant ORDER BY wire_id")
    code, conv = (row["tenant_id"] for row in rows)
    start_us, hour_us = to_us(bench.start), 3_600_000_000
    found = await ensure(
        bench,
        (code, start_us),
        (conv, start_us),
        (code, start_us + hour_us - 1),
        (code, start_us + hour_us),
        (code, start_us - 1),
        (code, start_us),
    )
    assert [one.period_start_us - start_us for one in found[:4]] == [0, 0, 0, hour_us]
    assert found[0] == found[2] == found[5]
    assert len({one.segment_id for one in found}) == 4
    assert all(one.late_for is None for one in found)
    (unbilled,) = await bench.rows("SELECT * FROM billing_segment WHERE subscription_id IS NULL")
    assert (found[4].segment_id, start_us) == (unbilled["segment_id"], to_us(unbilled["period_end"]))
    assert found[4] == (await ensure(bench, (code, start_us - 1)))[0]
    async with transaction(bench.ingest_pool) as conn:
        assert found[0] == await ensure_segment(conn, code, start_us)
        assert await ensure_segments(conn, []) == []


async def test_concurrent_appends_agree_on_segments(bench: BillingBench) -> None:
    """Twenty first appends of the same hours at once make one segment for each hour."""
    await bench.apply(catalogue(bench.start, "code"))
    (row,) = await bench.rows("SELECT tenant_id FROM tenant")
    used = [(row["tenant_id"], to_us(bench.start + timedelta(hours=n))) for n in range(5)]
    runs = await asyncio.gather(*(ensure(bench, *used) for _ in range(20)))
    assert all(run == runs[0] for run in runs)
    (count,) = await bench.rows("SELECT count(*) FROM billing_segment")
    assert count[0] == 5


async def test_stamping_is_a_few_queries_whatever_the_batch(bench: BillingBench) -> None:
    """A thousand records of fifty tenants whose periods are known cost one query."""
    names = [f"t{n}" for n in range(50)]
    await bench.apply(catalogue(bench.start, *names))
    rows = await bench.rows("SELECT tenant_id FROM tenant")
    used = [(row["tenant_id"], to_us(bench.start) + n) for row in rows for n in range(20)]
    for expected_max in (5, 1):
        queries = await queries_of(bench, used)
        assert len(queries) <= expected_max, queries


async def queries_of(bench: BillingBench, used: list[tuple[uuid.UUID, int]]) -> list[str]:
    """Stamp and give the queries that it took, without the driver's own about types."""
    asked: list[str] = []
    async with transaction(bench.ingest_pool) as conn:
        with conn.query_logger(lambda record: asked.append(record.query)):
            await ensure_segments(conn, used)
    return [query for query in asked if "billing_segment" in query or "subscription" in query]


@pytest.mark.parametrize("name", EXAMPLES)
async def test_every_example_is_stored_and_then_unchanged(bench: BillingBench, name: str) -> None:
    """Examples are applied to a real ledger, tenants' own prices included; once more, they change nothing."""
    assert {change.action for change in await bench.apply(EXAMPLES[name])} == {"create"}
    assert {change.action for change in await bench.apply(EXAMPLES[name])} == {"unchanged"}
    plans = {row["name"] for row in await bench.rows("SELECT name FROM plan")}
    assert ("messaging-enterprise@bank" in plans) == (name == "messaging")


async def test_what_subscriptions_are_billed_by_is_not_hidden(bench: BillingBench) -> None:
    """An attribute that an older version of a plan matches is not hidden while somebody is billed by that version."""
    plain = (
        "version: 1\nseller: {id: shop, name: Shop, currency: USD}\n"
        "meters:\n  - {name: calls, unit: calls, attributes: [who], dimensions: [who]}\n"
        "plans:\n  - name: by-who\n    billing_interval: month\n    prices:\n"
        '      - {meter: calls, unit_price: "1", match: [{attribute: who, exact: ann}]}\n'
    )
    grouped = plain.replace("match: [{attribute: who, exact: ann}]", "group_by: [who]")
    hidden = grouped.replace("dimensions: [who]", "dimensions: [who], pseudonymise: [who]")
    subscribed = "tenants:\n  - {id: buyer, plan: by-who}\n"
    await bench.apply(plain + subscribed)
    await bench.apply(grouped + subscribed)
    before = await everything(bench)
    with pytest.raises(CatalogueInvalidError) as caught:
        await bench.apply(hidden + subscribed)
    (fault,) = caught.value.faults
    assert (fault.field, fault.line, fault.value) == ("meters[0].pseudonymise", 4, "who")
    assert "by-who v1" in fault.bound
    assert before == await everything(bench)
    await bench.rows("UPDATE subscription SET ended_at = started_at + interval '1 hour', billed_until = started_at")
    with pytest.raises(CatalogueInvalidError):
        await bench.apply(hidden)
    await bench.rows("UPDATE subscription SET billed_until = ended_at")
    assert {"update", "unchanged"} == {change.action for change in await bench.apply(hidden)}
