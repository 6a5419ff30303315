"""How many new (key, window) pairs a second one ledger serves: figures to read, not bounds for a busy machine."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from limits_support import kind, new_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from limits_support import Serving

CALLS, KEYS_PER_CALL, SIDECARS, TURNS = 2, 250, 4, 2


@pytest.mark.slow
async def test_new_keys_are_leased_and_their_pools_opened_by_the_thousand(
    serving: Serving, record_property: Callable[[str, object], None]
) -> None:
    """Every one of 2,000 fresh keys a round gets its lease, then a second holder its pool, then a third where it is.

    How fast is printed (the promise for new pairs is 5,000 a second, two cores); two rounds, one after the other, so
    that whoever reads them sees whether a fuller table is slower.
    """

    async def ask(calls: list[list[bytes]]) -> list[str]:
        sidecar = serving.sidecar()
        answers = [await sidecar.send(*(sidecar.entry("large", key) for key in call)) for call in calls]
        return [kind(answer) for some in answers for answer in some]

    for turn in range(TURNS):
        keys = [[[new_key() for _ in range(KEYS_PER_CALL)] for _ in range(CALLS)] for _ in range(SIDECARS)]
        for expected in ("lease", "pool", "pool"):
            began, cpu = time.perf_counter(), time.process_time()
            kinds = await asyncio.gather(*map(ask, keys))
            seconds = time.perf_counter() - began
            count = SIDECARS * CALLS * KEYS_PER_CALL
            python_us = (time.process_time() - cpu) / count * 1e6
            record_property(f"{expected}_per_second_{turn}", round(count / seconds))
            print(f"{expected}: {count / seconds:,.0f} a second; {python_us:.0f} us of Python each, client included")  # noqa: T201
            assert [one for some in kinds for one in some] == [expected] * count
