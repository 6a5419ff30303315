# ruff: noqa: SIM300 - expected first, then actual
"""What is remembered of who serves whom is never more than what the running Postgres has."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from tollkeeper_ledger.services import usage_served
from tollkeeper_ledger.services.usage_served import Served

PRODUCER = UUID(int=1)
TENANTS = [UUID(int=tenant) for tenant in range(3)]
SERVED = {PRODUCER: set(TENANTS)}
PAIRS = [(PRODUCER, tenant) for tenant in TENANTS]
FIRST = {PRODUCER: set(TENANTS[:2])}
SINCE, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


def test_what_was_committed_is_not_written_again() -> None:
    """Only a committed transaction's pairs are known; one that failed is written again."""
    served = Served()
    failed = served.begin()
    assert PAIRS[:2] == sorted(failed.lacking(FIRST, since=SINCE))
    done = served.begin()
    assert PAIRS[:2] == sorted(done.lacking(FIRST, since=SINCE))
    done.committed()
    assert PAIRS[2:] == served.begin().lacking(SERVED, since=SINCE)
    other = UUID(int=2)
    assert [(other, TENANTS[0])] == served.begin().lacking({**FIRST, other: {TENANTS[0]}}, since=SINCE)


@pytest.mark.parametrize("since", [LATER, None])
def test_another_start_of_a_server_may_lack_everything(since: datetime | None) -> None:
    """After a restart, which may be a restore, and where nobody knows of one, everything is written again."""
    served = Served()
    done = served.begin()
    done.lacking(SERVED, since=SINCE)
    done.committed()
    assert PAIRS == sorted(served.begin().lacking(SERVED, since=since))


def test_a_set_back_forgets_everything() -> None:
    """A Postgres that was set back under the same start lacks what is remembered."""
    served = Served()
    done = served.begin()
    done.lacking(SERVED, since=SINCE)
    done.committed()
    served.forget()
    assert PAIRS == sorted(served.begin().lacking(SERVED, since=SINCE))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound everything is forgotten and learnt anew."""
    monkeypatch.setattr(usage_served, "PAIRS_MAX", 2)
    served = Served()
    done = served.begin()
    done.lacking(SERVED, since=SINCE)
    done.committed()
    assert PAIRS == sorted(served.begin().lacking(SERVED, since=SINCE))
