# ruff: noqa: SIM300 - expected first, then actual
"""Usage from topics of a real broker: once each, whatever dies, and what is no record is set aside."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from http_support import findings, served, stored
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
RECORDS, KILLS = 6_000, 8


def messages() -> tuple[list[bytes], set[str], int]:
    """Give messages; the ids that some of the records chose, and how many are no record."""
    now = datetime.now(UTC).isoformat()
    values: list[bytes] = []
    chosen: set[str] = set()
    poison = 0
    for number in range(RECORDS):
        record: dict[str, Any] = {"tenant": "acme", "quantities": [{"meter": "requests", "units": 1 + number % 7}]}
        if number % 100 == 99:
            bad: dict[int, bytes] = {
                0: b"{",
                1: json.dumps({**record, "tenant": "nobody"}).encode(),
                2: json.dumps({**record, "quantities": [{"meter": "nothing", "units": 1}]}).encode(),
                3: json.dumps({**record, "id": "no-time"}).encode(),
            }
            values.append(bad[number // 100 % 4])
            poison += 1
            continue
        if number % 2:
            record |= {"id": f"own-{number}", "event_time": now}
            chosen.add(record["id"])
        values.append(json.dumps(record).encode())
    return values, chosen, poison


async def committed(broker: str, topic: str) -> int:
    """Give how many messages of a topic the group has behind it."""
    consumer = AIOKafkaConsumer(bootstrap_servers=broker, group_id="tollkeeper", enable_auto_commit=False)
    async with consumer:
        offsets = [await consumer.committed(TopicPartition(topic, one)) for one in range(PARTITIONS)]
    return sum(offset or 0 for offset in offsets)


async def dead_letters(broker: str) -> dict[str, str]:
    """Give the reasons in the dead-letter topic by the place of the message."""
    found: dict[str, str] = {}
    consumer = AIOKafkaConsumer(DEAD, bootstrap_servers=broker, auto_offset_reset="earliest")
    async with consumer:
        ends = await consumer.end_offsets([TopicPartition(DEAD, 0)])
        left = sum(ends.values())
        while left:
            one = await consumer.getone()
            headers = {name: value.decode() for name, value in one.headers}
            found[headers["tollkeeper-place"]] = headers["tollkeeper-reason"]
            left -= 1
    return found


async def test_messages_are_recorded_once_whatever_dies(
    ledger_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Readers and the ledger are killed while messages flow: each record is stored once, each poison set aside."""
    chance = random.Random(7)
    values, chosen, poison = messages()
    port, http_port = free_port(), free_port()
    async with kafka_broker(LIB, tmp_path) as broker, AsyncExitStack() as stack:
        await make_topics(broker, {TOPIC: PARTITIONS, DEAD: 1})
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", timeout=60))
        ledger = process(ledger_settings, port, http_port=http_port)
        running = await ledger.__aenter__()
        await served(http)
        assert (await http.post("/v1/catalogue:apply", json={"request_id": "c", "yaml": CATALOGUE})).status_code == 200
        readers = [await stack.enter_async_context(reader(broker, port)) for _ in range(2)]

        async def kill_again_and_again() -> None:
            nonlocal ledger, running
            for kill in range(KILLS):
                await asyncio.sleep(chance.uniform(0.5, 2.5))
                if kill % 4 == 3:
                    running.send_signal(signal.SIGKILL)
                    await running.wait()
                    ledger = process(ledger_settings, port, http_port=http_port)
                    running = await ledger.__aenter__()
                else:
                    readers[kill % 2].send_signal(signal.SIGKILL)
                    readers[kill % 2] = await stack.enter_async_context(reader(broker, port))

        killing = asyncio.create_task(kill_again_and_again())
        async with AIOKafkaProducer(bootstrap_servers=broker) as producer:
            for number, value in enumerate(values):
                await producer.send(TOPIC, value, partition=number % PARTITIONS)
                if number % 50 == 0:
                    await asyncio.sleep(0.1)
        await killing

        async def all_committed() -> bool:
            return await committed(broker, TOPIC) >= RECORDS

        await wait_until(all_committed, seconds_max=240)
        await served(http)
        records = await stored(http)
        dead = await dead_letters(broker)
        told = f"{len(records)} records of {RECORDS} messages stored, {len(dead)} set aside, {KILLS} kills"
        with capsys.disabled():
            sys.stdout.write(f"{told}\n")
        assert RECORDS - poison == len(records), told
        assert chosen == {name for name in records if name.startswith("own-")}
        assert poison == len(dead)
        assert {"MESSAGE_UNREADABLE", "TENANT_UNKNOWN", "METER_UNKNOWN", "FIELD_REQUIRED"} == set(dead.values())
        units = sum(1 + number % 7 for number in range(RECORDS) if number % 100 != 99)
        assert units == sum(int(one["units"]["requests"]) for one in records.values())
        assert [] == await findings(http)
        await ledger.__aexit__(None, None, None)
