"""How far topics of a real broker are read, as the ledger tells it: what a billing period waits for."""

from __future__ import annotations

import json
import os
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from http_support import served, stored
from kafka_broker import kafka_broker, make_topics
from ledger_process import process
from ports import free_port
from topic_support import CATALOGUE, DEAD, PARTITIONS, TOPIC, reader
from waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tollkeeper_ledger.config import Settings

LIB = os.environ.get("KAFKA_LIB", "")
pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(not LIB, reason="needs a Kafka broker: `make kafka` fetches one and runs this"),
]
MESSAGES = 400


async def ledger_time(http: httpx.AsyncClient) -> datetime:
    """Give ledger time."""
    return datetime.fromisoformat((await http.get("/v1/ledger/clock")).json()["now"])


async def watermarks(http: httpx.AsyncClient) -> list[datetime]:
    """Give the watermarks of partitions that have one."""
    topics = (await http.get("/v1/usage/status")).json().get("topics", [])
    assert {f"kafka/tollkeeper/{TOPIC}/{one}" for one in range(PARTITIONS)} >= {one["name"] for one in topics}
    return [datetime.fromisoformat(one["watermark"]) for one in topics if "watermark" in one]


async def until_read(http: httpx.AsyncClient, at: datetime) -> None:
    """Wait until all that was in the topic then is said to be committed."""

    async def is_read() -> bool:
        found = await watermarks(http)
        return len(found) == PARTITIONS and min(found) >= at

    await wait_until(is_read, seconds_max=120)


async def write(broker: str, *, first: int, transaction: str | None) -> None:
    """Write messages to every partition, in one transaction where it has a name."""
    async with AIOKafkaProducer(bootstrap_servers=broker, transactional_id=transaction) as producer:
        if transaction:
            await producer.begin_transaction()
        for number in range(first, first + MESSAGES):
            record: dict[str, Any] = {"tenant": "acme", "quantities": [{"meter": "requests", "units": 1}]}
            await producer.send(TOPIC, json.dumps(record).encode(), partition=number % PARTITIONS)
        if transaction:
            await producer.commit_transaction()


async def test_a_watermark_passes_a_time_when_all_that_was_there_is_stored(
    ledger_settings: Settings, tmp_path: Path
) -> None:
    """It stands while no reader is there and moves once all is committed, plain messages and transactions alike."""
    port, http_port = free_port(), free_port()
    async with kafka_broker(LIB, tmp_path) as broker, AsyncExitStack() as stack:
        await make_topics(broker, {TOPIC: PARTITIONS, DEAD: 1})
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", timeout=60))
        await stack.enter_async_context(process(ledger_settings, port, http_port=http_port))
        await served(http)
        assert (await http.post("/v1/catalogue:apply", json={"request_id": "c", "yaml": CATALOGUE})).status_code == 200
        written = 0
        for transaction in (None, "books"):
            async with reader(broker, port):
                await until_read(http, await ledger_time(http))
            await write(broker, first=written, transaction=transaction)
            written += MESSAGES
            at = await ledger_time(http)
            assert max(await watermarks(http)) < at
            async with reader(broker, port):
                await until_read(http, at)
                assert written == len(await stored(http))
