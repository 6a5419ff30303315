# ruff: noqa: SIM300 - expected first, then actual
"""The example catalogue of an API product: one record a request, and every report that it promises."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tollkeeper_ledger.config import Settings
from tollkeeper_ledger.domain.usage_buckets import BucketSize
from tollkeeper_ledger.domain.usage_report import PERCENTILES_DEFAULT
from tollkeeper_ledger.services.catalogue import apply_catalogue
from tollkeeper_ledger.services.usage_query import Question, query_usage
from tollkeeper_ledger.services.usage_summaries import value_of
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import open_pools, transaction
from usage_bench import open_bench

if TYPE_CHECKING:
    from collections.abc import Callable

    from usage_support import Use

CATALOGUE = Path(__file__).parents[3] / "examples" / "catalogues" / "api.yaml"


@pytest.mark.asyncio
async def test_one_record_a_request_feeds_every_report(new_database: Callable[[], str]) -> None:
    """Requests by status class, duration percentiles, queries, bytes and users come out of the same records."""
    url = await asyncio.to_thread(new_database)
    async with (
        open_bench(url) as bench,
        open_pools(Settings(database_url=url, redis_url="redis://unused.invalid")) as pools,
    ):
        async with transaction(pools.billing) as conn:
            text = CATALOGUE.read_text().replace("id: default", "id: seller")
            now = await ledger_now(conn)
            await apply_catalogue(conn, yaml_text=text, source_name="api", request_id="r", actor="test", now=now)

        def request(at: int) -> Use:
            status = "5xx" if at % 20 == 0 else "4xx" if at % 10 == 0 else "2xx"
            quantities = {
                "api_requests": 1,
                "api_duration_ms": at,
                "api_duration_max_ms": at,
                "api_db_queries": 3,
                "api_db_queries_avg": at % 3,
                "api_bytes_in": 512,
                "api_bytes_out": 20_480,
                "api_users": 1,
            }
            attributes = (("endpoint", f"/{at % 2}"), ("status", status), ("user", f"u-{at % 7}"))
            return bench.use(f"req-{at}", tenant="shop", quantities=tuple(quantities.items()), attributes=attributes)

        log = await bench.new_log()
        log.record(*map(request, range(1, 1001)))
        assert 1000 == (await bench.ingest.append(log.cut())).stored

        async def told(*meters: str, group_by: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
            asked = Question(tenant="shop", size=BucketSize.WHOLE, meters=meters, group_by=group_by)
            return [
                (*(value for _, value in one.group), value_of(one, PERCENTILES_DEFAULT[0]))
                for one in await query_usage(pools, asked)
            ]

        assert [("2xx", "900"), ("4xx", "50"), ("5xx", "50")] == await told("api_requests", group_by=("status",))
        assert [("/0", "1000"), ("/1", "999")] == await told("api_duration_max_ms", group_by=("endpoint",))
        assert [("1",), ("512000",), ("20480000",), ("3000",), ("7",)] == [
            *await told("api_db_queries_avg"),
            *await told("api_bytes_in"),
            *await told("api_bytes_out"),
            *await told("api_db_queries"),
            *await told("api_users"),
        ]
        asked = Question(tenant="shop", size=BucketSize.WHOLE, meters=["api_duration_ms"])
        (duration,) = await query_usage(pools, asked)
        told_ranks = duration.figure.percentiles(PERCENTILES_DEFAULT)
        assert all(abs(units - rank) <= rank * 8 / 1000 for rank, units in told_ranks)
