# ruff: noqa: SIM300 - expected first, then actual
"""Rollups on a real Postgres: whatever comes in whatever order, late, early or taken back, they equal the records."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import TYPE_CHECKING

import pytest
from rollup_support import KINDS, QUARTER_US, add_kinds, expected, kept
from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.usage import DAY_US, MINUTE_US, UNITS_MAX
from tollkeeper_ledger.services.usage_voids import void_usage
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction
from usage_bench import TENANTS, open_bench

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from usage_bench import Bench
    from usage_support import Use

pytestmark = pytest.mark.asyncio

PRODUCER = uuid.UUID(int=77)


async def void(bench: Bench, tenant: str, ids: Sequence[str]) -> tuple[int, int]:
    """Take records back."""
    async with transaction(bench.pool) as conn:
        return await void_usage(conn, bench.ingest, PRODUCER, tenant=tenant, ids=ids, now=await ledger_now(conn))


def draw(bench: Bench, chance: random.Random, name: str) -> Use:
    """Draw a record of several meters: of now, of the same instant as others, late by minutes to weeks, or early."""
    lag = chance.choice(
        [0, 0, chance.randrange(20) * 60_000_000, chance.randrange(34 * DAY_US), -chance.randrange(10**8)]
    )
    instant = chance.choice([0, chance.randrange(60_000_000)])
    attributes = [
        (attribute, chance.choice(values))
        for attribute, values in (("zone", ["a", "ü", '"']), ("user", ["u1", "u2", "u3", "u4"]))
        if chance.random() < 0.8
    ]
    return bench.use(
        name,
        tenant=chance.choice(TENANTS),
        event_us=bench.now_us // 60_000_000 * 60_000_000 - lag + instant,
        quantities=tuple(
            (meter, chance.choice([0, 1, chance.randrange(300), chance.randrange(2**53)]))
            for meter in chance.sample(sorted([*KINDS, "requests"]), chance.randint(1, 6))
        ),
        attributes=tuple(attributes),
        flags=chance.choice([0, 0, 0, 16]),
    )


@pytest.mark.parametrize("seed", range(4))
async def test_rollups_equal_the_records_whatever_order(new_database: Callable[[], str], seed: int) -> None:
    """Every aggregation, by minute and quarter of an hour, is what a plain loop over the kept records gives."""
    chance = random.Random(seed)
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench:
        await add_kinds(bench)
        logs = [await bench.new_log() for _ in range(3)]
        alive: dict[tuple[str, str], Use] = {}
        for step in range(9):
            batches = []
            for number, log in enumerate(chance.sample(logs, chance.randint(1, 3))):
                first = len(log.entries)
                uses = [draw(bench, chance, f"{step}-{number}-{at}") for at in range(chance.randint(1, 40))]
                log.record(*uses)
                alive |= {(use.tenant, use.id): use for use in uses}
                batches.append(log.cut(max(0, first - chance.randint(0, 3))))
            voids = chance.sample(sorted(alive), min(len(alive), chance.choice([0, 0, 1, 12])))
            stored = await asyncio.gather(*map(bench.ingest.append, batches))
            assert 0 == sum(one.quarantined + one.conflicts for one in stored)
            for tenant in TENANTS:
                ids = [name for owner, name in voids if owner == tenant]
                if ids:
                    assert (len(ids), 0) == await void(bench, tenant, ids)
                    assert (0, len(ids)) == await void(bench, tenant, ids)
            alive = {name: use for name, use in alive.items() if name not in voids}
        assert expected(alive.values()) == await kept(bench)


async def test_sums_are_exact_beyond_64_bits_and_at_every_edge(new_database: Callable[[], str]) -> None:
    """Records of the largest units in one minute add up beyond 2^63, by one batch and onto what is there.

    Those at the last and first microsecond of a minute, a quarter of an hour, a day and a month count where they lie.
    """
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench:
        await add_kinds(bench)
        month_us = to_us(from_us(bench.now_us).replace(day=1, hour=0, minute=0, second=0, microsecond=0))
        turns = [month_us, *(bench.now_us // size * size for size in (MINUTE_US, QUARTER_US, DAY_US))]
        edges = [turn + by for turn in turns for by in (-1, 0)]
        log = await bench.new_log()
        every: list[Use] = []
        for batch in range(2):
            uses = [
                bench.use(
                    f"{batch}-{number}",
                    event_us=edges[number] if number < len(edges) else month_us,
                    quantities=tuple((meter, UNITS_MAX) for meter in ("k_sum", "k_avg", "requests")),
                    attributes=(("zone", "z"),),
                )
                for number in range(800)
            ]
            first = len(log.entries)
            log.record(*uses)
            every += uses
            outcome = await bench.ingest.append(log.cut(first))
            assert (len(uses), 0) == (outcome.stored, outcome.quarantined)
        told = await kept(bench)
        assert expected(every) == told
        assert max(units for units, _ in told.minutes.values()) > 2**63


async def test_voids_beside_appends_of_the_same_minutes_lose_nothing(new_database: Callable[[], str]) -> None:
    """Concurrent appends and voids that touch the same states: the last word is what the records say."""
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench:
        await add_kinds(bench)
        chance = random.Random(3)
        logs = [await bench.new_log() for _ in range(3)]
        base = bench.now_us // QUARTER_US * QUARTER_US - QUARTER_US
        alive: dict[str, Use] = {}

        def batch(number: int, step: int) -> list[Use]:
            return [
                bench.use(
                    f"{number}-{step}-{at}",
                    event_us=base + chance.randrange(QUARTER_US),
                    quantities=tuple((meter, chance.randrange(999)) for meter in sorted(KINDS)),
                    attributes=(("user", chance.choice("xyz")), ("zone", "z")),
                )
                for at in range(8)
            ]

        for step in range(6):
            voids = chance.sample(sorted(alive), min(len(alive), 6))
            fresh = [batch(number, step) for number in range(3)]
            for log, uses in zip(logs, fresh, strict=True):
                log.record(*uses)
            voided = [void(bench, "acme", voids)] if voids else []
            await asyncio.gather(*(bench.ingest.append(log.cut(len(log.entries) - 8)) for log in logs), *voided)
            alive |= {use.id: use for uses in fresh for use in uses}
            alive = {name: use for name, use in alive.items() if name not in voids}
        assert expected(alive.values()) == await kept(bench)


async def test_only_stored_records_are_taken_back_all_or_none(bench: Bench) -> None:
    """An unknown id, another tenant's id or a void's own refuses the call as a whole; nothing is written."""
    log = await bench.new_log()
    log.record(bench.use("kept"), bench.use("of-globex", tenant="globex"))
    await bench.ingest.append(log.cut())
    before = await kept(bench)
    for ids in (["kept", "nobody"], ["kept", "of-globex"]):
        with pytest.raises(UnknownNameError) as caught:
            await void(bench, "acme", ids)
        assert "USAGE_UNKNOWN" == caught.value.reason
    for ids in ([], ["v/kept"], ["x" * 129], ["a\0"], [str(at) for at in range(1001)]):
        with pytest.raises(InvalidFieldError):
            await void(bench, "acme", ids)
    assert before == await kept(bench)
    assert (1, 0) == await void(bench, "acme", ["kept", "kept"])
    with pytest.raises(InvalidFieldError):
        await void(bench, "acme", ["v/kept"])


async def test_no_producer_writes_voids(bench: Bench) -> None:
    """A void's flag and the prefix of its id are the ledger's own: a producer's record with either is quarantined."""
    log = await bench.new_log()
    log.record(bench.use("plain"), bench.use("v/plain"), bench.use("flagged", flags=33))
    outcome = await bench.ingest.append(log.cut())
    assert (1, 2) == (outcome.stored, outcome.quarantined)
