# ruff: noqa: SIM300 - expected first, then actual
"""Whatever somebody left in any column that audits read, they tell of it: no bytes stop them."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from itertools import count, cycle
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from billing_bench import superuser, use
from quarantine_support import discard, keys_of, release
from tollkeeper.ledger.v1 import billing_pb2, reports_pb2
from tollkeeper_ledger.domain.errors import PreconditionError, UnknownNameError
from tollkeeper_ledger.domain.telling import telling
from tollkeeper_ledger.domain.usage_audit import Finding
from tollkeeper_ledger.services.invoice_verify import reproduce_invoice, verify_invoice
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.receivables import credit_invoice, pay_by_hand
from tollkeeper_ledger.services.usage_audit import verify_usage
from tollkeeper_ledger.services.usage_roots import RootSigner
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from uuid import UUID

    from billing_bench import BillingBench
    from tollkeeper_ledger.store.pool import Connection

pytestmark = pytest.mark.asyncio
THOROUGH = int(os.environ.get("TAMPERINGS", "500")) > 500
"""Every value in every column, and every part of JSON; else two values in each in turns, and every third part."""
HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)

CATALOGUE = """
version: 1
seller: {{id: default, name: Example, address: [Street 1], invoice_prefix: TK, currency: USD, time_zone: UTC}}
meters:
  - {{name: tokens, unit: tokens, attributes: [zone], dimensions: [zone]}}
  - {{name: turnover, unit: cents}}
  - {{name: users, unit: users, aggregation: unique, attributes: [user], value_attribute: user}}
  - {{name: peak, unit: calls, aggregation: max}}
  {more}
plans:
  - name: hourly
    billing_interval: {{unit: hour, count: 1}}
    grace: {{unit: minute, count: 5}}
    fees: [{{name: base, amount: "20.00"}}]
    prices:
      - {{meter: tokens, unit_price: "0.01"}}
      - {{meter: users, unit_price: "0.10"}}
      - {{meter: turnover, model: percentage, convert: {{divide_by: 100}}, rate_percent: "3", fixed_per_event: "0.30"}}
tenants:
  - {{id: code, plan: hourly, subscription: {{start: "{start}"}}}}
"""
USAGE = (
    "usage_record", "usage_id", "usage_quarantine", "usage_quarantine_act", "usage_chain", "usage_chain_head",
    "usage_rollup_minute", "usage_rollup_quarter", "usage_rollup_state", "usage_rollup_value", "usage_root", "producer",
)  # fmt: skip
MONEY = (
    "billing_close", "billing_segment", "invoice", "invoice_line", "receivable", "journal", "payment", "credit_note",
    "plan_version", "subscription", "subscription_phase",
)  # fmt: skip
ARRAYS = ["array_fill(NULL::{0}, ARRAY[cardinality({1})])", "array_fill(7::{0}, ARRAY[cardinality({1}), 1])", "'{}'"]
NASTY = {
    "text": ["''", r"E'\x1b[31m\u202e\n'", "repeat('x', 2000)", "'null'"],
    "bytea": [
        "''", r"'\xff'", "convert_to(repeat('[', 200000), 'UTF8')", "convert_to('null', 'UTF8')",
        "decode(repeat('00', 32), 'hex')", "decode(repeat('00', 64), 'hex')", "convert_to('{\"a\": 1e999}', 'UTF8')",
    ],
    "smallint": ["0", "-1", "32767", "-32768"],
    "integer": ["0", "-1", "2147483647", "-2147483648"],
    "bigint": ["0", "-1", "9223372036854775807", "-9223372036854775808"],
    "timestamp with time zone": ["'infinity'", "'-infinity'", "'294276-01-01'", "'4713-01-01 BC'", "'0001-01-01'"],
    "numeric": ["'NaN'", "0", "99999999999999999999999999999999999999"],
    "uuid": ["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
    "boolean": ["NOT {1}"],
    "jsonb": [
        "'null'", "'[]'", "'5'", "('{\"a\":' || repeat('[', 3000) || repeat(']', 3000) || '}')::jsonb",
        "('{\"a\":' || repeat('9', 5000) || '}')::jsonb", "'{\"a\": null}'", "'{\"zone\": 7}'",
    ],
    "integer[]": ARRAYS,
    "bigint[]": ARRAYS,
}  # fmt: skip
"""Values of each type as SQL; {0} stands for the type of an array's members, {1} for the column."""
REFUSED = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.GeneratedAlwaysError,
)
LEAVES: tuple[Any, ...] = (
    None, "", "\ud800", "\0", -1, 2**70, float("inf"), 0.5, True, [], {}, [None], "9999-12-31T23:59:59-14:00",
    "0001-01-01T00:00:00+14:00", "2026-01-01", "1e999999", "x" * 9_000,
)  # fmt: skip
"""What is put in the place of parts of JSON."""


async def fill(bench: BillingBench, directory: Path) -> list[UUID]:
    """Bill two hours, the second with late usage; have acts on quarantine, a credit note, a root; give the invoices."""
    await bench.apply(CATALOGUE.format(start=bench.start.isoformat(), more=""))
    log = await bench.new_log()
    ends = [bench.start + HOUR, bench.start + 2 * HOUR]
    numbers = count()

    async def send(*times: int) -> None:
        now = bench.start + times[-1] * GRACE
        await bench.set_now(now)
        for n, minutes in zip(numbers, times, strict=False):
            at = bench.start + minutes * GRACE - timedelta(seconds=1)
            attributes = (("zone", "ab"[n % 2]), ("user", "uvw"[n % 3]))
            some = use(f"use-{n}", at, attributes=attributes, tokens=n + 5, turnover=900 * n, users=1, peak=n)
            await bench.send(log, some, watermark=now)

    await send(1, 6, 12)
    await bench.set_now(ends[0] + GRACE)
    await bench.send(log, watermark=ends[0])
    await bench.run()
    await send(11, 18, 24)
    await bench.set_now(ends[1] + GRACE)
    await bench.send(log, watermark=ends[1])
    await bench.run()
    await send(24, 25, 26)
    refused = [use(f"refused-{n}", ends[1], later=n) for n in (1, 2, -1)]
    await bench.send(log, *refused, watermark=ends[1])
    await bench.apply(CATALOGUE.format(start=bench.start.isoformat(), more="- {name: later, unit: tokens}"))
    seqs = [row["seq"] for row in await bench.rows("SELECT seq FROM usage_quarantine ORDER BY seq")]
    await release(bench, keys_of(log, seqs[0]))
    await discard(bench, keys_of(log, seqs[1]))
    assert await RootSigner(bench.billing, directory, installation_id=bytes(16)).tick()
    invoices = [row["invoice_id"] for row in await bench.rows("SELECT invoice_id FROM invoice ORDER BY serial")]
    async with transaction(bench.billing) as conn:
        act = Act("test", "credit", await ledger_now(conn))
        await pay_by_hand(conn, invoices[0], amount_minor=50, reference="half", act=act)
        await credit_invoice(conn, invoices[0], amount_minor=100, note="sorry", refund=False, act=act)
    return invoices


async def told(conn: Connection, invoices: list[UUID]) -> list[str]:
    """Give what the audit, checks of invoices, and making them again find wrong, as messages carry it."""
    found = []
    async for one in verify_usage(conn):
        if isinstance(one, Finding):
            row, problem = telling(one.row), telling(one.problem)
            message = reports_pb2.VerifyUsageResponse()
            message.finding.row, message.finding.problem = row, problem
            assert message.ByteSize() < 100_000
            found.append(f"{one.table}: {row} {problem}")
    for invoice in invoices:
        try:
            checks = await verify_invoice(conn, invoice)
        except UnknownNameError as error:
            found.append(str(error))
            continue
        billing_pb2.VerifyInvoiceResponse(
            checks=[billing_pb2.InvoiceCheck(name=one.name, ok=one.ok, detail=telling(one.detail)) for one in checks]
        ).SerializeToString()
        found += [f"{invoice} {one.name}: {one.detail}" for one in checks if not one.ok]
        for from_records in (False, True):
            try:
                made = await reproduce_invoice(conn, invoice, from_records=from_records)
            except PreconditionError as error:
                str(error).encode()
                found.append(str(error))
            else:
                found += [f"{invoice}: other bytes"] * (made.document != made.stored)
    return found


@asynccontextmanager
async def attempt(conn: Connection) -> AsyncIterator[None]:
    """Begin what is undone at the end, past triggers and foreign keys."""
    undone = conn.transaction()
    await undone.start()
    try:
        await conn.execute("SET LOCAL session_replication_role = replica; SET LOCAL max_stack_depth = '6MB'")
        yield
    finally:
        await undone.rollback()


async def tamperings(conn: Connection, table: str) -> list[str]:
    """Give statements that each put one nasty value into one column of one row, in turns."""
    columns = await conn.fetch(
        "SELECT attname AS name, format_type(atttypid, NULL) AS kind FROM pg_attribute"
        " WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
        table,
    )
    rows = await conn.fetch(f"SELECT tableoid, ctid::text AS place FROM {table} ORDER BY 1, ctid")  # noqa: S608
    assert rows, f"{table} is empty"
    places, made = cycle(rows), []
    turns = {kind: cycle(values) for kind, values in NASTY.items()}
    for column in columns:
        values = NASTY.get(column["kind"], [])
        some = values if THOROUGH else [next(turns[column["kind"]]) for _ in values[:2]]
        for value in ["NULL", *some]:
            row = next(places)
            told = value.replace("{0}", column["kind"].removesuffix("[]")).replace("{1}", column["name"])
            kind = "" if value == "NULL" else f"::{column['kind']}"
            made.append(
                f"UPDATE {table} SET {column['name']} = ({told}){kind}"  # noqa: S608
                f" WHERE tableoid = {row['tableoid']} AND ctid = '{row['place']}'"
            )
    return made


async def done(conn: Connection, statement: str) -> bool:
    """Change a row; False where the table's own constraints refuse it."""
    with suppress(*REFUSED):
        async with conn.transaction():
            return bool(await conn.execute(statement) == "UPDATE 1")
    return False


@pytest.mark.parametrize("tables", [USAGE, MONEY], ids=["usage", "money"])
async def test_no_column_can_be_changed_so_that_an_audit_stops(
    bench: BillingBench, tmp_path: Path, tables: tuple[str, ...]
) -> None:
    """NULL, broken and deep JSON, huge numbers, arrays of another shape, times beyond the calendar: told of.

    Each turn changes one column of every table, in as many turns as it takes for all columns.
    """
    invoices = await fill(bench, tmp_path)
    async with superuser(bench.url) as conn:
        await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        async with conn.transaction():
            assert [] == await told(conn, invoices)
        waiting = [await tamperings(conn, table) for table in tables]
        changed = 0
        while any(waiting):
            async with attempt(conn):
                turn = [statement for of_table in waiting if (statement := await _next(conn, of_table))]
                changed += len(turn)
                assert await told(conn, invoices) or len(turn) < len(tables) // 2, turn
        assert changed > 100
        async with conn.transaction():
            assert [] == await told(conn, invoices)


async def _next(conn: Connection, statements: list[str]) -> str:
    while statements:
        if await done(conn, statement := statements.pop()):
            return statement
    return ""


async def test_no_part_of_json_can_be_changed_so_that_an_audit_stops(bench: BillingBench, tmp_path: Path) -> None:
    """Any part of what closes, invoices, plan versions and roots keep as JSON may be anything: it is told of."""
    invoices = await fill(bench, tmp_path)
    kept = (
        ("billing_close", "inputs"),
        ("invoice", "document"),
        ("plan_version", "definition"),
        ("usage_root", "statement"),
    )
    values = cycle(LEAVES)
    async with superuser(bench.url) as conn:
        await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        waiting = []
        for table, column in kept:
            rows = await conn.fetch(f"SELECT ctid::text AS place, {column} AS told FROM {table} ORDER BY ctid")  # noqa: S608
            for part, row in enumerate(rows):
                whole = json.loads(row["told"])
                paths = list(paths_of(whole))[part :: len(rows) * (1 if THOROUGH else 3)]
                waiting.append([(table, column, row["place"], spoiled(whole, path, next(values))) for path in paths])
        while any(waiting):
            async with attempt(conn):
                turn = [of_table.pop() for of_table in waiting if of_table]
                for table, column, place, text in turn:
                    also = ", digest = sha256($1)" if column == "document" else ""
                    statement = f"UPDATE {table} SET {column} = $1{also} WHERE ctid = $2::text::tid"  # noqa: S608
                    await conn.execute(statement, text, place)
                assert await told(conn, invoices), turn


def paths_of(value: Any) -> Iterator[tuple[Any, ...]]:
    """Give the way to every part of JSON."""
    yield ()
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        for path in paths_of(part):
            yield (name, *path)


def spoiled(whole: Any, path: tuple[Any, ...], value: Any) -> bytes:
    """Give JSON in which another value stands at the end of a path."""
    if not path:
        return json.dumps(value).encode()
    copy = json.loads(json.dumps(whole))
    part = copy
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return json.dumps(copy).encode()
