# ruff: noqa: SIM300 - expected first, then actual
"""Whom a period waits for: producers and topics that are behind, until an operator says that they are gone."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from billing_bench import catalogue, use
from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.producers import IN_FLIGHT_MAX, mark_lost, mark_safe, report_topics
from tollkeeper_ledger.services.usage import UsageIngest
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.usage_topics import TopicPosition

if TYPE_CHECKING:
    from datetime import datetime

    from billing_bench import BillingBench

pytestmark = pytest.mark.asyncio

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)
SECOND = timedelta(seconds=1)


async def say(bench: BillingBench, watermark: datetime | None, *, partition: int = 0, group: str = "a/b") -> None:
    """Say how far a partition is read."""
    async with transaction(bench.ingest_pool) as conn:
        await report_topics(conn, group, [TopicPosition("usage", partition, 3, 9, watermark)])


async def lose(bench: BillingBench, producer: str, note: str = "burnt down") -> str:
    """Say that a producer is gone."""
    async with transaction(bench.ingest_pool) as conn:
        return await mark_lost(conn, producer, note, Act("ann", "r", await ledger_now(conn)))


async def held(bench: BillingBench) -> list[str]:
    """Bill what is due and give why the rest is held."""
    return sorted(step.held_reason for step in await bench.run() if step.held_tenant)


async def test_a_period_waits_for_what_lies_in_a_topic(bench: BillingBench) -> None:
    """Every tenant's, for each partition, until what was there at its end is committed; an old word moves nothing."""
    await bench.apply(catalogue(bench.start, "code", "two"))
    end = bench.start + HOUR
    await bench.set_now(end + GRACE)
    await say(bench, end - SECOND)
    await say(bench, None, partition=1)
    for reason in await held(bench):
        assert "kafka/a/b/usage/0 has committed up to" in reason
        assert "kafka/a/b/usage/1 has committed up to none only" in reason
    assert 2 == len(await held(bench))
    await say(bench, end)
    await say(bench, end - HOUR)
    assert ["kafka/a/b/usage/1 has committed up to none only"] * 2 == await held(bench)
    await say(bench, end + HOUR, partition=1)
    (row,) = await bench.rows("SELECT max(watermark) AS told FROM usage_topic")
    assert end + GRACE == row["told"], "a watermark beyond the ledger's own time was believed"
    assert [] == await held(bench)
    assert 1 == len(await bench.documents("code"))
    assert [] == (await bench.documents("two"))[0]["manifest"]["not_waited_for"]


async def test_an_operator_gives_a_topic_up_until_it_moves(bench: BillingBench) -> None:
    """Nobody waits for a reader that is gone for good; the invoice says so, and one that comes back is waited for."""
    await bench.apply(catalogue(bench.start, "code"))
    end = bench.start + HOUR
    name = "kafka/a/b/usage/0"
    await bench.set_now(end + GRACE)
    await say(bench, end - SECOND)
    assert 1 == len(await held(bench))
    for word in ("kafka/a/b/usage/1", "kafka/other/usage/0", "0" * 32):
        with pytest.raises(PreconditionError) as caught:
            await lose(bench, word)
        assert "PRODUCER_UNKNOWN" == caught.value.reason
    for word in ("kafka/usage/0", "kafka/a/b/usage/99999999999", "nobody", ""):
        with pytest.raises(InvalidFieldError):
            await lose(bench, word)
    with pytest.raises(InvalidFieldError):
        await lose(bench, name, note="")
    assert ["open", "lost"] == [await lose(bench, name), await lose(bench, name)]
    await say(bench, end - SECOND)
    assert [] == await held(bench)
    (document,) = await bench.documents("code")
    assert [f"{name} is lost, watermark {(end - SECOND).isoformat()}"] == document["manifest"]["not_waited_for"]
    (noted,) = await bench.rows("SELECT * FROM audit_log WHERE action = 'MarkProducerLost' ORDER BY audit_id LIMIT 1")
    assert ("ann", f"producer/{name}") == (noted["actor"], noted["subject"])
    await bench.set_now(end + HOUR + GRACE)
    await say(bench, end)
    assert 1 == len(await held(bench))


async def test_a_producer_that_talks_and_does_not_move_is_given_up(bench: BillingBench) -> None:
    """It stays so although it is heard of, until its watermark moves on: then periods wait for it again."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    end = bench.start + HOUR
    await bench.set_now(end + GRACE)
    await bench.send(log, use("a", bench.start, context_tokens=1), watermark=bench.start)
    assert 1 == len(await held(bench))
    assert "open" == await lose(bench, log.producer_id.hex)
    await bench.send(log, use("b", end, context_tokens=1), watermark=bench.start)
    assert [] == await held(bench)
    assert 1 == len(await bench.documents("code"))
    await bench.set_now(end + HOUR + GRACE)
    await bench.send(log, use("c", end, context_tokens=1), watermark=end)
    assert 1 == len(await held(bench))


async def test_bad_words_of_a_reader_are_refused(bench: BillingBench) -> None:
    """Names, numbers and repeats are checked, and nothing of such a report is kept."""
    good = TopicPosition("usage", 0, 1, 1, None)
    bad: list[tuple[str, list[TopicPosition]]] = [
        ("", [good]),
        ("g" * 256, [good]),
        ("a\nb", [good]),
        ("g", [good, good]),
        ("g", [good, TopicPosition("us/age", 0, 1, 1, None)]),
        ("g", [good, TopicPosition("usage", 2**31, 1, 1, None)]),
        ("g", [good, TopicPosition("usage", 1, -1, 1, None)]),
        ("g", [TopicPosition("usage", number, 1, 1, None) for number in range(1001)]),
    ]
    for group, positions in bad:
        with pytest.raises(InvalidFieldError):
            async with transaction(bench.ingest_pool) as conn:
                await report_topics(conn, group, positions)
    assert [] == await bench.rows("SELECT FROM usage_topic WHERE consumer_group <> 'a/b'")


async def test_what_a_backup_has_is_safe(bench: BillingBench) -> None:
    """Without a word what is 24 h old is; with one what was committed five minutes before the backup began."""
    await bench.apply(catalogue(bench.start, "code"))
    ingest = UsageIngest(bench.ingest_pool, embedded=False)
    log = await bench.new_log()
    for number in range(3):
        await bench.set_now(bench.start + number * HOUR)
        log.record(use(f"safe-{number}", bench.start, context_tokens=1))
        assert 0 == (await ingest.append(log.cut(number))).position.safe_seq

    async def mark(at: datetime | None) -> datetime:
        async with transaction(bench.ingest_pool) as conn:
            return await mark_safe(conn, at, "nightly", Act("backup", "r", await ledger_now(conn)))

    async def safe_seq() -> int:
        return (await ingest.append(log.cut())).position.safe_seq

    with pytest.raises(InvalidFieldError):
        await mark(bench.start + 3 * HOUR)
    begun = bench.start + HOUR + IN_FLIGHT_MAX
    assert begun - IN_FLIGHT_MAX - SECOND == await mark(begun - SECOND)
    assert 1 == await safe_seq()
    await mark(begun)
    assert 2 == await safe_seq()
    assert bench.start + HOUR == await mark(bench.start)
    assert 2 == await safe_seq()
    await bench.set_now(bench.start + 2 * HOUR + IN_FLIGHT_MAX)
    await mark(None)
    assert 3 == await safe_seq()
