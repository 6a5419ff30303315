"""What Allot is asked and what it answers, free of messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tollkeeper_ledger.domain.window_state import Answer, Ask, Refused

if TYPE_CHECKING:
    from tollkeeper_ledger.store.limits import WindowRow
    from tollkeeper_ledger.store.pool_functions import BucketKeys, PoolKeys


@dataclass(frozen=True, slots=True)
class Entry:
    """One ask with the identity that it is about."""

    tenant: str
    limit: str
    key_hash: bytes
    key_values: tuple[str, ...]
    at_us: int
    ask: Ask


@dataclass(frozen=True, slots=True)
class WindowFacts:
    """A window as it stands after an answer."""

    window_id: bytes
    start_us: int
    end_us: int
    round: int
    amount: int
    amount_version: int
    allotted: int
    timeline: int


@dataclass(frozen=True, slots=True)
class FromWindow:
    """An answer about a window; `pool` with a pool's answer."""

    window: WindowFacts
    answer: Answer
    pool: PoolKeys | None = None


@dataclass(frozen=True, slots=True)
class FromBucket:
    """A token bucket's shard is open."""

    generation: int
    keys: BucketKeys


Result: TypeAlias = FromWindow | FromBucket | Refused


def facts_of(row: WindowRow) -> WindowFacts:
    """Give a window as it stands now."""
    return WindowFacts(
        window_id=row.window_id,
        start_us=row.span.start_us,
        end_us=row.span.end_us,
        round=row.round,
        amount=row.state.amount,
        amount_version=row.state.amount_version,
        allotted=row.state.allotted,
        timeline=row.state.timeline,
    )
