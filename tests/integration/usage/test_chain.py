# ruff: noqa: SIM300 - expected first, then actual
"""The chain on a real Postgres: what is stored can be checked by anybody who can read it, and a change shows."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING

import pytest
from tollkeeper_ledger.domain.usage_audit import Finding
from tollkeeper_ledger.services.usage_audit import verify_usage
from usage_bench import superuser

if TYPE_CHECKING:
    from usage_bench import Bench

pytestmark = pytest.mark.asyncio


async def findings(bench: Bench) -> list[Finding]:
    """Check everything that is stored."""
    async with superuser(bench.url) as conn:
        await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        async with conn.transaction(isolation="repeatable_read", readonly=True):
            return [found async for found in verify_usage(conn) if isinstance(found, Finding)]


async def fill(bench: Bench, name: str) -> None:
    """Append from several producers at once: records of both tenants, duplicates, holes, bad records."""
    chance = random.Random(name)
    logs = [await bench.new_log() for _ in range(3)]
    for number, log in enumerate(logs):
        for at in range(40):
            log.record(
                bench.use(
                    f"{name}-{number % 2}-{at}",
                    tenant=chance.choice(sorted(bench.tenants)),
                    quantities=tuple(
                        (meter, chance.randrange(-1, 99)) for meter in chance.sample(sorted(bench.meters), 2)
                    ),
                    attributes=(("zone", "ä"), ("model", "m")),
                    flags=chance.choice([0, 1, 2]),
                )
            )
        log.lose(2)
    await asyncio.gather(
        *(bench.ingest.append(log.cut(first, first + 14)) for log in logs for first in (0,)),
    )
    await asyncio.gather(*(bench.ingest.append(log.cut()) for log in logs))


async def test_every_link_follows_from_the_stored_rows(bench: Bench) -> None:
    """Links of concurrent appends form one chain; roots recomputed from stored records agree."""
    await fill(bench, "agree")
    assert [] == await findings(bench)
    (head,) = await bench.rows("SELECT * FROM usage_chain_head")
    (last,) = await bench.rows("SELECT * FROM usage_chain ORDER BY position DESC LIMIT 1")
    (counts,) = await bench.rows(
        "SELECT (SELECT count(*) FROM usage_record) AS stored, (SELECT count(*) FROM usage_quarantine) AS refused"
    )
    assert (last["position"], last["hash"]) == (head["position"], head["hash"])
    assert (counts["stored"], counts["refused"]) == (head["stored_total"], head["quarantined_total"])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE usage_record SET units[1] = units[1] + 1 WHERE {one}",
        'UPDATE usage_record SET attributes = attributes || \'{{"model": "x"}}\' WHERE {one}',
        "UPDATE usage_record SET event_time = event_time + interval '1 microsecond' WHERE flags = 0 AND {one}",
        "DELETE FROM usage_record WHERE {one}",
        "UPDATE usage_chain SET stored = stored + 1 WHERE position = 1",
        "UPDATE usage_chain SET committed_at = committed_at + interval '1 day' WHERE position = 1",
    ],
)
async def test_a_change_behind_the_ledgers_back_shows(bench: Bench, change: str) -> None:
    """Whoever gets past every guard and changes a row leaves a chain that no longer follows from the rows."""
    await fill(bench, f"tamper {change}")
    assert [] == await findings(bench)
    one = "(tenant_id, id) = (SELECT tenant_id, id FROM usage_record WHERE flags = 0 ORDER BY id LIMIT 1)"
    saved = "CREATE TABLE saved AS SELECT * FROM {0}; ALTER TABLE {0} DISABLE TRIGGER USER"
    restored = (
        "DELETE FROM {0}; INSERT INTO {0} SELECT * FROM saved; DROP TABLE saved; ALTER TABLE {0} ENABLE TRIGGER USER"
    )
    table = change.split()[2 if change.startswith("DELETE") else 1]
    async with superuser(bench.url) as conn:
        async with conn.transaction():
            await conn.execute(saved.format(table))
            await conn.execute(change.format(one=one))
        assert [] != await findings(bench)
        async with conn.transaction():
            await conn.execute(restored.format(table))
    assert [] == await findings(bench)
