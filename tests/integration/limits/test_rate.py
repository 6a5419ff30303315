"""How many new (key, window) pairs a second one ledger leases: a figure to read, not a bound for a busy machine."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from limits_support import kind, new_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from limits_support import Serving, Sidecar

CALLS, KEYS_PER_CALL, SIDECARS = 4, 250, 8


@pytest.mark.slow
async def test_new_keys_are_leased_by_the_thousand(
    serving: Serving, record_property: Callable[[str, object], None]
) -> None:
    """Every one of 8,000 fresh keys gets its lease; how fast is printed (the promise is 5,000 a second, two cores)."""

    async def ask(sidecar: Sidecar) -> list[str]:
        kinds: list[str] = []
        for _ in range(CALLS):
            answers = await sidecar.send(*(sidecar.entry("large", new_key()) for _ in range(KEYS_PER_CALL)))
            kinds += [kind(answer) for answer in answers]
        return kinds

    began, cpu = time.perf_counter(), time.process_time()
    kinds = await asyncio.gather(*(ask(serving.sidecar()) for _ in range(SIDECARS)))
    seconds = time.perf_counter() - began
    count = SIDECARS * CALLS * KEYS_PER_CALL
    python_us = (time.process_time() - cpu) / count * 1e6
    record_property("pairs_per_second", round(count / seconds))
    print(f"{count / seconds:,.0f} new pairs a second; {python_us:.0f} us of Python each, client included")  # noqa: T201
    assert sum(1 for one in kinds for answer in one if answer == "lease") == count
