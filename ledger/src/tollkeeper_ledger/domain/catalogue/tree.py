"""A catalogue file as read, before it means anything: text with line numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value as its text; `plain` where it stood without quotes."""

    text: str
    line: int
    plain: bool

    @property
    def is_null(self) -> bool:
        """Whether it says that there is nothing."""
        return self.plain and self.text in {"", "~", "null", "Null", "NULL"}


@dataclass(frozen=True, slots=True)
class Listing:
    """Values in order."""

    items: tuple[Node, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A name with its value."""

    name: str
    line: int
    value: Node


@dataclass(frozen=True, slots=True)
class Table:
    """Names with values, in order; a name may still stand twice."""

    entries: tuple[Entry, ...]
    line: int


Node: TypeAlias = Scalar | Listing | Table
