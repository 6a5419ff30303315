"""Appending usage on a real Postgres: once, whatever is sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from usage_bench import Bench


@pytest.mark.asyncio
async def test_a_batch_is_stored_with_its_sums_and_its_link(bench: Bench) -> None:
    """One append stores records, ids, sums per minute and one link of the chain."""
    log = await bench.new_log()
    log.record(*[bench.use(f"a-{n}", quantities=(("requests", 1), ("context_tokens", n))) for n in range(100)])
    outcome = await bench.ingest.append(log.cut())
    assert (100, 0, 0, 0, 0) == (
        outcome.stored,
        outcome.duplicates,
        outcome.conflicts,
        outcome.quarantined,
        outcome.trimmed,
    )
    assert (100, log.h(100)) == (outcome.position.committed_seq, outcome.position.h)
    assert [(n + 1, f"a-{n}") for n in range(100)] == await bench.stored(log)
