# ruff: noqa: SIM300 - expected first, then actual
"""A database that refuses everything doesn't send everything to quarantine."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from tollkeeper_ledger.domain.errors import LedgerError
from tollkeeper_ledger.domain.usage import AppendOutcome, ProducerPosition
from tollkeeper_ledger.domain.usage_batch import read_batch
from tollkeeper_ledger.services import usage_bisect
from tollkeeper_ledger.services.usage_commits import UsageCommits
from usage_support import Log, Use

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.usage_batch import UsageBatch
    from tollkeeper_ledger.services.usage_append import Result

pytestmark = pytest.mark.asyncio


class Refusing:
    """A database that refuses every record while it is ill, and keeps where each producer is."""

    def __init__(self) -> None:
        self.is_ill = True
        self.now_s = 1_000.0
        self.committed: dict[UUID, int] = {}
        self.quarantined = 0

    async def commit(self, batches: Sequence[UsageBatch]) -> list[Result]:
        """Be one transaction."""
        results: list[Result] = []
        for batch in batches:
            done = self.committed.get(batch.source.producer_id, 0)
            new = [at for at, seq in enumerate(batch.records.seqs) if seq > done]
            bad = [at for at in new if at in batch.problems]
            if self.is_ill and len(bad) < len(new):
                raise ValueError("refused")
            self.committed[batch.source.producer_id] = max(done, batch.last_seq)
            self.quarantined += len(bad)
            stored = len(new) - len(bad)
            results.append(AppendOutcome(ProducerPosition(batch.last_seq, b"", 0), stored=stored, quarantined=len(bad)))
        return results


def batch_of(producer: int, records: int) -> UsageBatch:
    """Give a batch of a producer."""
    log = Log(producer_id=UUID(int=producer))
    log.record(*[Use(id=f"{producer}-{number}", tenant="t") for number in range(records)])
    return read_batch(log.cut())


async def test_a_database_that_refuses_everything_sends_few_to_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many in a row the rest stays with its producer, one goes a minute; what is stored ends the doubt."""
    monkeypatch.setattr(usage_bisect, "IN_A_ROW_MAX", 3)
    database = Refusing()
    commits = UsageCommits(database.commit, clock=lambda: database.now_s)
    batch = batch_of(1, 20)
    for quarantined in (3, 3):
        with pytest.raises(LedgerError) as caught:
            await commits.commit(batch)
        assert ("LEDGER_UNREACHABLE", quarantined) == (caught.value.reason, database.quarantined)
        assert caught.value.retry_after_ms == 60_001
    database.now_s += 60.0
    with pytest.raises(LedgerError):
        await commits.commit(batch)
    assert 4 == database.quarantined, "one a minute"
    database.is_ill = False
    assert 1 == (await commits.commit(batch_of(2, 1))).stored
    database.is_ill = True
    with pytest.raises(LedgerError):
        await commits.commit(batch)
    assert 7 == database.quarantined, "something was stored: it may be the records again"
    database.is_ill = False
    assert 13 == (await commits.commit(batch)).stored
