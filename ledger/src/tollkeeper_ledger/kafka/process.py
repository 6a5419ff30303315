"""The process that reads topics: connections from its settings, and a loop."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc.aio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
from tollkeeper.ledger.v1 import producers_pb2_grpc, usage_pb2_grpc

from tollkeeper_ledger.kafka.consumer import TopicReader, sleep_unless
from tollkeeper_ledger.kafka.progress import Progress

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.kafka.config import KafkaSettings

_CALL_S = 30.0
_WAIT_S = 1.0


async def read_topics(settings: KafkaSettings, log: FilteringBoundLogger, stop: asyncio.Event) -> None:
    """Read until `stop`. A cluster that can't be reached is waited for, at the start as well."""
    async with grpc.aio.insecure_channel(settings.ledger_address) as channel:
        record_usage = partial(usage_pb2_grpc.UsageServiceStub(channel).RecordUsage, timeout=_CALL_S)
        report = partial(producers_pb2_grpc.TopicServiceStub(channel).ReportTopics, timeout=_CALL_S)
        while not stop.is_set():
            try:
                async with _open(settings) as (consumer, producer):
                    progress = Progress(consumer, report, group=settings.kafka_group)
                    reader = TopicReader(consumer, producer, record_usage, progress, log)
                    log.info("topics are read", topics=settings.kafka_topics, group=settings.kafka_group)
                    await reader.run(stop)
                    log.info("topics are no longer read", **asdict(reader.counts))
            except KafkaConnectionError as error:
                log.warning("no Kafka", servers=settings.kafka_servers, error=str(error))
                await sleep_unless(stop, _WAIT_S)


@asynccontextmanager
async def _open(settings: KafkaSettings) -> AsyncIterator[tuple[AIOKafkaConsumer, AIOKafkaProducer]]:
    """Connect a consumer that commits by hand, and a producer for dead letters that waits for all replicas."""
    common: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_servers.split(","),
        "security_protocol": settings.kafka_security,
    }
    if settings.kafka_security.endswith("SSL"):
        common["ssl_context"] = ssl.create_default_context()
    if settings.kafka_security.startswith("SASL"):
        password = settings.kafka_password.get_secret_value() if settings.kafka_password is not None else ""
        common |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_user,
            "sasl_plain_password": password,
        }
    consumer = AIOKafkaConsumer(
        *settings.kafka_topics.split(","),
        group_id=settings.kafka_group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        **common,
    )
    producer = AIOKafkaProducer(acks="all", enable_idempotence=True, **common)
    async with consumer, producer:
        yield consumer, producer
