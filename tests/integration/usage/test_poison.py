"""Records that nothing of ours finds fault with, and that Postgres refuses all the same: found, quarantined, passed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import asyncpg
import pytest
from tollkeeper_ledger.domain.errors import LedgerError
from tollkeeper_ledger.domain.usage import Verdict
from tollkeeper_ledger.services import usage_bisect
from tollkeeper_ledger.services.usage import UsageIngest
from usage_faults import POISON, refusing

if TYPE_CHECKING:
    from usage_bench import Bench

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(
    ("table", "code"),
    [("usage_record", "data_exception"), ("usage_id", "check_violation"), ("usage_record", "raise_exception")],
)
async def test_a_record_that_postgres_refuses_holds_up_nobody(bench: Bench, table: str, code: str) -> None:
    """Whatever Postgres refuses is bisected to and quarantined; all others are stored, and the history is one."""
    log = await bench.new_log()
    name = f"{table}-{code}"
    bad = sorted(random.Random(code).sample(range(1, 201), 3))
    for seq in range(1, 201):
        if seq == 50:
            log.lose(1)
            bad = [one if one < seq else one + 1 for one in bad]
        poison = "-poison" if log.last_seq + 1 in bad else ""
        log.record(bench.use(f"{name}-{seq}{poison}", tenant=("acme", "globex")[seq % 2]))
    async with refusing(bench, table, "NEW.id LIKE '%-poison'", code):
        outcome = await bench.ingest.append(log.cut(watermark_us=bench.now_us))
    assert (outcome.stored, outcome.quarantined, outcome.trimmed) == (197, 3, 0)
    assert [Verdict(seq, POISON) for seq in bad] == list(outcome.verdicts)
    assert (log.last_seq, log.chain[-1]) == (outcome.position.committed_seq, outcome.position.h)
    assert len(await bench.stored(log)) == 197
    kept = await bench.rows(
        "SELECT seq, reason, convert_from(record, 'UTF8')::jsonb->>'id' AS id FROM usage_quarantine"
        " WHERE producer_id = $1 ORDER BY seq",
        log.producer_id,
    )
    assert [(seq, "UNSTORABLE", True) for seq in bad] == [
        (row["seq"], row["reason"], row["id"].endswith("-poison")) for row in kept
    ]
    holes = await bench.rows(
        "SELECT FROM audit_log WHERE actor = $1 AND action = 'UsageHole'", f"producer/{log.producer_id.hex}"
    )
    assert len(holes) == 1
    again = await bench.ingest.append(log.cut())
    assert (0, 200, outcome.verdicts) == (again.stored, again.trimmed, again.verdicts)


async def test_a_database_that_refuses_everything_is_no_records_fault(bench: Bench) -> None:
    """Where even quarantine can't take a record nothing is committed and the error is told: the sidecar keeps it."""
    log = await bench.new_log()
    log.record(*[bench.use(f"nothing-{number}") for number in range(4)])
    async with refusing(bench, "usage_chain", "true", "data_exception"):
        with pytest.raises(asyncpg.DataError):
            await bench.ingest.append(log.cut())
    assert await bench.stored(log) == []
    assert (await bench.ingest.append(log.cut())).stored == 4


async def test_few_go_to_quarantine_where_postgres_refuses_all(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no record of anybody is stored any more, quarantine ends soon, and the rest is stored when it is over."""
    monkeypatch.setattr(usage_bisect, "IN_A_ROW_MAX", 4)
    log = await bench.new_log()
    log.record(*[bench.use(f"ill-{number}") for number in range(20)])
    ingest = UsageIngest(bench.pool, embedded=True)
    async with refusing(bench, "usage_record", "true", "data_exception"):
        for _ in range(2):
            with pytest.raises(LedgerError) as caught:
                await ingest.append(log.cut())
            assert caught.value.reason == "LEDGER_UNREACHABLE"
    kept = await bench.rows("SELECT seq FROM usage_quarantine WHERE producer_id = $1 ORDER BY seq", log.producer_id)
    assert [row["seq"] for row in kept] == [1, 2, 3, 4]
    outcome = await ingest.append(log.cut())
    assert (outcome.stored, outcome.trimmed) == (16, 4)
