# ruff: noqa: SIM300 - expected first, then actual
"""The audit on a real Postgres: any single field that was changed is found, and the row is named."""

from __future__ import annotations

import asyncio
import json
import os
import random
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from quarantine_support import discard, keys_of, release
from rollup_support import KINDS, add_kinds
from tampering import is_located, tamper
from tollkeeper_ledger.config import Settings
from tollkeeper_ledger.domain.usage_audit import Finding
from tollkeeper_ledger.domain.usage_quarantine import ActOutcome
from tollkeeper_ledger.services import usage_rebuild
from tollkeeper_ledger.services.usage_audit import verify_usage
from tollkeeper_ledger.services.usage_proofs import prove_usage
from tollkeeper_ledger.services.usage_rebuild import rebuild_rollups
from tollkeeper_ledger.services.usage_roots import KEY_FILE, ROOTS_FILE, RootSigner, read_roots_file
from tollkeeper_ledger.services.usage_voids import void_usage
from tollkeeper_ledger.store.clock import ledger_now, set_clock
from tollkeeper_ledger.store.pool import open_pool, open_pools, transaction
from usage_bench import TENANTS, add_catalogue, open_bench, superuser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from tollkeeper_ledger.domain.usage_proof import SignedRoot
    from tollkeeper_ledger.store.pool import Connection
    from usage_bench import Bench
    from usage_support import Log

pytestmark = pytest.mark.asyncio
TAMPERINGS = int(os.environ.get("TAMPERINGS", "500"))


async def fill(bench: Bench) -> None:
    """Store records of every aggregation in two hours, with duplicates, a hole, poison and voids."""
    chance = random.Random(5)
    await add_kinds(bench)
    base = bench.now_us // 3_600_000_000 * 3_600_000_000 - 3_600_000_000
    logs = [await bench.new_log() for _ in range(2)]
    for step in range(5):
        for number, log in enumerate(logs):
            first = len(log.entries)
            log.record(
                *[
                    bench.use(
                        f"{number}-{step}-{at}" if chance.random() < 0.9 else "again",
                        tenant=chance.choice(TENANTS),
                        event_us=base + chance.randrange(3_600_000_000),
                        quantities=tuple(
                            (meter, chance.randrange(1000)) for meter in chance.sample([*KINDS, "requests"], 3)
                        ),
                        attributes=(("user", chance.choice("xyz")), ("zone", chance.choice("ab"))),
                        flags=chance.choice([0, 0, 1, 2]),
                    )
                    for at in range(6)
                ],
                bench.use("bad", quantities=(("requests", -1),)),
            )
            if step == 1:
                log.record(bench.use("later", quantities=(("declared_later", 1),)))
            if step == 2:
                log.lose(2)
            await bench.ingest.append(log.cut(first))
    await _act_on_quarantine(bench, logs)
    async with transaction(bench.pool) as conn:
        rows = await conn.fetch(
            "SELECT id FROM usage_record JOIN tenant USING (tenant_id) WHERE wire_id = 'acme' LIMIT 4"
        )
        ids = [row["id"] for row in rows]
        now = await ledger_now(conn)
        await void_usage(conn, bench.ingest, uuid.UUID(int=7), tenant="acme", ids=ids, now=now)


async def _act_on_quarantine(bench: Bench, logs: Sequence[Log]) -> None:
    """Have an act of every outcome: a record that is released, its like, one that is discarded, one refused again."""
    async with superuser(bench.url) as conn:
        await add_catalogue(conn, (), ("declared_later",))
    ended = await release(bench, [*keys_of(logs[0], 7, 15), *keys_of(logs[1], 15)])
    assert [ActOutcome.REFUSED, ActOutcome.RELEASED, ActOutcome.DUPLICATE] == [one.outcome for one in ended]
    await discard(bench, keys_of(logs[1], 7))


async def audit(conn: Connection, outside: Sequence[SignedRoot] = ()) -> list[Finding]:
    """Check everything that is stored, as this transaction sees it."""
    return [found async for found in verify_usage(conn, outside=outside) if isinstance(found, Finding)]


@asynccontextmanager
async def auditing(url: str) -> AsyncIterator[Connection]:
    """Connect as one who may change anything, and reads JSON."""
    async with superuser(url) as conn:
        await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        yield conn


async def test_any_changed_field_is_found_and_its_row_named(new_database: Callable[[], str]) -> None:
    """Single fields of records, ids, links, heads and rollups, changed at random past every guard: all are found.

    The first finding names the changed row.
    """
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench:
        await fill(bench)
    async with auditing(url) as conn:
        names = {row["meter_id"]: row["name"] for row in await conn.fetch("SELECT meter_id, name FROM meter")}
        assert [] == await audit(conn)
        changed = set()
        for seed in range(TAMPERINGS):
            attempt = conn.transaction()
            await attempt.start()
            done = await tamper(conn, random.Random(seed))
            found = await audit(conn)
            assert is_located(done, found, names), (seed, done, found[:5])
            changed.add((done.table, done.column))
            await attempt.rollback()
        assert [] == await audit(conn)
        assert len(changed) > 50 or TAMPERINGS < 500


async def test_a_record_is_proved_by_the_first_root_that_covers_it(
    new_database: Callable[[], str], tmp_path: Path
) -> None:
    """However many roots were signed while its commit was under way: the clock stands, so all are of its time."""
    url = await asyncio.to_thread(new_database)
    settings = Settings(database_url=url, redis_url="redis://unused.invalid")
    async with open_bench(url) as bench, open_pools(settings) as pools:
        async with bench.pool.acquire() as conn:
            await set_clock(conn, now=None, speed_milli=0)
        signer = RootSigner(pools.billing, tmp_path, installation_id=bytes(16))
        log = await bench.new_log()
        for number in range(15):
            log.record(bench.use(f"root-{number}"))
            await bench.ingest.append(log.cut(number))
            assert await signer.tick()
        roots = read_roots_file(tmp_path)
        for number in range(15):
            _, proof = await prove_usage(pools, tenant="acme", record_id=f"root-{number}")
            assert proof.root is not None
            assert roots[number].statement == proof.root.statement
            assert [] == list(proof.later_batches)


async def test_a_spoiled_root_stops_neither_signing_nor_proofs(new_database: Callable[[], str], tmp_path: Path) -> None:
    """Where the newest root can't be read the heads are signed anew, and a record is proved by the next good root."""
    url = await asyncio.to_thread(new_database)
    settings = Settings(database_url=url, redis_url="redis://unused.invalid")
    spoiled = (b"[" * 100_000, b"null", b'{"heads": [], "signed_us": 1e999}', b'{"heads": [{"stream": "x"}]}')
    async with open_bench(url) as bench, open_pools(settings) as pools:
        signer = RootSigner(pools.billing, tmp_path, installation_id=bytes(16))
        log = await bench.new_log()
        log.record(bench.use("one"))
        await bench.ingest.append(log.cut(0))
        for statement in spoiled:
            assert await signer.tick()
            assert not await signer.tick()
            async with auditing(url) as conn:
                await conn.execute("SET session_replication_role = replica")
                newest = "root_id = (SELECT max(root_id) FROM usage_root)"
                await conn.execute(f"UPDATE usage_root SET statement = $1 WHERE {newest}", statement)  # noqa: S608
        assert await signer.tick()
        _, proof = await prove_usage(pools, tenant="acme", record_id="one")
        assert proof.root is not None
        assert read_roots_file(tmp_path)[-1].statement == proof.root.statement
        async with auditing(url) as conn:
            assert ["usage_root"] * len(spoiled) == [one.table for one in await audit(conn)]


async def test_a_history_that_was_rewritten_as_a_whole_is_found(bench: Bench, tmp_path: Path) -> None:
    """Whoever cuts off the end of the chain, or signs anew, is found out by the roots that are kept outside."""
    log = await bench.new_log()
    billing = await open_pool(bench.url, role="tollkeeper_billing", size=1)
    try:
        signer = RootSigner(billing, tmp_path, installation_id=bytes(16))
        for number in range(3):
            log.record(bench.use(f"root-{number}"))
            await bench.ingest.append(log.cut(number))
            assert await signer.tick()
            assert not await signer.tick()
    finally:
        billing.terminate()
    assert 0o600 == (tmp_path / KEY_FILE).stat().st_mode & 0o777
    outside = read_roots_file(tmp_path)
    assert 3 == len(outside)
    with (tmp_path / ROOTS_FILE).open("ab") as stream:
        stream.write(b'{"torn')
    assert outside == read_roots_file(tmp_path)
    async with auditing(bench.url) as conn:
        assert [] == await audit(conn, outside)
        attempt = conn.transaction()
        await attempt.start()
        await conn.execute(
            """
            SET LOCAL session_replication_role = replica;
            DELETE FROM usage_record WHERE id = 'root-2';
            DELETE FROM usage_id WHERE id = 'root-2';
            DELETE FROM usage_root WHERE root_id = (SELECT max(root_id) FROM usage_root);
            WITH gone AS (
              DELETE FROM usage_chain WHERE position = (SELECT max(position) FROM usage_chain) RETURNING *
            )
            UPDATE usage_chain_head h
            SET position = h.position - 1, stored_total = stored_total - 1,
                hash = (SELECT hash FROM usage_chain c WHERE c.position = h.position - 1)
            FROM gone;
            """
        )
        assert not [one for one in await audit(conn) if one.table.startswith("usage_chain") or "root" in one.table]
        assert "usage_root" in {one.table for one in await audit(conn, outside)}
        await attempt.rollback()
        for column in ("statement", "signature", "public_key"):
            attempt = conn.transaction()
            await attempt.start()
            await conn.execute(
                f"SET LOCAL session_replication_role = replica;"  # noqa: S608
                f" UPDATE usage_root SET {column} = set_byte({column}, 5, get_byte({column}, 5) # 1)"
                " WHERE root_id = (SELECT min(root_id) FROM usage_root)"
            )
            assert {"usage_root"} == {one.table for one in await audit(conn)}
            await attempt.rollback()


async def test_rollups_are_made_anew_from_the_records(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was done to rollups, rebuilding names it and makes them what the records come to, beside appends."""
    monkeypatch.setattr(usage_rebuild, "TENANTS_EACH_MAX", 1)  # Several transactions an hour, as with many tenants.
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench:
        await fill(bench)
        async with auditing(url) as conn:
            await conn.execute(
                """
                UPDATE usage_rollup_minute SET units = units + 1;
                DELETE FROM usage_rollup_quarter WHERE ctid IN (SELECT ctid FROM usage_rollup_quarter LIMIT 3);
                UPDATE usage_rollup_state SET state = '[1]';
                DELETE FROM usage_rollup_value
                """
            )
            wrong = {one.table for one in await audit(conn)}
        kinds = {"usage_rollup_minute", "usage_rollup_quarter", "usage_rollup_state", "usage_rollup_value"}
        assert kinds == wrong
        looked = [hour async for hour in rebuild_rollups(bench.pool, check_only=True)]
        assert kinds == {one.table for hour in looked for one in hour.findings}

        async def appends() -> None:
            log = await bench.new_log()
            for number in range(6):
                log.record(bench.use(f"beside-{number}", event_us=bench.now_us - 3_600_000_000 * (number % 3)))
                await bench.ingest.append(log.cut(number))

        async def rebuild() -> int:
            return sum([len(hour.findings) async for hour in rebuild_rollups(bench.pool, check_only=False)])

        _, found = await asyncio.gather(appends(), rebuild())
        assert found >= 4
        async with auditing(url) as conn:
            assert [] == await audit(conn)
        assert 0 == await rebuild()
