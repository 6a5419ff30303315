# ruff: noqa: SIM300 - expected first, then actual
"""Which batches share a transaction, and what becomes of the others where one fails."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from tollkeeper_ledger.domain.errors import LedgerError, PreconditionError
from tollkeeper_ledger.domain.usage import AppendOutcome, ProducerPosition
from tollkeeper_ledger.domain.usage_batch import read_batch
from tollkeeper_ledger.services import usage_commits
from tollkeeper_ledger.services.usage_commits import TRANSACTIONS_MAX, UsageCommits
from usage_support import Log, Use

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.usage_batch import UsageBatch
    from tollkeeper_ledger.services.usage_append import Result

pytestmark = pytest.mark.asyncio

FENCED = PreconditionError("older", reason="PRODUCER_FENCED")


def batch_of(producer: int, *, records: int = 2) -> UsageBatch:
    """Give a batch of a producer."""
    log = Log(producer_id=UUID(int=producer))
    log.record(*[Use(id=f"{producer}-{number}") for number in range(records)])
    return read_batch(log.cut())


@dataclass(slots=True)
class Database:
    """Commits when it is let, and keeps what each transaction held."""

    transactions: list[list[int]] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Condition = field(default_factory=asyncio.Condition)
    refused: dict[int, Exception] = field(default_factory=dict)
    """By producer: what each transaction that holds a batch of it fails with."""

    async def commit(self, batches: Sequence[UsageBatch]) -> list[Result]:
        """Be one transaction."""
        producers = [batch.source.producer_id.int for batch in batches]
        async with self.begun:
            self.transactions.append(producers)
            self.begun.notify_all()
        await self.go.wait()
        for producer in producers:
            if producer in self.refused:
                raise self.refused[producer]
        return [
            FENCED if producer == 0 else AppendOutcome(ProducerPosition(producer, b"", 0), stored=len(batch.records))
            for producer, batch in zip(producers, batches, strict=True)
        ]

    async def wait_for(self, count: int) -> None:
        """Wait until so many transactions have begun."""
        async with asyncio.timeout(60), self.begun:
            await self.begun.wait_for(lambda: len(self.transactions) >= count)


async def gathered(database: Database, commits: UsageCommits, batches: Sequence[UsageBatch]) -> list[object]:
    """Send batches while as many transactions run as may, then let all commit; give what each caller is told."""
    running = [asyncio.create_task(commits.commit(batch_of(1_000 + at))) for at in range(TRANSACTIONS_MAX)]
    await database.wait_for(TRANSACTIONS_MAX)
    sent = [asyncio.ensure_future(commits.commit(batch)) for batch in batches]
    await asyncio.sleep(0)
    database.go.set()
    told: list[object] = list(await asyncio.gather(*sent, return_exceptions=True))
    await asyncio.gather(*running)
    return told


async def test_what_waits_shares_the_next_transaction() -> None:
    """Batches that gathered while transactions ran are one transaction, producers in the order of their ids."""
    database = Database()
    told = await gathered(database, UsageCommits(database.commit), [batch_of(number) for number in (7, 3, 5)])
    assert [[3, 5, 7]] == database.transactions[TRANSACTIONS_MAX:]
    assert [7, 3, 5] == [one.position.committed_seq for one in told if isinstance(one, AppendOutcome)]


async def test_batches_of_one_producer_follow_each_other() -> None:
    """A transaction holds one batch of a producer at most, and the next one comes after it."""
    database = Database()
    await gathered(database, UsageCommits(database.commit), [batch_of(4), batch_of(4), batch_of(6), batch_of(4)])
    assert [[4, 6], [4], [4]] == database.transactions[TRANSACTIONS_MAX:]


async def test_a_transaction_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a transaction has its records the rest waits for the next one."""
    monkeypatch.setattr(usage_commits, "RECORDS_MAX", 7)
    database = Database()
    await gathered(database, UsageCommits(database.commit), [batch_of(number) for number in range(2, 7)])
    assert [[2, 3, 4], [5, 6]] == database.transactions[TRANSACTIONS_MAX:]


async def test_a_refusal_is_its_producers_own() -> None:
    """What one producer is refused for is told to it alone, in the same transaction."""
    database = Database()
    told = await gathered(database, UsageCommits(database.commit), [batch_of(0), batch_of(1)])
    assert [[0, 1]] == database.transactions[TRANSACTIONS_MAX:]
    assert [FENCED, AppendOutcome(ProducerPosition(1, b"", 0), stored=2)] == told


async def test_who_fails_a_transaction_fails_alone() -> None:
    """Where a transaction fails each batch is committed by itself, and the error is told to whose it is."""
    database = Database(refused={2: RuntimeError("of 2")})
    told = await gathered(database, UsageCommits(database.commit), [batch_of(number) for number in (1, 2, 3)])
    assert [[1, 2, 3], [1], [2], [3]] == database.transactions[TRANSACTIONS_MAX:]
    assert [1, 3] == [one.position.committed_seq for one in told if isinstance(one, AppendOutcome)]
    assert ["of 2"] == [str(one) for one in told if isinstance(one, RuntimeError)]


async def test_a_database_that_stays_away_is_told_to_all_at_once() -> None:
    """Nobody tries again one by one what the database could not even begin; the next batches are served."""
    away = LedgerError("away", reason="LEDGER_UNREACHABLE")
    database = Database(refused={1: away})
    commits = UsageCommits(database.commit)
    assert [away, away] == await gathered(database, commits, [batch_of(1), batch_of(2)])
    assert [[1, 2]] == database.transactions[TRANSACTIONS_MAX:]
    assert 2 == (await commits.commit(batch_of(2))).stored


async def test_who_went_away_before_its_turn_is_not_committed() -> None:
    """A caller that hung up while it waited takes nothing with it, and its producer may send again."""
    database = Database()
    commits = UsageCommits(database.commit)
    running = [asyncio.create_task(commits.commit(batch_of(1_000 + at))) for at in range(TRANSACTIONS_MAX)]
    await database.wait_for(TRANSACTIONS_MAX)
    gone = asyncio.create_task(commits.commit(batch_of(1)))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    database.go.set()
    assert 1 == (await commits.commit(batch_of(1))).position.committed_seq
    assert [[1]] == database.transactions[TRANSACTIONS_MAX:]
    await asyncio.gather(*running)


async def test_who_goes_away_in_the_middle_takes_nobody_along() -> None:
    """A caller that hangs up inside a transaction undoes nothing: the others of it are answered."""
    database = Database()
    commits = UsageCommits(database.commit)
    running = [asyncio.create_task(commits.commit(batch_of(number))) for number in range(1, 1 + TRANSACTIONS_MAX)]
    await database.wait_for(TRANSACTIONS_MAX)
    sent = [asyncio.create_task(commits.commit(batch_of(number))) for number in (11, 12)]
    await asyncio.sleep(0)
    running[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await running[0]
    database.go.set()
    assert [11, 12] == [one.position.committed_seq for one in await asyncio.gather(*sent)]
    assert 2 == (await running[1]).position.committed_seq
    assert 1 == (await commits.commit(batch_of(1))).position.committed_seq
