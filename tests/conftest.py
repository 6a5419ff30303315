"""Real servers for tests of more than one component: one Postgres and one Valkey per session, databases of one's own.

`database_url` is a fresh clone of a migrated database per module, `ledger_settings` is a configuration for it on free
ports, and `tollkeeper_ledger.app.running(settings)` serves it in the test's own process.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import psutil
import pytest
from redis import Redis
from tollkeeper_cli.embedded import EmbeddedPostgres, EmbeddedValkey
from tollkeeper_ledger.config import Settings
from tollkeeper_ledger.store.migrations import apply_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TEMPLATE = "tollkeeper_template"
_MEMORY, _IN_MEMORY = Path("/dev/shm"), "tollkeeper-tests-"  # noqa: S108 - below it, with our process id
_ENOUGH_BYTES = 6 << 30
_LONGEST = Path(__file__).parent / "sim"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest: where files run beside each other, nobody waits for it at the end."""
    items.sort(key=lambda item: item.path.parent != _LONGEST)


def database_named(server_url: str, name: str) -> str:
    """Give the URL of another database of the same server."""
    head, _, query = server_url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}?{query}"


async def run_statement(url: str, statement: str) -> None:
    """Run one statement on a connection of its own."""
    conn = await asyncpg.connect(url)
    try:
        await conn.execute(statement)
    finally:
        await conn.close()


def in_memory() -> Path | None:
    """Make a directory in memory, where there is plenty: a hundred databases are made and removed there.

    Removes what a session that was killed has left.
    """
    for left in _MEMORY.glob(f"{_IN_MEMORY}*"):
        if not psutil.pid_exists(int(left.name.removeprefix(_IN_MEMORY))):
            shutil.rmtree(left, ignore_errors=True)
    if (
        not _MEMORY.is_dir()
        or min(psutil.disk_usage(str(_MEMORY)).free, psutil.virtual_memory().available) < _ENOUGH_BYTES
    ):
        return None
    place = _MEMORY / f"{_IN_MEMORY}{os.getpid()}"
    place.mkdir()
    return place


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """Run one Postgres for the session, without fsync: nobody needs its data after the machine has gone down."""
    place = in_memory()
    server = EmbeddedPostgres((place or tmp_path_factory.mktemp("tests")) / "postgres", durable=False)
    server.start()
    yield server
    server.remove()
    if place is not None:
        shutil.rmtree(place)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """Run one Valkey for the session."""
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def new_database(postgres: EmbeddedPostgres) -> Callable[[], str]:
    """Give a maker of databases: each call clones one that has the whole schema and nothing else."""
    url = postgres.url
    asyncio.run(run_statement(url, f"CREATE DATABASE {_TEMPLATE}"))
    asyncio.run(apply_schema(database_named(url, _TEMPLATE)))
    numbers = itertools.count(1)

    def make() -> str:
        name = f"test_{next(numbers)}"
        # Copying files takes a third of the time of writing every page into the log, which nobody reads.
        asyncio.run(run_statement(url, f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE} STRATEGY file_copy"))
        # An installation of its own: else its Redis would say that it is another one, set back.
        own = "UPDATE tollkeeper.installation SET installation_id = uuid_send(gen_random_uuid())"
        asyncio.run(run_statement(database_named(url, name), own))
        return database_named(url, name)

    return make


@pytest.fixture(scope="module")
def database_url(new_database: Callable[[], str]) -> str:
    """Give this module a database of its own."""
    return new_database()


@pytest.fixture(scope="module")
def redis_url(valkey: EmbeddedValkey) -> str:
    """Give an empty Valkey; modules run one after the other."""
    client = Redis.from_url(valkey.url)
    client.flushall()
    client.function_flush()
    client.close()
    return valkey.url


@pytest.fixture(scope="module")
def ledger_settings(database_url: str, redis_url: str) -> Settings:
    """Configure an embedded ledger on this module's database, on free ports."""
    return Settings(
        database_url=database_url,
        redis_url=redis_url,
        ledger_listen="127.0.0.1:0",
        ledger_http="127.0.0.1:0",
        embedded=True,
        log_level="WARNING",
    )
