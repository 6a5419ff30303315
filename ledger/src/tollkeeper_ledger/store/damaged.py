"""Read rows that anybody may have changed: what can't be as the ledger wrote it is told from what is."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from tollkeeper_ledger.store.pool import Row

UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    struct.error,
    RecursionError,
    NotImplementedError,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
)
"""What bytes raise that are not as the ledger wrote them: in Python, in Postgres, in files."""


def quantities_of(row: Row) -> list[tuple[int, int]]:
    """Give a row's columns `meter_ids` and `units` in pairs; none, as no record has, where they are not numbers."""
    meter_ids, units = row["meter_ids"], row["units"]
    if {int} != {*map(type, meter_ids), *map(type, units)} or len(meter_ids) != len(units):
        return []
    return list(zip(meter_ids, units, strict=True))


def attributes_of(text: str) -> dict[str, str]:
    """Read a record's attributes from JSON; gives one without a name, as no record has, where it says none."""
    found = json_of(text)
    if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
        return found
    return {"": text}


def json_of(text: str) -> Any:
    """Read JSON; gives the text itself where it is deeper or has more digits than can be read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
