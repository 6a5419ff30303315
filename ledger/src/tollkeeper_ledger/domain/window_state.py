"""What the ledger knows of one window while it decides: its row, its pools, its holders, what is asked and answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

GENERATION_BITS = 32
"""A generation's number is the timeline, shifted by so many bits, plus the generations of the identity so far."""


class PoolFault(Enum):
    """What went wrong at a pool; numbers as in the contract."""

    NO_POOL = 1
    FENCE = 2
    GENERATION = 3
    CLOSED = 4
    ROLLBACK = 5
    SEQ = 6
    RETURN_RANGE = 7
    UNREACHABLE = 8


@dataclass(frozen=True, slots=True)
class Ask:
    """One holder's request for units of one window."""

    holder: bytes
    request_seq: int
    need: int
    want: int
    generation_seen: int = 0
    allotted_cum_seen: int = 0
    fault: PoolFault | None = None
    ledger_only: bool = False


@dataclass(frozen=True, slots=True)
class Leased:
    """Units straight from the ledger."""

    give: int
    granted_cum: int
    lease_epoch: int = 0
    """Units in flight: the lease that they belong to."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """Ask this pool. `final`: the limit has no more to give at this amount."""

    generation: int
    allotted_cum: int
    final: bool


@dataclass(frozen=True, slots=True)
class Denied:
    """Proof: only `left` units are left, fewer than were needed."""

    left: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The ask can't be answered; nothing was done. `last_request_seq` belongs to reason REQUEST_SEQ."""

    reason: str
    message: str
    last_request_seq: int = 0


Answer: TypeAlias = Leased | Pooled | Denied | Refused


@dataclass(slots=True)
class Generation:
    """A pool's life. `allotted_cum` units went into it, `credited` came back to the limit after it had ended."""

    number: int
    allotted_cum: int = 0
    credited: int = 0
    lost: bool = False
    closing: bool = False
    """The amount went below what is out: it gets no more units, and Redis is told to close it."""
    closed: bool = False
    """Redis has closed it, and what was never granted is credited."""
    opened_now: bool = False
    publish: bool = False
    """Redis has to be told where it stands; telling it twice is harmless."""
    changed: bool = False

    @property
    def live(self) -> bool:
        """Whether units may go into it."""
        return not (self.lost or self.closing)


@dataclass(slots=True)
class Holder:
    """What the ledger leased to one holder of a window, and its last answer."""

    request_seq: int = 0
    granted_cum: int = 0
    returned_cum: int = 0
    last: Answer | None = None
    recorded: int = 0
    """Levels: rises committed that name this holder."""
    ended: bool = False
    """Levels: its process has ended and what it held came back."""
    lease_epoch: int = 0
    """Units in flight: raised when the lease is reclaimed; 0 = none was ever given."""
    changed: bool = False


@dataclass(slots=True)
class WindowState:
    """A window's row with what belongs to it, locked by whoever decides."""

    amount: int
    amount_version: int
    allotted: int = 0
    ceiling: int = 0
    wanted: int = 0
    """The smallest need denied since the last notice; 0 = none."""
    pool_lost: bool = False
    """A pool was lost since the row was read: whoever it had refused is to ask again."""
    timeline: int = 1
    generation_n: int = 0
    """Generations of this identity so far; goes on over windows and resets."""
    generation: Generation | None = None
    """The newest generation."""
    ended: list[Generation] = field(default_factory=list)
    """Generations that a newer one has taken the place of, since the row was read."""
    holders: dict[bytes, Holder] = field(default_factory=dict)
    stored: int = 0
    """Levels: what is stored by the records committed so far."""
    stored_over: int = 0
    """Levels: of these, units that no lease was used for."""
    owed: int = 0
    """Levels: units that came back before the rises that stand for them were committed; those take so many no more."""
    changed: bool = False

    @property
    def left(self) -> int:
        """Units that may still leave the limit."""
        return max(0, self.amount - self.allotted)

    @property
    def final(self) -> bool:
        """Whether the limit has no more to give at this amount."""
        return self.allotted >= self.amount

    def take(self, units: int) -> None:
        """Move units out of the limit. Raises AssertionError where that would pass the ceiling."""
        self.allotted += units
        self.changed = True
        if units < 0 or self.allotted > self.ceiling:
            raise AssertionError(f"allotted {self.allotted} would pass the ceiling {self.ceiling}")

    def put_back(self, units: int) -> None:
        """Move units back into the limit. A live pool that was final is no longer: Redis has to hear of it.

        Else everybody would go on taking that pool's refusals as proof, although units are left.
        """
        was_final = self.final
        self.allotted -= units
        self.changed = True
        if was_final and not self.final and self.generation is not None and self.generation.live:
            self.generation.publish = True
