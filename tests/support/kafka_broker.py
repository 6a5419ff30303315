"""A real Kafka broker of one node, from jars in a directory, on free ports."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_CLUSTER = "dG9sbGtlZXBlci10ZXN0cw"
_SETTINGS = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""
_OPTIONS = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


@asynccontextmanager
async def kafka_broker(lib: str, directory: Path) -> AsyncIterator[str]:
    """Run a broker until the block ends; gives its address."""
    port, controller = free_port(), free_port()
    settings = directory / "server.properties"
    settings.write_text(_SETTINGS.format(port=port, controller=controller, data=directory / "data"))
    java = shutil.which("java")
    assert java is not None, "Java 17 is needed"
    command = (java, *_OPTIONS, "-cp", f"{lib}/*")
    formatting = await asyncio.create_subprocess_exec(
        *(*command, "kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(settings)),
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await formatting.communicate()
    assert formatting.returncode == 0, told
    broker = await asyncio.create_subprocess_exec(*command, "kafka.Kafka", str(settings))
    try:
        address = f"127.0.0.1:{port}"
        await _serving(address)
        yield address
    finally:
        if broker.returncode is None:
            broker.terminate()
        await broker.wait()


async def make_topics(address: str, names: dict[str, int]) -> None:
    """Make topics, with so many partitions each."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, count, 1) for name, count in names.items()])
    finally:
        await admin.close()


async def _serving(address: str) -> None:
    async with asyncio.timeout(120):
        while True:
            admin = AIOKafkaAdminClient(bootstrap_servers=address)
            try:
                await admin.start()
            except KafkaError:
                await asyncio.sleep(0.1)
                continue
            finally:
                await admin.close()
            return
