# ruff: noqa: SIM300 - expected first, then actual
"""Attributes that producers send plainly, because they have not heard yet that these are hidden."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from quarantine_support import keys_of, release
from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.usage import CONFLICT
from tollkeeper_ledger.domain.usage_quarantine import ActOutcome
from tollkeeper_ledger.domain.usage_voids import StoredRecord, void_columns
from tollkeeper_ledger.services import usage_hidden
from tollkeeper_ledger.services.pseudonyms import PseudonymKeys
from tollkeeper_ledger.services.usage_audit import verify_usage
from tollkeeper_ledger.store.pool import connection, open_pool
from usage_bench import superuser

if TYPE_CHECKING:
    import pytest
    from tollkeeper_ledger.domain.pseudonyms import PseudonymKey
    from tollkeeper_ledger.domain.usage import AppendOutcome
    from usage_bench import Bench
    from usage_support import Use


async def declare(bench: Bench, meter: str) -> None:
    """Declare a meter of distinct users that hides nothing yet."""
    async with superuser(bench.url) as conn:
        await conn.execute(
            "INSERT INTO meter (seller_id, name, unit, aggregation, scale, attributes, pseudonymised, value_attribute)"
            " VALUES ('seller', $1, 'users', 'unique', 0, '{who,path}', '{}', 'who')",
            meter,
        )


async def hide(bench: Bench, meter: str) -> None:
    """Let the meter hide who it was."""
    async with superuser(bench.url) as conn:
        await conn.execute("UPDATE meter SET pseudonymised = '{who}' WHERE name = $1", meter)


async def key_of(bench: Bench) -> PseudonymKey:
    """Give the tenant's key."""
    tenant_id = bench.tenants["acme"]
    return (await PseudonymKeys(bench.pool).get([tenant_id]))[tenant_id]


def use(bench: Bench, name: str, meter: str, who: str, **changed: Any) -> Use:
    """Give a record of somebody's use."""
    attributes = (("path", "/ä"), ("who", who))
    return bench.use(name, quantities=((meter, 1),), attributes=attributes, **changed)


async def append(bench: Bench, *uses: Use) -> AppendOutcome:
    """Append records of a producer of its own; its history stays what it sent."""
    log = await bench.new_log()
    log.record(*uses)
    outcome = await bench.ingest.append(log.cut())
    assert log.h(len(uses)) == outcome.position.h
    return outcome


async def clean(bench: Bench) -> None:
    """See that ids, rows, chain, sums and acts agree with each other."""
    billing = await open_pool(bench.url, role="tollkeeper_billing", size=1)
    try:
        async with connection(billing) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            assert [] == [one async for one in verify_usage(conn) if hasattr(one, "problem")]
    finally:
        billing.terminate()


async def tables_with(bench: Bench, value: str) -> set[str]:
    """Name every table with a row that has this text somewhere, also as bytes."""
    tables = await bench.rows(
        "SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'tollkeeper' AND c.relkind = 'r'"
    )
    assert len(tables) > 50
    found = set()
    for table in tables:
        is_there = "strpos(one::text, $1) > 0 OR strpos(one::text, $2) > 0"
        statement = f"SELECT 1 FROM {table['name']} AS one WHERE {is_there} LIMIT 1"  # noqa: S608 - the catalogue's names
        rows = await bench.rows(statement, value, value.encode().hex())
        found |= {table["name"] for _ in rows}
    return found


async def counted(bench: Bench, meter: str) -> list[int]:
    """Give how many records each distinct user of the meter has, none below one."""
    rows = await bench.rows(
        "SELECT sum(records)::bigint AS records FROM usage_rollup_value JOIN meter USING (meter_id) WHERE name = $1"
        " GROUP BY value HAVING sum(records) > 0",
        meter,
    )
    return sorted(row["records"] for row in rows)


async def test_what_comes_plainly_is_stored_hidden(bench: Bench) -> None:
    """Whichever form comes first, the other is its repeat; one user is counted, and no table has the plain value."""
    await declare(bench, "seen")
    await hide(bench, "seen")
    key = await key_of(bench)
    plain, hidden = "ann.plainly", key.pseudonym("who", "ann.plainly")
    assert 2 == (await append(bench, use(bench, "s-1", "seen", plain), use(bench, "s-2", "seen", hidden))).stored
    again = await append(bench, use(bench, "s-1", "seen", hidden), use(bench, "s-2", "seen", plain))
    assert (0, 2, 0) == (again.stored, again.duplicates, again.conflicts)
    both = await append(bench, use(bench, "s-3", "seen", plain), use(bench, "s-3", "seen", hidden))
    assert (1, 1, 0) == (both.stored, both.duplicates, both.conflicts)
    rows = await bench.rows("SELECT attributes FROM usage_record WHERE id LIKE 's-%'")
    assert [f'{{"who": "{hidden}", "path": "/ä"}}'] * 3 == [row["attributes"] for row in rows]
    assert [3] == await counted(bench, "seen")
    assert set() == await tables_with(bench, plain)
    assert any(name.startswith("usage_record") for name in await tables_with(bench, hidden))
    await clean(bench)


async def test_what_was_stored_plainly_is_repeated_in_either_form(bench: Bench) -> None:
    """A record from before its attribute was hidden counts once, and somebody else under its id is a conflict."""
    await declare(bench, "late")
    assert 2 == (await append(bench, use(bench, "l-1", "late", "bea"), use(bench, "l-2", "late", "bea"))).stored
    await hide(bench, "late")
    key = await key_of(bench)
    told_of = {
        use(bench, "l-1", "late", "bea"): None,
        use(bench, "l-2", "late", key.pseudonym("who", "bea")): None,
        use(bench, "l-2", "late", "cleo"): CONFLICT,
        use(bench, "l-1", "late", key.pseudonym("who", "cleo")): CONFLICT,
        use(bench, "l-1", "late", "bea", event_us=bench.now_us - 1_000_000): CONFLICT,
    }
    outcome = await append(bench, *told_of)
    assert list(told_of.values()) == [verdict.problem for verdict in outcome.verdicts]
    assert (0, 2, 3) == (outcome.stored, outcome.duplicates, outcome.conflicts)
    assert [2] == await counted(bench, "late")
    await clean(bench)


async def test_a_void_takes_back_what_is_stored(bench: Bench) -> None:
    """Of a record that was stored plainly the void is plain too: nobody is counted any more."""
    await declare(bench, "undone")
    await append(bench, use(bench, "u-1", "undone", "dora"))
    await hide(bench, "undone")
    stored = StoredRecord("u-1", bench.now_us, 0, [("undone", 1)], {"path": "/ä", "who": "dora"})
    async with connection(bench.pool) as conn, conn.transaction():
        columns = void_columns("acme", [stored], now_us=bench.now_us)
        await bench.ingest.append_own(conn, uuid.uuid4(), columns, now=from_us(bench.now_us))
    assert [] == await counted(bench, "undone")
    await clean(bench)


async def test_a_released_record_is_stored_hidden(bench: Bench) -> None:
    """What was refused before its attribute was hidden counts under its pseudonym, and stands for what was refused."""
    log = await bench.new_log()
    log.record(use(bench, "r-1", "unheard", "emma"), use(bench, "r-2", "unheard", "emma"))
    assert 2 == (await bench.ingest.append(log.cut())).quarantined
    await declare(bench, "unheard")
    await hide(bench, "unheard")
    assert 1 == (await append(bench, use(bench, "r-2", "unheard", "emma"))).stored
    ended = await release(bench, keys_of(log, 1, 2))
    assert [ActOutcome.RELEASED, ActOutcome.DUPLICATE] == [one.outcome for one in ended]
    assert [2] == await counted(bench, "unheard")
    rows = await bench.rows("SELECT attributes ->> 'who' AS who FROM usage_record WHERE id LIKE 'r-%'")
    assert [(await key_of(bench)).pseudonym("who", "emma")] * 2 == [row["who"] for row in rows]
    await clean(bench)


async def test_without_plain_values_no_key_is_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for meters that hide nothing, nor for records that came hidden."""

    async def read(*_: object) -> None:
        raise AssertionError("a key was read")

    await declare(bench, "open")
    await declare(bench, "shut")
    await hide(bench, "shut")
    key = await key_of(bench)
    monkeypatch.setattr(usage_hidden, "read_keys", read)
    outcome = await append(
        bench, use(bench, "n-1", "open", "fay"), use(bench, "n-2", "shut", key.pseudonym("who", "fay"))
    )
    assert 2 == outcome.stored
