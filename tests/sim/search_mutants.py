"""Search for a trace that finds each broken function and statement, and keep its shortest begin.

`python tests/sim/search_mutants.py` exits 1 where one of them is not found by 400 schedules.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from tollkeeper_cli.embedded import EmbeddedPostgres, EmbeddedValkey
from tollkeeper_ledger.store.migrations import apply_schema
from trace_ledger import LedgerReplay, open_ledger_pool
from trace_mutants import LUA, SQL, Mutant, record
from trace_redis import Mismatch, RedisReplay, connect_url
from trace_source import build_simulator, make_traces

if TYPE_CHECKING:
    from trace_redis import Line

SCHEDULES = 400
_AT_ONCE = 100


def _say(mutant: Mutant, found: str, begun_s: float) -> None:
    sys.stdout.write(f"{mutant.name}: {found or 'NOT FOUND'} after {time.monotonic() - begun_s:.1f} s\n")
    sys.stdout.flush()


def search_lua(traces: dict[str, list[Line]], urls: tuple[str, str]) -> int:
    """Search for every mutant of the functions; give how many were not found."""
    missed = 0
    for mutant in LUA:
        begun_s, found = time.monotonic(), ""
        replay = RedisReplay((connect_url(urls[0]), connect_url(urls[1])), source=mutant.lua())
        replay.load()
        for name, lines in traces.items():
            try:
                replay.run(name, lines)
            except Mismatch as mismatch:
                found = name
                record(mutant.name, lines[: mismatch.line + 1])
                break
        missed += not found
        _say(mutant, found, begun_s)
    return missed


async def search_sql(traces: dict[str, list[Line]], url: str) -> int:
    """Search for every mutant of the statements; give how many were not found."""
    missed = 0
    for mutant in SQL:
        begun_s, found = time.monotonic(), ""
        names = list(traces)
        for begin in range(0, len(names), _AT_ONCE):
            pool = await open_ledger_pool(url)
            some = {f"{mutant.name}-{name}": traces[name] for name in names[begin : begin + _AT_ONCE]}
            try:
                with mutant.sql():
                    await LedgerReplay(url, pool).run(some)
            except Mismatch as mismatch:
                found = mismatch.trace
                record(mutant.name, some[found][: mismatch.line + 1])
                break
            finally:
                pool.terminate()
        missed += not found
        _say(mutant, found, begun_s)
    return missed


def main() -> None:
    """Search on servers of one's own."""
    build_simulator()
    traces = make_traces(SCHEDULES)
    home = Path(tempfile.mkdtemp())
    postgres, servers = EmbeddedPostgres(home / "postgres"), [EmbeddedValkey(home / f"valkey-{n}") for n in range(2)]
    try:
        postgres.start()
        missed = search_lua(traces, (servers[0].start(), servers[1].start()))
        asyncio.run(apply_schema(postgres.url))
        missed += asyncio.run(search_sql(traces, postgres.url))
    finally:
        for server in servers:
            server.remove()
        postgres.remove()
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
