"""A topic of usage, who is in it, and its readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ledger_process import killed

if TYPE_CHECKING:
    import asyncio
    from contextlib import AbstractAsyncContextManager

TOPIC, DEAD, PARTITIONS = "usage", "usage.dead-letter", 4
CATALOGUE = """
version: 1
seller: {id: default, name: Example GmbH, invoice_prefix: TK, currency: USD, time_zone: UTC}
meters: [{name: requests, unit: requests, aggregation: sum}]
plans: [{name: free, currency: USD, billing_interval: {unit: month, count: 1}}]
tenants: [{id: acme, name: Acme, plan: free}]
"""


def reader(broker: str, ledger_port: int) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """Run a reader process until the block ends, which kills it."""
    environment = {
        "TOLLKEEPER_KAFKA_SERVERS": broker,
        "TOLLKEEPER_KAFKA_TOPICS": TOPIC,
        "TOLLKEEPER_LEDGER_ADDRESS": f"127.0.0.1:{ledger_port}",
        "TOLLKEEPER_LOG_LEVEL": "ERROR",
    }
    return killed("tollkeeper_ledger.kafka", environment=environment)
