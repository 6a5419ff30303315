# ruff: noqa: SIM300 - expected first, then actual
"""Batches of many producers in one transaction on a real Postgres: each has its own verdicts, and none another's."""

from __future__ import annotations

import asyncio
import random
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.domain.usage import CONFLICT, AppendOutcome, Verdict
from tollkeeper_ledger.domain.usage_batch import read_batch
from tollkeeper_ledger.domain.usage_hash import merkle_root_by_tenant
from tollkeeper_ledger.services import chain_slot, usage_append, usage_claims
from tollkeeper_ledger.services import usage as usage_service
from tollkeeper_ledger.services.chain_slot import ChainSlot
from tollkeeper_ledger.services.usage import UsageIngest
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.usage_batches import claim_ids
from usage_bench import TENANTS, superuser
from usage_faults import POISON, ROLLUP_DIFFERENCES, held, refusing, waiting
from usage_support import Log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tollkeeper_ledger.domain.usage import UsageAppend
    from tollkeeper_ledger.store.pool import Connection, Pool
    from tollkeeper_ledger.store.usage_batches import IdClaim
    from usage_bench import Bench

pytestmark = pytest.mark.asyncio


@dataclass(slots=True)
class Together:
    """Appends batches as one transaction: those that were gathered while another one ran."""

    bench: Bench

    async def append(self, appends: Sequence[UsageAppend]) -> list[Any]:
        """Append; gives outcomes, or why one was refused, in the order given."""
        batches = sorted(map(read_batch, appends), key=lambda batch: batch.source.producer_id)
        results = await self.bench.ingest._commit(batches)
        by_producer = {batch.source.producer_id: result for batch, result in zip(batches, results, strict=True)}
        return [by_producer[append.producer_id] for append in appends]


async def test_each_batch_of_a_transaction_has_its_own_verdicts(bench: Bench) -> None:
    """Fenced, forked, early, unknown and late producers beside good ones: everyone hears its own, exactly."""
    good, fenced, forked, early, late, halfway = [await bench.new_log() for _ in range(6)]
    for number, log in enumerate((good, fenced, forked, early, late, halfway)):
        log.record(*[bench.use(f"v{number}-{at}", tenant=TENANTS[at % 2]) for at in range(20)])
    for log in (forked, late, halfway):
        await bench.ingest.append(log.cut(0, 10))
    await bench.ingest.append(late.cut())
    await bench.ingest.open_producer(fenced.producer_id, incarnation=2, holder=b"newer", version=1)
    other = Log(producer_id=forked.producer_id)
    other.record(*[bench.use(f"other-{at}") for at in range(20)])
    stranger = Log(producer_id=uuid.uuid4())
    stranger.record(bench.use("stranger"))
    appends = [
        good.cut(), fenced.cut(), other.cut(), early.cut(5), late.cut(0, 5), halfway.cut(4), stranger.cut()
    ]  # fmt: skip
    results = await Together(bench).append(appends)
    said = [
        result.reason if isinstance(result, PreconditionError) else (result.stored, result.trimmed)
        for result in results
    ]
    assert said == [
        (20, 0), "PRODUCER_FENCED", "PRODUCER_FORKED", "PRODUCER_GAP", (0, 5), (10, 6), "PRODUCER_UNKNOWN"
    ]  # fmt: skip
    for log, stored in ((good, 20), (fenced, 0), (forked, 10), (early, 0), (late, 20), (halfway, 20)):
        assert [(at + 1, log.entries[at].id) for at in range(stored)] == await bench.stored(log)  # type: ignore[union-attr]
    assert [] == await bench.rows(ROLLUP_DIFFERENCES)


@pytest.mark.parametrize("records_min", [1, 1_000])
async def test_ids_that_meet_in_one_transaction_are_stored_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, records_min: int
) -> None:
    """The first producer's record stands; its like is a duplicate elsewhere, another one under its id a conflict.

    Whether appends ask for ids, or claim them as if they were free.
    """
    monkeypatch.setattr(usage_claims, "RECORDS_MIN", records_min)
    logs = sorted([await bench.new_log() for _ in range(3)], key=lambda log: log.producer_id)
    first, like, unlike = logs
    first.record(*[bench.use(f"meet-{records_min}-{at}") for at in range(10)])
    like.record(bench.use(f"own-{records_min}-1"), *[bench.use(f"meet-{records_min}-{at}") for at in range(10)])
    unlike.record(
        *[bench.use(f"meet-{records_min}-{at}", quantities=(("requests", 9),)) for at in range(10)],
        bench.use(f"own-{records_min}-2"),
    )
    # Sent in another order than that in which they are committed.
    conflicts, stored, duplicates = await Together(bench).append([unlike.cut(), first.cut(), like.cut()])
    assert [(10, 0, 0), (1, 10, 0), (1, 0, 10)] == [
        (one.stored, one.duplicates, one.conflicts) for one in (stored, duplicates, conflicts)
    ]
    assert [Verdict(seq, None) for seq in range(2, 12)] == list(duplicates.verdicts)
    assert [Verdict(seq, CONFLICT) for seq in range(1, 11)] == list(conflicts.verdicts)
    # Sent again, cut in another way, they hear the same.
    again = await Together(bench).append([like.cut(0, 5), unlike.cut()])
    assert [duplicates.verdicts[:4], conflicts.verdicts] == [one.verdicts for one in again]
    assert [] == await bench.rows(ROLLUP_DIFFERENCES)


async def test_a_wrong_guess_about_ids_costs_nothing_but_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append that claims its ids as if they were free, beside one that is committing some of them, waits for it.

    It stores what is its own, once, and hears of each taken id; ids that stand twice in it as well. The next append
    asks, the one after it guesses again.
    """
    guessing = UsageIngest(bench.pool, embedded=True, chain=ChainSlot(1))
    claims: list[bool] = []

    async def claim_and_tell(conn: Connection, claim: IdClaim) -> dict[int, bool]:
        claims.append(claim.all_free)
        return await claim_ids(conn, claim)

    monkeypatch.setattr(usage_append, "claim_ids", claim_and_tell)
    first, second, opening = [await bench.new_log() for _ in range(3)]
    # So that the stream has a head to be held at.
    opening.record(bench.use("guess-opening"))
    assert 1 == (await bench.ingest.append(opening.cut())).stored
    first.record(*[bench.use(f"guess-{at}") for at in range(150)])
    second.record(*[bench.use(f"guess-{at}") for at in range(100, 250)], bench.use("guess-249"))
    async with held(bench, "SELECT FROM usage_chain_head FOR UPDATE"):
        sent = asyncio.create_task(bench.ingest.append(first.cut()))
        await waiting(bench, 1)
        later = asyncio.create_task(guessing.append(second.cut()))
        await waiting(bench, 2)
    assert (150, 0) == ((await sent).stored, (await sent).duplicates)
    outcome = await later
    assert (100, 51, 0) == (outcome.stored, outcome.duplicates, outcome.conflicts)
    assert [Verdict(seq, None) for seq in (*range(1, 51), 151)] == list(outcome.verdicts)
    assert [(at - 99, f"guess-{at}") for at in range(150, 250)] == await bench.stored(second)
    # The chain is over what is stored, not over what came.
    rows = await bench.rows(
        "SELECT merkle_root, content_hash FROM usage_chain JOIN usage_id USING (batch_id)"
        " WHERE producer_id = $1 ORDER BY seq",
        second.producer_id,
    )
    hashes = [row["content_hash"] for row in rows]
    assert {merkle_root_by_tenant({second.entries[0].tenant: hashes})} == {row["merkle_root"] for row in rows}
    for number in range(2):
        second.record(*[bench.use(f"guess-more-{number}-{at}") for at in range(100)])
        assert 100 == (await guessing.append(second.cut(151 + 100 * number))).stored
    assert [False, True, True, False, True] == claims
    assert [] == await bench.rows(ROLLUP_DIFFERENCES)


async def test_one_link_an_append_whatever_its_company(bench: Bench) -> None:
    """Each append has its link, in one row behind the other, and each link tells its own batch."""
    logs = [await bench.new_log() for _ in range(5)]
    for number, log in enumerate(logs):
        log.record(*[bench.use(f"link-{number}-{at}") for at in range(number + 1)])
        if number % 2:
            log.lose(3)
    await Together(bench).append([log.cut() for log in logs])
    links = await bench.rows(
        "SELECT * FROM usage_chain WHERE producer_id = ANY ($1) ORDER BY position", [log.producer_id for log in logs]
    )
    positions = [link["position"] for link in links]
    assert list(range(positions[0], positions[0] + 5)) == positions
    by_producer = {link["producer_id"]: link for link in links}
    for number, log in enumerate(logs):
        link = by_producer[log.producer_id]
        holes = 3 if number % 2 else 0
        assert (1, log.last_seq, log.chain[-1], number + 1, holes) == tuple(
            link[name] for name in ("first_seq", "last_seq", "h", "stored", "holes")
        )


async def test_poison_of_one_producer_holds_up_no_other(bench: Bench) -> None:
    """Many producers at once, two with records that Postgres refuses: these go to quarantine, all else is stored."""
    logs = [await bench.new_log() for _ in range(12)]
    for number, log in enumerate(logs):
        for at in range(40):
            poison = "-poison" if number in {3, 8} and at == 17 + number else ""
            log.record(bench.use(f"many-{number}-{at}{poison}", tenant=TENANTS[at % 2]))
    async with refusing(bench, "usage_record", "NEW.id LIKE '%-poison'", "data_exception"):
        outcomes = await asyncio.gather(*(bench.ingest.append(log.cut()) for log in logs))
    for number, (log, outcome) in enumerate(zip(logs, outcomes, strict=True)):
        bad = [18 + number] if number in {3, 8} else []
        assert [Verdict(seq, POISON) for seq in bad] == list(outcome.verdicts)
        assert (40 - len(bad), len(bad), log.last_seq) == (
            outcome.stored, outcome.quarantined, outcome.position.committed_seq
        )  # fmt: skip
        assert [seq for seq in range(1, 41) if seq not in bad] == [seq for seq, _ in await bench.stored(log)]
    assert [] == await bench.rows(ROLLUP_DIFFERENCES)


@pytest.mark.parametrize("table", ["usage_id", "usage_rollup_minute", "usage_chain"])
async def test_a_killed_transaction_of_many_producers_stores_each_once(bench: Bench, table: str) -> None:
    """Killed at any step, the transaction leaves nothing of anybody; what comes next commits all, each record once."""
    logs = [await bench.new_log() for _ in range(6)]
    for number, log in enumerate(logs):
        log.record(*[bench.use(f"kill-{table}-{number}-{at}", tenant=TENANTS[at % 2]) for at in range(30)])
    async with superuser(bench.url) as conn:
        async with held(bench, f"LOCK {table} IN ACCESS EXCLUSIVE MODE"):
            append = asyncio.create_task(Together(bench).append([log.cut() for log in logs]))
            (killed,) = await waiting(bench, 1)
            await conn.execute("SELECT pg_terminate_backend($1, 10000)", killed)
            assert [killed] != await waiting(bench, 1)
        outcomes = await append
    assert [(30, 0)] * 6 == [(one.stored, one.trimmed) for one in outcomes]
    for log in logs:
        assert 30 == len(await bench.stored(log))
    assert [] == await bench.rows(ROLLUP_DIFFERENCES)


async def _once(pool: Pool, work: Callable[[Connection], Awaitable[Any]]) -> Any:
    async with connection(pool) as conn:
        return await work(conn)


@pytest.mark.parametrize("records_min", [1, 1_000])
@pytest.mark.parametrize("streams", [(0, 1), (0, 0)])
async def test_two_replicas_never_wait_for_each_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, streams: tuple[int, int], records_min: int
) -> None:
    """Two ledgers, each merging, with the same tenants, minutes and ids in any order: no deadlock, each id once.

    With streams of their own, and where both have the same one; whether they ask for ids, or guess that they are free.
    """
    monkeypatch.setattr(usage_claims, "RECORDS_MIN", records_min)
    monkeypatch.setattr(usage_claims, "PAUSE_MAX", 1)
    monkeypatch.setattr(usage_service, "attempted", _once)
    replicas = [UsageIngest(bench.pool, embedded=True, chain=ChainSlot(stream)) for stream in streams]
    chance = random.Random(11)
    name = f"both-{streams[1]}-{records_min}"
    uses = [bench.use(f"{name}-{at}", tenant=chance.choice(TENANTS), event_us=_minute(bench, at)) for at in range(300)]
    logs = [await bench.new_log() for _ in range(8)]
    for log in logs:
        log.record(*chance.sample(uses, len(uses)))
    outcomes: list[AppendOutcome] = []
    for first in range(0, 300, 60):
        outcomes += await asyncio.gather(
            *(replicas[at % 2].append(log.cut(first, first + 60)) for at, log in enumerate(logs))
        )
    assert (300, 8 * 300 - 300) == (sum(one.stored for one in outcomes), sum(one.duplicates for one in outcomes))
    assert 300 == len(await bench.rows("SELECT FROM usage_record WHERE id LIKE $1", f"{name}-%"))
    assert [] == await bench.rows(ROLLUP_DIFFERENCES)


async def test_a_replica_waits_at_no_head_but_its_own(bench: Bench) -> None:
    """While one ledger's commit is held up at the head of its stream, another one's of another stream goes through."""
    replicas = [UsageIngest(bench.pool, embedded=True, chain=ChainSlot(stream)) for stream in range(2)]
    logs = [await bench.new_log() for _ in replicas]
    for at, (replica, log) in enumerate(zip(replicas, logs, strict=True)):
        log.record(bench.use(f"head-{at}-first"), bench.use(f"head-{at}", tenant=TENANTS[at]))
        assert 1 == (await replica.append(log.cut(0, 1))).stored
    async with asyncio.timeout(60):
        async with held(bench, "SELECT FROM usage_chain_head WHERE stream = 0 FOR UPDATE"):
            held_up = asyncio.create_task(replicas[0].append(logs[0].cut(1)))
            await waiting(bench, 1)
            assert 1 == (await replicas[1].append(logs[1].cut(1))).stored
            assert not held_up.done()
        assert 1 == (await held_up).stored


async def test_sessions_that_race_for_streams_get_one_each(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stream is two sessions'; who finds none left adds to the first one, until somebody else's session ends."""
    monkeypatch.setattr(chain_slot, "STREAMS_MAX", 4)
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(superuser(bench.url)) for _ in range(6)]
        slots = [ChainSlot() for _ in sessions]
        await asyncio.gather(*(slot.take(conn) for slot, conn in zip(slots, sessions, strict=True)))
        assert [0, 0, 0, 1, 2, 3] == sorted(slot.stream for slot in slots)
        locks = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = ANY ($1::integer[])"
        owners = [row["pid"] for row in await bench.rows(locks, [one.get_server_pid() for one in sessions])]
        assert 4 == len(owners) == len(set(owners))
        (third,) = [conn for slot, conn in zip(slots, sessions, strict=True) if slot.stream == 2]
        left = next(at for at, conn in enumerate(sessions) if conn.get_server_pid() not in owners)
        await third.close()
        async with asyncio.timeout(60):
            while slots[left].stream == 0:
                await slots[left].take(sessions[left])
        assert 2 == slots[left].stream


def _minute(bench: Bench, at: int) -> int:
    return bench.now_us - at % 5 * 60_000_000


async def test_who_serves_whom_is_kept_whatever_fails(bench: Bench) -> None:
    """A producer's tenants are noted with its first commit, also where the first attempts failed."""
    log = await bench.new_log()
    log.record(bench.use("serves-1"), bench.use("serves-2", tenant="globex"))
    async with refusing(bench, "usage_chain", "true", "data_exception"):
        with pytest.raises(asyncpg.DataError):
            await bench.ingest.append(log.cut())
    assert [] == await _served(bench, log)
    await bench.ingest.append(log.cut(0, 1))
    assert [bench.tenants["acme"]] == await _served(bench, log)
    await bench.ingest.append(log.cut(tenants_served=["globex"]))
    assert sorted(bench.tenants[name] for name in ("acme", "globex")) == await _served(bench, log)


async def _served(bench: Bench, log: Log) -> list[uuid.UUID]:
    rows = await bench.rows(
        "SELECT tenant_id FROM producer_tenant WHERE producer_id = $1 ORDER BY tenant_id", log.producer_id
    )
    return [row["tenant_id"] for row in rows]


async def test_sums_leave_room_for_their_next_versions(bench: Bench) -> None:
    """Partitions of sums are filled by half, so that what every batch updates touches no index."""
    log = await bench.new_log()
    log.record(bench.use("room"))
    await bench.ingest.append(log.cut())
    rows = await bench.rows(
        "SELECT relname, reloptions FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
        " WHERE inhparent IN ('usage_rollup_minute'::regclass, 'usage_rollup_quarter'::regclass)"
    )
    assert rows
    assert {("fillfactor=50",)} == {tuple(row["reloptions"]) for row in rows}
