"""Change one field of one stored row, past every guard."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import asyncpg
from tollkeeper_ledger.domain.windows import add_months

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from tollkeeper_ledger.domain.usage_audit import Finding
    from tollkeeper_ledger.store.pool import Connection

TABLES = (
    "usage_record",
    "usage_record",
    "usage_record",
    "usage_id",
    "usage_quarantine",
    "usage_quarantine_act",
    "usage_chain",
    "usage_chain_head",
    "usage_rollup_minute",
    "usage_rollup_quarter",
    "usage_rollup_state",
    "usage_rollup_value",
)
"""Tables whose every field is checked; records are drawn more often."""
ARCHIVE_TABLES = (
    "usage_archive",
    "usage_archive",
    "usage_archive",
    "usage_archive_batch",
    "usage_root",
    "usage_rollup_minute",
    "usage_rollup_quarter",
    "usage_rollup_state",
    "usage_rollup_value",
)
"""Tables about months whose records are in files, and roots."""


@dataclass(frozen=True, slots=True)
class Tampering:
    """What was changed."""

    table: str
    column: str
    before: dict[str, Any]
    """The row as it was."""
    value: Any


def other(value: Any, chance: random.Random) -> Any:
    """Give another value of the same kind. Raises KeyError for a kind that no column has."""
    steps = (timedelta(microseconds=1), timedelta(minutes=15), -timedelta(microseconds=1), -timedelta(minutes=15))
    makers: dict[type, Callable[[Any], Any]] = {
        int: lambda number: number + chance.choice([1, -1, 7, 1000]),
        Decimal: lambda number: number + chance.choice([1, -1, 7, 1000]),
        str: lambda text: chance.choice([text + "x", '{"zone":"elsewhere"}', "y"]),
        bytes: lambda data: _flipped(data, chance),
        datetime: lambda instant: instant + chance.choice(steps),
        date: lambda day: add_months(day, chance.choice([1, -1, 12])),
        list: lambda items: _with_another(items, chance),
        dict: lambda fields: {**fields, chance.choice([*fields, "more"]): "1"},
    }
    if isinstance(value, uuid.UUID):
        return uuid.UUID(int=value.int ^ (1 << chance.randrange(120)))
    return makers[type(value)](value)


def _flipped(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]


def _with_another(items: list[Any], chance: random.Random) -> list[Any]:
    place = chance.randrange(len(items))
    return [*items[:place], other(items[place], chance), *items[place + 1 :]]


async def tamper(conn: Connection, chance: random.Random, tables: Sequence[str] = TABLES) -> Tampering:
    """Change one field of a row drawn by chance; what the tables' own constraints refuse is drawn again.

    In a transaction of a superuser; triggers and foreign keys are switched off until its end.
    """
    await conn.execute("SET LOCAL session_replication_role = replica")
    while True:
        table = chance.choice(tables)
        rows = await conn.fetch(f"SELECT tableoid, ctid::text AS place, t.* FROM {table} t ORDER BY t::text")  # noqa: S608
        row = dict(chance.choice(rows))
        where = (row.pop("tableoid"), row.pop("place"))
        column = chance.choice(sorted(row))
        value = other(row[column], chance)
        told = json.dumps(value) if table == "usage_rollup_state" and column == "state" else value
        kind = "::jsonb" if isinstance(told, str) and column == "state" else ""
        if value == row[column]:
            continue
        try:
            async with conn.transaction():
                done = await conn.execute(
                    f"UPDATE {table} SET {column} = $1{'::text' + kind if kind else ''}"  # noqa: S608
                    " WHERE tableoid = $2 AND ctid = $3::text::tid",
                    told,
                    *where,
                )
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, asyncpg.GeneratedAlwaysError):
            continue
        assert done == "UPDATE 1"
        return Tampering(table=table, column=column, before=row, value=value)


def is_located(done: Tampering, found: Sequence[Finding], meters: Mapping[object, str]) -> bool:
    """Say whether the first finding names the changed row, as it was or as it is. `meters`: names by number.

    Of a row that left its batch the batch is named; a link that left its stream may be missed by the head first.
    """
    if not found:
        return False
    after = {**done.before, done.column: done.value}
    if done.table == "usage_chain" and found[0].table == "usage_chain_head":
        found = [one for one in found if one.table == done.table]
    return any(_is_named(done.table, row, found[0], meters) for row in (done.before, after) if found)


def _is_named(table: str, row: Mapping[str, Any], finding: Finding, meters: Mapping[object, str]) -> bool:
    if finding.table != table:
        return False
    text = f"{finding.row} {finding.problem}"
    if table in ("usage_record", "usage_quarantine") and finding.row == f"batch {row['batch_id']}":
        return True
    if table == "usage_chain":
        return any(word in text for word in (f"position {row['position']}", f"link {row['position']} should"))
    return all(word in text for word in _words_of(table, row, meters))


def _words_of(table: str, row: Mapping[str, Any], meters: Mapping[object, str]) -> list[str]:
    """Give what a finding about a row says."""
    refused = ("usage_quarantine", "usage_quarantine_act")
    makers: dict[str, Callable[[], list[str]]] = {
        **dict.fromkeys(("usage_record", "usage_id"), lambda: [f"id {row['id']!r}"]),
        **dict.fromkeys(refused, lambda: [f"producer {row['producer_id'].hex}, number {row['seq']}"]),
        "usage_chain_head": lambda: [f"stream {row['stream']}"],
        "usage_archive": lambda: [f"month {row['month']:%Y-%m}"],
        "usage_archive_batch": lambda: [f"batch {row['batch_id']}, month {row['month']:%Y-%m}"],
        "usage_root": lambda: [f"number {row['root_id']},"],
    }
    if table in makers:
        act = [f"act {row['number']}"] if table == "usage_quarantine_act" else []
        return [*makers[table](), *act]
    at = row["minute"] if "minute" in row else row["quarter"]
    return [at.isoformat(), f"meter {meters.get(row['meter_id'])}", row["dims"]]
