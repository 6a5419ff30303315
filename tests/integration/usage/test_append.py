# ruff: noqa: SIM300 - expected first, then actual
"""Appending usage on a real Postgres: once, whatever is sent again, and whatever is wrong with single records."""

from __future__ import annotations

import asyncio
import random
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from tollkeeper_ledger.domain.errors import LedgerError, PreconditionError
from tollkeeper_ledger.domain.usage import DAY_US, AppendOutcome, ProducerPosition
from tollkeeper_ledger.services import usage
from tollkeeper_ledger.services.producers import IN_FLIGHT_MAX
from tollkeeper_ledger.services.usage import UsageIngest
from usage_bench import HOLDER, TENANTS, open_bench, superuser
from usage_faults import ROLLUP_DIFFERENCES
from usage_support import Log, Use

if TYPE_CHECKING:
    from collections.abc import Callable

    from usage_bench import Bench

pytestmark = pytest.mark.asyncio


async def test_a_batch_is_stored_with_its_sums_and_its_link(bench: Bench) -> None:
    """One append stores records, ids, sums per minute and one link of the chain, and says so."""
    log = await bench.new_log()
    log.record(*[bench.use(f"a-{n}", quantities=(("requests", 1), ("context_tokens", n))) for n in range(100)])
    outcome = await bench.ingest.append(log.cut())
    assert AppendOutcome(position=ProducerPosition(100, log.h(100), 100), stored=100) == outcome
    assert [(n + 1, f"a-{n}") for n in range(100)] == await bench.stored(log)
    (link,) = await bench.rows("SELECT * FROM usage_chain WHERE producer_id = $1", log.producer_id)
    assert (1, 100, 100, 0, 0, 0, 0) == tuple(
        link[name] for name in ("first_seq", "last_seq", "stored", "duplicates", "conflicts", "quarantined", "holes")
    )


async def test_an_append_ends_in_time_or_never_was(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits too long for others is undone, told as such, and stored when it is sent again.

    So what a backup may lack is known: what began five minutes before it.
    """
    assert usage.APPEND_MAX + timedelta(seconds=60) <= IN_FLIGHT_MAX
    log = await bench.new_log()
    log.record(bench.use("in-time"))
    with monkeypatch.context() as short:
        short.setattr(usage, "APPEND_MAX", timedelta(milliseconds=200))
        async with superuser(bench.url) as conn, conn.transaction():
            await conn.execute("SELECT FROM producer WHERE producer_id = $1 FOR UPDATE", log.producer_id)
            async with asyncio.timeout(60):
                with pytest.raises(LedgerError) as told:
                    await bench.ingest.append(log.cut())
    assert "LEDGER_UNREACHABLE" == told.value.reason
    assert [] == await bench.stored(log)
    assert 1 == (await bench.ingest.append(log.cut())).stored
    assert [(1, "in-time")] == await bench.stored(log)


@pytest.mark.parametrize("seed", range(4))
async def test_resends_cut_in_any_way_store_every_record_once(bench: Bench, seed: int) -> None:
    """Overlapping, repeated, reordered, concurrent batches with holes: every record once, sums equal to raw."""
    chance = random.Random(seed)
    log = await bench.new_log()
    while len(log.entries) < 300:
        if chance.random() < 0.05:
            log.lose(chance.randint(1, 4))
        log.record(
            bench.use(
                f"s{seed}-{len(log.entries)}",
                tenant=chance.choice(TENANTS),
                event_us=bench.now_us - chance.randrange(DAY_US),
                quantities=tuple(
                    (meter, chance.randrange(2**53))
                    for meter in chance.sample(sorted(bench.meters), chance.randint(1, 3))
                ),
            )
        )
    outcomes: list[AppendOutcome] = []

    async def send(first: int, last: int) -> None:
        try:
            outcomes.append(await bench.ingest.append(log.cut(first, last)))
        except PreconditionError as error:
            if error.reason != "PRODUCER_GAP":
                raise

    for _ in range(25):
        cuts = [sorted(chance.sample(range(len(log.entries)), 2)) for _ in range(chance.randint(1, 4))]
        await asyncio.gather(*(send(*cut) for cut in cuts))
    await send(0, len(log.entries))
    uses = [(end, entry.id) for end, entry in zip(log.ends, log.entries, strict=True) if isinstance(entry, Use)]
    assert uses == await bench.stored(log)
    assert len(uses) == sum(outcome.stored for outcome in outcomes)
    assert 0 == sum(outcome.duplicates + outcome.conflicts + outcome.quarantined for outcome in outcomes)
    assert [] == await bench.rows(ROLLUP_DIFFERENCES)
    (producer,) = await bench.rows("SELECT * FROM producer WHERE producer_id = $1", log.producer_id)
    assert (log.last_seq, log.chain[-1]) == (producer["committed_seq"], producer["h"])


async def test_a_lost_answer_is_given_again(bench: Bench) -> None:
    """A batch that was committed and comes again, as after a crash before the answer, stores nothing."""
    log = await bench.new_log()
    log.record(*[bench.use(f"lost-{n}") for n in range(10)])
    await bench.ingest.append(log.cut())
    again = await bench.ingest.append(log.cut())
    assert AppendOutcome(position=ProducerPosition(10, log.h(10), 10), trimmed=10) == again
    below = await bench.ingest.append(log.cut(2, 5))
    assert AppendOutcome(position=ProducerPosition(10, log.h(10), 10), trimmed=3) == below
    assert 10 == len(await bench.stored(log))


async def test_a_forked_history_stores_nothing(bench: Bench) -> None:
    """A producer whose committed entries differ is refused, whole batch or tail; the tail alone is a fork as well."""
    log = await bench.new_log()
    log.record(*[bench.use(f"fork-{n}") for n in range(5)])
    await bench.ingest.append(log.cut())
    other = Log(producer_id=log.producer_id)
    other.record(*[bench.use(f"fork-{n}", quantities=(("requests", 2),)) for n in range(8)])
    for first in (0, 3, 5):
        with pytest.raises(PreconditionError) as caught:
            await bench.ingest.append(other.cut(first))
        assert caught.value.reason == "PRODUCER_FORKED"
    assert 5 == len(await bench.stored(log))


async def test_the_same_record_from_another_producer_is_a_duplicate(bench: Bench) -> None:
    """After a fork or a lost volume everything is sent again under a new producer: nothing counts twice."""
    first, second = await bench.new_log(), await bench.new_log()
    uses = [bench.use(f"twice-{n}") for n in range(20)]
    first.record(*uses)
    second.record(*uses, bench.use("twice-new"))
    await bench.ingest.append(first.cut())
    outcome = await bench.ingest.append(second.cut())
    assert (1, 20, 0) == (outcome.stored, outcome.duplicates, outcome.conflicts)
    assert [(21, "twice-new")] == await bench.stored(second)
    assert [] == await bench.rows(ROLLUP_DIFFERENCES)


async def test_another_record_under_a_used_id_is_a_conflict(bench: Bench) -> None:
    """The first committed stands; the other one is quarantined, even in one batch, whatever its event time."""
    log, other = await bench.new_log(), await bench.new_log()
    log.record(
        bench.use("clash"),
        bench.use("clash", quantities=(("requests", 5),)),
        bench.use("clash"),
        bench.use("clash", tenant="globex"),
    )
    outcome = await bench.ingest.append(log.cut())
    assert (2, 1, 1) == (outcome.stored, outcome.duplicates, outcome.conflicts)
    other.record(bench.use("clash", event_us=bench.now_us - 40 * 60_000_000))
    outcome = await bench.ingest.append(other.cut())
    assert (0, 0, 1) == (outcome.stored, outcome.duplicates, outcome.conflicts)
    rows = await bench.rows(
        "SELECT seq, reason FROM usage_quarantine WHERE producer_id = ANY ($1) ORDER BY quarantined_at, seq",
        [log.producer_id, other.producer_id],
    )
    assert [(2, "CONFLICT"), (1, "CONFLICT")] == [tuple(row) for row in rows]


async def test_a_system_id_is_the_same_record_at_any_event_time(bench: Bench) -> None:
    """Where the system made the id, the event time is no content: the first committed stands."""
    log = await bench.new_log()
    log.record(bench.use("r/1", flags=1), bench.use("r/1", flags=1, event_us=bench.now_us - 1))
    outcome = await bench.ingest.append(log.cut())
    assert (1, 1, 0) == (outcome.stored, outcome.duplicates, outcome.conflicts)


async def test_poison_holds_nobody_up(bench: Bench) -> None:
    """Records that can't be stored go to quarantine with reason and content; all others of the batch are stored."""
    log = await bench.new_log()
    bad = {
        "unknown-tenant": (bench.use("q1", tenant="nobody"), "TENANT_UNKNOWN"),
        "nul-tenant": (bench.use("q2", tenant="a\0b"), "FIELD_INVALID"),
        "unknown-meter": (bench.use("q3", quantities=(("requests", 1), ("nul\0", 1))), "METER_UNKNOWN"),
        "nul-id": (bench.use("q4\0"), "FIELD_INVALID"),
        "negative": (bench.use("q5", quantities=(("requests", -1),)), "FIELD_OUT_OF_RANGE"),
        "too-much": (bench.use("q6", quantities=(("requests", 2**53),)), "FIELD_OUT_OF_RANGE"),
        "late": (bench.use("q7", event_us=bench.now_us - 36 * DAY_US), "TOO_LATE"),
        "early": (bench.use("q8", event_us=bench.now_us + DAY_US), "TOO_EARLY"),
        "ancient": (bench.use("q9", event_us=-(2**62)), "TOO_LATE"),
        "stale": (bench.use("q10", received_us=bench.now_us - 15 * DAY_US), "DEDUP_EXPIRED"),
        "far": (bench.use("q11", event_us=2**62, received_us=2**62), "FIELD_OUT_OF_RANGE"),
        "nul-value": (bench.use("q12", attributes=(("user", "\0"),)), "FIELD_INVALID"),
        "empty": (bench.use("q13", quantities=()), "FIELD_REQUIRED"),
    }
    for name, (use, _) in bad.items():
        log.record(bench.use(f"good-{name}"), use)
    outcome = await bench.ingest.append(log.cut())
    assert (len(bad), len(bad), log.last_seq) == (outcome.stored, outcome.quarantined, outcome.position.committed_seq)
    rows = await bench.rows("SELECT * FROM usage_quarantine WHERE producer_id = $1 ORDER BY seq", log.producer_id)
    assert [reason for _, reason in bad.values()] == [row["reason"] for row in rows]
    assert [use.hash() for use, _ in bad.values()] == [row["content_hash"] for row in rows]
    assert uuid.UUID(int=0) == rows[0]["tenant_id"]
    later = await bench.ingest.append(log.cut())
    assert 2 * len(bad) == later.trimmed
    assert [] == await bench.rows(ROLLUP_DIFFERENCES)


async def test_a_refused_record_claims_no_id(bench: Bench) -> None:
    """A record that was quarantined can be sent again once it is right."""
    log = await bench.new_log()
    log.record(bench.use("again", quantities=(("requests", -1),)), bench.use("again"))
    outcome = await bench.ingest.append(log.cut())
    assert (1, 0, 1) == (outcome.stored, outcome.conflicts, outcome.quarantined)


async def test_holes_take_their_numbers_and_are_audited(bench: Bench) -> None:
    """Damage is committed like records: numbers, h, a link, and an entry of the audit log; a resend adds none."""
    log = await bench.new_log()
    log.lose(3, "CRC")
    log.record(bench.use("after-hole"))
    log.lose(1, "HEADER")
    for cut in (log.cut(0, 2), log.cut(1), log.cut()):
        await bench.ingest.append(cut)
    entries = await bench.rows(
        "SELECT after FROM audit_log WHERE actor = $1 ORDER BY audit_id", f"producer/{log.producer_id.hex}"
    )
    assert [
        '{"reason": "CRC", "last_seq": 3, "first_seq": 1}',
        '{"reason": "HEADER", "last_seq": 5, "first_seq": 5}',
    ] == [entry["after"] for entry in entries]
    links = await bench.rows("SELECT holes FROM usage_chain WHERE producer_id = $1 ORDER BY last_seq", log.producer_id)
    assert [3, 1] == [link["holes"] for link in links]


async def test_a_producer_is_known_by_what_it_says(bench: Bench) -> None:
    """Watermark never goes back and never beyond now; tenants served are kept; closing and coming back show."""
    log = await bench.new_log()

    async def row() -> tuple[object, ...]:
        (found,) = await bench.rows(
            "SELECT watermark, state, (SELECT count(*) FROM producer_tenant t WHERE t.producer_id = p.producer_id)"
            " FROM producer p WHERE producer_id = $1",
            log.producer_id,
        )
        return tuple(found)

    assert (None, "open", 0) == await row()
    await bench.ingest.append(log.cut(watermark_us=bench.now_us, tenants_served=["globex", "nobody", "a\0b"]))
    seen, *rest = await row()
    assert ["open", 1] == rest
    await bench.ingest.append(log.cut(watermark_us=bench.now_us - 1, tenants_served=["acme"], closing=True))
    assert (seen, "closed", 2) == await row()
    log.record(bench.use("back"))
    await bench.ingest.append(log.cut(watermark_us=2**63 - 1))
    later, *rest = await row()
    assert ["open", 2] == rest
    (now,) = await bench.rows("SELECT ledger_now() AS now")
    assert seen < later < now["now"]  # type: ignore[operator]  # both are times
    assert 1 == len(await bench.rows("SELECT FROM usage_chain WHERE producer_id = $1", log.producer_id))


async def test_only_the_newest_process_may_append(bench: Bench) -> None:
    """A second process fences the first, a twin is fenced at once, and an unannounced incarnation must announce."""
    log = await bench.new_log()
    with pytest.raises(PreconditionError) as caught:
        await bench.ingest.open_producer(log.producer_id, incarnation=1, holder=b"twin", version=1)
    assert caught.value.reason == "PRODUCER_FENCED"
    await bench.ingest.open_producer(log.producer_id, incarnation=1, holder=HOLDER, version=1)
    await bench.ingest.open_producer(log.producer_id, incarnation=2, holder=b"next", version=1)
    log.record(bench.use("fenced"))
    for incarnation, reason in ((1, "PRODUCER_FENCED"), (3, "PRODUCER_UNKNOWN")):
        with pytest.raises(PreconditionError) as caught:
            await bench.ingest.append(replace(log.cut(), incarnation=incarnation))
        assert reason == caught.value.reason
    outcome = await bench.ingest.append(replace(log.cut(), incarnation=2))
    assert 1 == outcome.stored
    reopened = await bench.ingest.open_producer(log.producer_id, incarnation=3, holder=b"third", version=1)
    assert ProducerPosition(1, log.h(1), 1) == reopened


async def test_a_batch_over_a_month_boundary_finds_its_partitions(bench: Bench) -> None:
    """Months are made as they are needed, also by many replicas at once."""
    logs = [await bench.new_log() for _ in range(4)]
    ingests = [UsageIngest(bench.pool, embedded=True) for _ in logs]
    for number, log in enumerate(logs):
        log.record(
            *[bench.use(f"month-{number}-{days}", event_us=bench.now_us - days * DAY_US) for days in range(0, 35, 2)]
        )
    outcomes = await asyncio.gather(*(ingest.append(log.cut()) for ingest, log in zip(ingests, logs, strict=True)))
    assert [18] * 4 == [outcome.stored for outcome in outcomes]


async def test_safe_is_what_was_committed_a_day_ago(new_database: Callable[[], str]) -> None:
    """Outside an embedded setup a commit is safe from a restore once it is 24 hours old."""
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench:
        ingest = UsageIngest(bench.pool, embedded=False)
        log = await bench.new_log()
        log.record(bench.use("safe-1"), bench.use("safe-2"))
        assert 0 == (await ingest.append(log.cut())).position.safe_seq
        async with superuser(url) as conn:
            await conn.execute("UPDATE clock_setting SET origin = origin + interval '25 hours'")
        log.record(bench.use("safe-3"))
        assert 2 == (await ingest.append(log.cut())).position.safe_seq
        opened = await ingest.open_producer(log.producer_id, incarnation=2, holder=b"x", version=1)
        assert ProducerPosition(3, log.h(3), 2) == opened
