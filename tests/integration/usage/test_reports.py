# ruff: noqa: SIM300 - expected first, then actual
"""Reports on a real Postgres: every figure, in every bucket, zone and group, is what the records say."""

from __future__ import annotations

import asyncio
import random
import uuid
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from report_support import EPOCH, Asked, answer
from rollup_support import KINDS, QUARTER_US, add_kinds
from tollkeeper_ledger.config import Settings
from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.usage import DAY_US, MINUTE_US
from tollkeeper_ledger.domain.usage_buckets import BucketSize
from tollkeeper_ledger.domain.usage_report import PERCENTILES_DEFAULT, read_where
from tollkeeper_ledger.services.usage_query import Question, query_usage, time_zone_of
from tollkeeper_ledger.services.usage_summaries import summarise, trend, value_of
from tollkeeper_ledger.services.usage_voids import void_usage
from tollkeeper_ledger.store.clock import ledger_now, set_clock, start_clock
from tollkeeper_ledger.store.pool import open_pools, transaction
from usage_bench import TENANTS, open_bench, superuser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tollkeeper_ledger.store.pool import Pools
    from usage_bench import Bench
    from usage_support import Use

pytestmark = pytest.mark.asyncio
WHERES = ([], [], ["zone=a"], ["zone=a", "zone=b"], ["user=x", "user=z"], ["zone=b", "user=y"], ["zone=nowhere"])
ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns")


@asynccontextmanager
async def stopped(new_database: Callable[[], str], now: str) -> AsyncIterator[tuple[Bench, Pools]]:
    """Give a bench whose ledger time stands still."""
    url = await asyncio.to_thread(new_database)
    settings = Settings(database_url=url, redis_url="redis://unused.invalid")
    assert await start_clock(url, EPOCH.fromisoformat(now))
    async with open_bench(url) as bench, open_pools(settings) as pools:
        async with pools.ingest.acquire() as conn:
            clock = await set_clock(conn, now=None, speed_milli=0)
        object.__setattr__(bench, "now_us", clock.now_us)
        await add_kinds(bench)
        yield bench, pools


def draw(bench: Bench, chance: random.Random, name: str) -> Use:
    """Draw a record of the last days, some at the same instants, some on the edges of quarters."""
    lag = chance.choice(
        [chance.randrange(3 * DAY_US), chance.randrange(20 * DAY_US), QUARTER_US * chance.randrange(99)]
    )
    attributes = [
        (key, chance.choice(values)) for key, values in (("zone", "ab"), ("user", "xyz")) if chance.random() < 0.8
    ]
    return bench.use(
        name,
        tenant=chance.choice(TENANTS),
        event_us=bench.now_us - lag,
        quantities=tuple(
            (meter, chance.choice([0, 1, 63, chance.randrange(10**6)]))
            for meter in chance.sample(sorted([*KINDS, "requests"]), chance.randint(1, 6))
        ),
        attributes=tuple(attributes),
    )


async def filled(bench: Bench, chance: random.Random) -> list[Use]:
    """Append records and take some back; give those that are left."""
    log = await bench.new_log()
    uses = [draw(bench, chance, f"u{at:03}") for at in range(160)]
    log.record(*uses)
    outcomes = [await bench.ingest.append(batch) for batch in (log.cut(0, 90), log.cut(90))]
    assert [90, 70] == [outcome.stored for outcome in outcomes]
    gone = chance.sample(uses, 25)
    for tenant in TENANTS:
        async with transaction(bench.pool) as conn:
            ids = [use.id for use in gone if use.tenant == tenant]
            now = await ledger_now(conn)
            await void_usage(conn, bench.ingest, uuid.UUID(int=7), tenant=tenant, ids=ids, now=now)
    return [use for use in uses if use not in gone]


def told(found: Any, asked: Asked) -> dict[Any, tuple[int, int, Any]]:
    """Give an answer in the form of the obvious one."""
    given = {}
    for one in found:
        start_us = asked.start_us if asked.size == "whole" else to_us(one.start)
        text = value_of(one, PERCENTILES_DEFAULT[0])
        given[one.meter.name, start_us, one.group] = (one.figure.units, one.figure.records, text)
    return given


def same(kind: str, expected: Any, text: str) -> bool:
    """Compare a value with the text that tells it, within what the aggregation states."""
    if expected is None:
        return text == ""
    if kind == "percentile":
        return abs(int(text) - expected) * 1000 <= 8 * expected
    return abs(Fraction(text) - expected) <= Fraction(1, 2_000_000)


@pytest.mark.parametrize("seed", range(3))
async def test_reports_say_what_the_records_say(new_database: Callable[[], str], seed: int) -> None:
    """Sum, count and value of every meter, over random spans, buckets, zones, groups and choices of attributes.

    Across a change of clocks.
    """
    chance = random.Random(seed)
    async with stopped(new_database, "2026-03-30T10:07:11+00:00") as (bench, pools):
        uses = await filled(bench, chance)
        for _ in range(12):
            step = chance.choice([QUARTER_US, MINUTE_US])
            start = (bench.now_us - chance.randrange(6 * DAY_US)) // step * step
            size = chance.choice(["whole", "minute", "hour", "day", "week", "month"])
            length = chance.randrange(1, 3 * DAY_US)
            asked = Asked(
                start_us=start,
                end_us=(start + length) // step * step + step,
                size=size,
                zone=chance.choice(ZONES),
                group_by=tuple(chance.choice([[], ["zone"], ["zone"], ["user", "zone"]])),
                now_us=bench.now_us,
            )
            where = read_where(chance.choice(WHERES))
            # A gauge is grouped and chosen by its dimensions only.
            by_user = {*asked.group_by, *where} & {"user"}
            meters = [name for name in sorted(KINDS) if name != "k_gauge" or not by_user]
            chosen = [use for use in uses if all(dict(use.attributes).get(name) in where[name] for name in where)]
            question = Question(
                tenant="acme",
                size=BucketSize(size),
                meters=[*meters, "requests"],
                start=from_us(asked.start_us),
                end=from_us(asked.end_us),
                time_zone=asked.zone,
                group_by=asked.group_by,
                where=where,
            )
            given = told(await query_usage(pools, question), asked)
            wanted = {
                (name, max(at, asked.start_us) if size == "whole" else at, group): figure
                for (name, at, group), figure in answer(chosen, "acme", asked).items()
                if name in question.meters and (figure[1] or figure[2])
                # It declares none of the attributes.
                if name != "requests" or not where
            }
            # Sums and counts asked for alone are read without a look at where usage is.
            plain = [name for name in question.meters if KINDS.get(name, ("sum",))[0] in {"sum", "count", "avg"}]
            alone = told(await query_usage(pools, replace(question, meters=plain)), asked)
            assert {key: figure for key, figure in given.items() if key[0] in plain} == alone, asked
            # Sums of nothing but a span are read without their dimensions.
            together = told(await query_usage(pools, replace(question, meters=plain, group_by=(), where={})), asked)
            assert {
                (name, max(at, asked.start_us) if size == "whole" else at, group): figure[:2]
                for (name, at, group), figure in answer(uses, "acme", replace(asked, group_by=())).items()
                if name in plain and (figure[1] or figure[2])
            } == {key: figure[:2] for key, figure in together.items()}, asked
            assert wanted.keys() == given.keys(), asked
            for key, (total, records, value) in wanted.items():
                assert (total, records) == given[key][:2], (asked, key)
                kind = KINDS.get(key[0], ("sum",))[0]
                assert same(kind, value, given[key][2]), (asked, key, value, given[key][2])


async def test_a_month_of_everything_is_one_question(new_database: Callable[[], str]) -> None:
    """Without bounds a report covers all usage; its figures add up to those of any buckets; tenants see their own."""
    chance = random.Random(11)
    async with stopped(new_database, "2026-10-26T00:00:00+00:00") as (bench, pools):
        uses = await filled(bench, chance)
        for tenant in TENANTS:
            own = [use for use in uses if use.tenant == tenant]
            total = sum(units for use in own for meter, units in use.quantities if meter == "k_sum")
            for size in (BucketSize.WHOLE, BucketSize.HOUR, BucketSize.DAY, BucketSize.WEEK, BucketSize.MONTH):
                found = await query_usage(
                    pools, Question(tenant=tenant, size=size, meters=["k_sum"], time_zone="Europe/Berlin")
                )
                assert total == sum(one.figure.units for one in found)
                assert size is not BucketSize.WHOLE or len(found) == 1


async def test_a_trend_tells_every_span_and_its_change(new_database: Callable[[], str]) -> None:
    """Spans without usage are told as 0, and each is compared with the one before it."""
    async with stopped(new_database, "2026-03-30T10:00:00+00:00") as (bench, pools):
        log = await bench.new_log()
        for day, units in ((1, 30), (2, 20), (4, 10)):
            at = bench.now_us - day * DAY_US
            log.record(bench.use(f"d{day}", event_us=at, quantities=(("requests", units),)))
        await bench.ingest.append(log.cut())
        points = await trend(
            pools, tenant="acme", size=BucketSize.WHOLE, spans=5, meters=["requests"], time_zone="Europe/Berlin",
            where={},
        )  # fmt: skip
        assert [("10", None), ("0", -1000), ("20", None), ("30", 500), ("0", -1000)] == [
            (value_of(point.used, 500), point.change_permille) for point in points
        ]
        # The day on which the clocks go forward is one day.
        assert [24, 24, 24, 23] == [
            (late.used.start - early.used.start) / timedelta(hours=1) for early, late in pairwise(points)
        ]
        summary = await summarise(pools, "acme", where={})
        assert ("2026-03-01T00:00:00+00:00", "2026-04-01T00:00:00+00:00", "") == (
            summary.start.isoformat(),
            summary.end.isoformat(),
            summary.plan,
        )
        assert [("requests", 60, 3)] == [(one.meter.name, one.figure.units, one.figure.records) for one in summary.used]


async def test_a_question_without_an_answer_is_refused(new_database: Callable[[], str]) -> None:
    """What can't be told is refused by field, never answered with something else."""
    async with stopped(new_database, "2026-03-30T10:00:00+00:00") as (_, pools):
        plain = {"tenant": "acme", "size": BucketSize.WHOLE}
        for field, changes in (
            ("group_by", {"group_by": list("abcde")}),
            ("group_by", {"group_by": [""]}),
            ("group_by", {"group_by": ["user"], "meters": ["k_gauge"]}),
            ("where", {"where": {"nothing": {"x"}}}),
            ("where", {"where": {"user": {"x"}}, "meters": ["requests"]}),
            ("where", {"where": {"user": {"x"}}, "meters": ["k_gauge"], "start": from_us(0)}),
            ("percentiles_permille", {"permilles": [0]}),
            ("percentiles_permille", {"permilles": range(1, 12)}),
            ("bucket", {"size": BucketSize.MINUTE, "start": EPOCH, "meters": ["k_gauge"]}),
        ):
            if field == "group_by" and "meters" in changes:
                changes["start"] = from_us(0)
            with pytest.raises(InvalidFieldError) as caught:
                await query_usage(pools, Question(**{**plain, **changes}))
            assert field == caught.value.field
        for kind, tenant, meters in (("meter", "acme", ["requests", "nothing"]), ("tenant", "nobody", ["nothing"])):
            with pytest.raises(UnknownNameError, match=f"no such {kind}: "):
                await query_usage(pools, Question(tenant=tenant, size=BucketSize.WHOLE, meters=meters))
        with pytest.raises(UnknownNameError, match="no such tenant: "):
            await time_zone_of(pools, "nobody", "")


async def test_a_plain_value_of_what_is_hidden_is_refused(new_database: Callable[[], str]) -> None:
    """Asked by a plain value of a hidden attribute a report refuses, without the value: nothing is no answer.

    Pseudonyms and values of what is not hidden are served, plain ones of meters that don't hide them too.
    """
    async with stopped(new_database, "2026-03-30T10:00:00+00:00") as (bench, pools):
        async with superuser(bench.url) as conn:
            await conn.execute("UPDATE meter SET pseudonymised = '{user}' WHERE name = 'k_unique'")
        whole = {"tenant": "acme", "size": BucketSize.WHOLE, "meters": ["k_unique"]}
        for where in ({"user": {"ann@x"}}, {"user": {f"p1.{'A' * 22}", "ann@x"}, "zone": {"a"}}):
            with pytest.raises(InvalidFieldError) as caught:
                await query_usage(pools, Question(**whole, where=where))
            assert "where" == caught.value.field
            assert "ann@x" not in f"{caught.value} {caught.value.metadata}"
        for served in ({"user": {f"p1.{'A' * 22}"}}, {"zone": {"a"}}):
            assert [] == await query_usage(pools, Question(**whole, where=served))
        assert [] == await query_usage(pools, Question(**{**whole, "meters": ["k_tail"]}, where={"user": {"ann@x"}}))
