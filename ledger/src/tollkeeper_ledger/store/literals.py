"""Columns as one text each: Postgres and asyncpg take an array literal of numbers faster than an array of values.

Not so UUIDs where each is sent once: Postgres reads one that is text in ten times the time of one that is bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID


def number_literal(values: Sequence[int]) -> str:
    """Give numbers as an array literal: what a list says of itself is that but for its brackets, and made in C."""
    return "{" + str(values if isinstance(values, list) else list(values))[1:-1] + "}"


def array_literal(values: Iterable[int | str | UUID]) -> str:
    """Give numbers or UUIDs, these as text too, as an array literal, for parameters like `$1::text::bigint[]`."""
    return "{" + ",".join(map(str, values)) + "}"
