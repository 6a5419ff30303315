"""What the ledger says of single records that it did not store: at once, and again when its answer was lost."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from tollkeeper_ledger.domain.usage import CONFLICT, DAY_US, Hole, Problem, Verdict

if TYPE_CHECKING:
    from usage_bench import Bench
    from usage_support import Log

pytestmark = pytest.mark.asyncio


async def judged(bench: Bench, name: str) -> tuple[Log, list[Verdict]]:
    """Record first at another producer what makes some records of a new log unfit; give the log and its verdicts."""
    first, log = await bench.new_log(), await bench.new_log()
    first.record(bench.use(f"{name}-same"), bench.use(f"{name}-other"))
    await bench.ingest.append(first.cut())
    log.record(
        bench.use(f"{name}-new"),
        bench.use(f"{name}-same"),
        bench.use(f"{name}-other", quantities=(("requests", 2),)),
        bench.use(f"{name}-new"),
        bench.use(f"{name}-late", event_us=bench.now_us - 36 * DAY_US),
    )
    log.lose(2)
    log.record(
        bench.use(f"{name}-stranger", tenant="nobody"),
        bench.use(f"{name}-nul\0"),
        bench.use(f"{name}-last"),
        bench.use(f"{name}-last", tenant="globex"),
        bench.use(f"{name}-last", quantities=(("requests", 9),)),
    )
    return log, [
        Verdict(2, None),
        Verdict(3, CONFLICT),
        Verdict(4, None),
        Verdict(5, Problem("TOO_LATE", "event_time_us")),
        Verdict(8, Problem("TENANT_UNKNOWN", "tenant")),
        Verdict(9, Problem("FIELD_INVALID", "id")),
        Verdict(12, CONFLICT),
    ]


async def test_each_record_that_is_not_stored_is_named(bench: Bench) -> None:
    """One append names every duplicate, conflict and quarantined record by its number, and no stored one."""
    log, expected = await judged(bench, "named")
    assert expected == list((await bench.ingest.append(log.cut())).verdicts)


@pytest.mark.parametrize("seed", range(3))
async def test_a_resend_hears_the_first_verdicts(bench: Bench, seed: int) -> None:
    """However a resend is cut, below what is committed or beyond it, each record's verdict is the first one."""
    chance = random.Random(seed)
    log, expected = await judged(bench, f"again-{seed}")
    for _ in range(12):
        first, last = sorted(chance.sample(range(len(log.entries) + 1), 2))
        if first > 0 and (await committed(bench, log)) < log.ends[first - 1]:
            first = 0
        outcome = await bench.ingest.append(log.cut(first, last))
        low, high = (log.ends[first - 1] if first else 0), log.ends[last - 1]
        assert [one for one in expected if low < one.seq <= high] == list(outcome.verdicts)


async def committed(bench: Bench, log: Log) -> int:
    """Give how far a producer is committed."""
    (row,) = await bench.rows("SELECT committed_seq FROM producer WHERE producer_id = $1", log.producer_id)
    return int(row["committed_seq"])


async def test_a_skipped_record_leaves_the_history_as_it_was(bench: Bench) -> None:
    """An entry that can't be sent is named by its content hash: audited, no fork, sent as a record later or not."""
    log = await bench.new_log()
    uses = [bench.use(f"skip-{number}") for number in range(3)]
    log.record(*uses)
    whole = log.cut()
    log.entries[1] = Hole(first_seq=2, last_seq=2, reason="REFUSED BATCH_MALFORMED", content_hash=uses[1].hash())
    outcome = await bench.ingest.append(log.cut())
    assert (2, log.h(3)) == (outcome.stored, outcome.position.h)
    assert await bench.stored(log) == [(1, "skip-0"), (3, "skip-2")]
    (entry,) = await bench.rows(
        "SELECT after->>'content_hash' AS digest FROM audit_log WHERE actor = $1", f"producer/{log.producer_id.hex}"
    )
    assert uses[1].hash().hex() == entry["digest"]
    assert ((again := await bench.ingest.append(whole)).stored, again.trimmed) == (0, 3)
