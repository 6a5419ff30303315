# ruff: noqa: SIM300 - expected first, then actual
"""Repeats of records whose tenant's key of pseudonyms has turned: told at the cost of a look at one row each."""

from __future__ import annotations

import json
from datetime import date
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.usage import CONFLICT, FLAG_SYSTEM_ID
from tollkeeper_ledger.domain.windows import add_months
from tollkeeper_ledger.services import pseudonyms
from tollkeeper_ledger.services.pseudonyms import PseudonymKeys
from tollkeeper_ledger.store.queries import sql
from tollkeeper_ledger.store.usage_batches import make_month
from usage_bench import superuser

if TYPE_CHECKING:
    import pytest
    from usage_bench import Bench
    from usage_support import Use

MONTHS = 24


def name_of(version: int, who: str) -> str:
    """Give something of a pseudonym's form."""
    return f"p{version}.{who * 22}"


async def hide(bench: Bench) -> None:
    """Let a meter hide who it was."""
    async with superuser(bench.url) as conn:
        await conn.execute(
            "INSERT INTO meter (seller_id, name, unit, aggregation, scale, attributes, pseudonymised)"
            " VALUES ('seller', 'hidden', 'calls', 'sum', 0, '{who}', '{who}') ON CONFLICT DO NOTHING"
        )


def use(bench: Bench, name: str, version: int, who: str = "A", **changed: Any) -> Use:
    """Give a record of somebody's call."""
    attributes = (("who", name_of(version, who)),)
    return bench.use(name, quantities=(("hidden", 1),), attributes=attributes, **changed)


async def test_each_of_many_repeats_hears_what_it_is(bench: Bench) -> None:
    """Stored ids and ids of the same transaction, several times each: a repeat is one, whatever else came with it."""
    await hide(bench)
    first = await bench.new_log()
    at_us = bench.now_us - 1_000_000
    first.record(use(bench, "t-1", 1), use(bench, "t-2", 1), use(bench, "t-own", 1, flags=FLAG_SYSTEM_ID))
    assert 3 == (await bench.ingest.append(first.cut())).stored
    log = await bench.new_log()
    told = {
        use(bench, "t-1", 2): None,
        use(bench, "t-1", 2, "B"): None,  # Nobody can say any more that it is somebody else.
        use(bench, "t-1", 1, "B"): CONFLICT,
        use(bench, "t-1", 2, event_us=at_us): CONFLICT,
        use(bench, "t-2", 3): None,
        use(bench, "t-own", 2, flags=FLAG_SYSTEM_ID, event_us=at_us): None,
        use(bench, "t-3", 1): "stored",
        use(bench, "t-3", 2): None,
        use(bench, "t-3", 2, event_us=at_us): CONFLICT,
        use(bench, "t-3", 1, "B"): CONFLICT,
        use(bench, "t-4", 2): "stored",
        use(bench, "t-4", 1): None,  # Out of a log that was written before the key turned.
        use(bench, "t-4", 2, "B"): CONFLICT,
    }
    log.record(*told)
    outcome = await bench.ingest.append(log.cut())
    verdicts = {one.seq: one.problem for one in outcome.verdicts}
    assert list(told.values()) == [verdicts.get(seq, "stored") for seq in range(1, len(told) + 1)]
    assert (2, 6, 5) == (outcome.stored, outcome.duplicates, outcome.conflicts)


async def test_a_conflict_costs_a_look_at_one_month(bench: Bench) -> None:
    """However many months are kept, what is stored under an id is read in the month of the record that came again."""
    await hide(bench)
    log = await bench.new_log()
    log.record(*[use(bench, f"look-{at}", 1) for at in range(20)])
    await bench.ingest.append(log.cut())
    async with bench.pool.acquire() as conn:
        for month in range(MONTHS):
            await make_month(conn, add_months(date(2020, 1, 1), month))
    rows = await bench.rows("SELECT tenant_id, id, event_time FROM usage_record WHERE id LIKE 'look-%'")
    columns = [[row[name] for row in rows] for name in ("tenant_id", "id", "event_time")]
    (plan,) = await bench.rows("EXPLAIN (ANALYZE, FORMAT JSON) " + sql("usage.stored_at"), *columns)
    nodes = [json.loads(plan[0])[0]["Plan"]]
    for node in nodes:
        nodes += node.get("Plans", ())
    months = [node for node in nodes if node.get("Relation Name", "").startswith("usage_record_")]
    read = [node for node in months if node["Actual Loops"]]
    assert len(rows) == nodes[0]["Actual Rows"]
    assert [len(rows)] == [node["Actual Loops"] for node in read]
    assert ["Index Scan"] == [node["Node Type"] for node in read]


async def test_every_key_that_is_asked_for_is_given(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where memory has no room for all of them at once, those that it has among them."""
    monkeypatch.setattr(pseudonyms, "_CACHED_MAX", 1)
    keys = PseudonymKeys(bench.pool)
    everybody = set(bench.tenants.values())
    assert len(everybody) > 1
    told = [await keys.get(everybody) for _ in range(2)]
    assert [everybody] * 2 == [set(one) for one in told]
    assert told[0] == told[1]
    assert 1 == sum(keys.known(tenant_id) is not None for tenant_id in everybody)
