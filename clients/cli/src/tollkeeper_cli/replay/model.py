"""What a recording is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MICROSECONDS = 1_000_000
UNITS_MAX = 2**53 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """One request of a recording: reserved when it arrives, settled when it ends."""

    number: int
    """Line in its file, from 1."""
    request_id: str
    """Idempotency id, the same at every replay of the same file."""
    tenant: str
    at_us: int
    """Arrival, microseconds UTC."""
    duration_us: int
    """From arrival to end."""
    reserve: Mapping[str, int]
    """Units per meter to reserve."""
    settle: Mapping[str, int]
    """Units per meter that were really used."""
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MalformedLine:
    """A line that can't be read."""

    source: str
    number: int
    problem: str

    def __str__(self) -> str:
        """Say where and what, as compilers do."""
        return f"{self.source}:{self.number}: {self.problem}"


class MalformedLineError(ValueError):
    """A line breaks the format. The message says how, without the line's number."""
