"""Decide whether units may be issued: what a set-back Postgres and a jumped clock forbid. Pure.

A witness is what was committed and then shown outside. One that Postgres lacks means that Postgres was set back: a new
timeline begins, and windows that may have been open then are frozen, because nobody knows any more what left them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.window_state import Refused

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.windows import Span

VALUE_BYTES = 16
_PREFIX_BYTES = 4
_NUMBER_BYTES = 8

AHEAD_US_MAX = 5_000_000
"""Windows are leased so early, ledger time."""

_SLACK_REAL_MS = 250
"""An ask may be so long under way, and clocks so far apart."""

_FROZEN_FURTHER_US = 1_000_000

LEARNING_S = 30
"""Sidecars have so long, real seconds, to say what they have; one that the ledger reaches says it within two."""

CLOCK_JUMP_US_MAX = 300_000_000
"""A forward jump beyond five minutes holds window opening."""


def slack_us(speed_milli: int) -> int:
    """Give the ledger µs that an ask may lie beside its bounds at this speed of the ledger's clock."""
    return _SLACK_REAL_MS * max(1000, speed_milli)


def frozen_before_us(now_us: int, speed_milli: int) -> int:
    """Give the ledger time before which windows that begin may have been leased already."""
    return now_us + AHEAD_US_MAX + slack_us(speed_milli) + _FROZEN_FURTHER_US


def learning_until_us(now_us: int, speed_milli: int, *, learning_s: int) -> int:
    """Give the ledger time until which limits that learn hear what sidecars have, and issue nothing."""
    return now_us + learning_s * 1_000 * max(1000, speed_milli)


@dataclass(frozen=True, slots=True, order=True)
class Witness:
    """Bytes that were committed under a number; a greater one was committed later."""

    timeline: int
    number: int
    value: bytes = b""

    def shown(self, installation_id: bytes) -> bytes:
        """Give what sidecars keep: greater byte by byte where it is later."""
        return installation_id[:_PREFIX_BYTES] + self.number.to_bytes(_NUMBER_BYTES, "big") + self.value


NO_WITNESS = Witness(timeline=0, number=0)


def witness_from(installation_id: bytes, timeline: int, shown: bytes) -> Witness | None:
    """Read what a sidecar shows; None for nothing, for another installation's, and for what no ledger ever made."""
    prefix, rest = shown[:_PREFIX_BYTES], shown[_PREFIX_BYTES:]
    if len(rest) != _NUMBER_BYTES + VALUE_BYTES or prefix != installation_id[:_PREFIX_BYTES]:
        return None
    number = int.from_bytes(rest[:_NUMBER_BYTES], "big")
    if not (0 < timeline < 2**21 and 0 < number < 2**53):
        return None
    return Witness(timeline=timeline, number=number, value=rest[_NUMBER_BYTES:])


@dataclass(frozen=True, slots=True)
class Issuing:
    """What Postgres says of itself in the transaction that issues."""

    timeline: int
    frozen_before_us: int = 0
    """Windows that began before this are frozen; 0 = none."""
    is_held: bool = False
    """The clock jumped and nobody has confirmed it: no window is opened."""
    learning_until_us: int = 0
    """Until this ledger time limits that learn hear what sidecars have; 0 = none does."""

    @property
    def is_restricted(self) -> bool:
        """Whether some windows may not be opened."""
        return self.is_held or self.frozen_before_us > 0

    def refuses_window(self, span: Span, *, timeline: int, learned_at_us: int | None = None) -> Refused | None:
        """Refuse a window that was opened in an earlier timeline, while nobody has confirmed the restore.

        `learned_at_us`: ledger time now where its limit learns; it is refused until sidecars have had their time.
        """
        if timeline < self.timeline and span.start_us < self.frozen_before_us:
            return self._refuses_restored(learned_at_us)
        return None

    def refuses_opening(self, span: Span, *, is_rolling: bool, learned_at_us: int | None = None) -> Refused | None:
        """Refuse to open a window that may have been open, unknown to Postgres, or that a jumped clock asks for.

        A rolling window begins at first use, so one that Postgres has lost may reach a whole length beyond the restore.
        Where the limit learns, `learned_at_us` is ledger time now: what nobody told of in time is nobody's.
        """
        start_us = span.start_us - (span.end_us - span.start_us if is_rolling else 0)
        refused = self._refuses_restored(learned_at_us) if start_us < self.frozen_before_us else None
        return refused or (_HELD if self.is_held else None)

    def _refuses_restored(self, learned_at_us: int | None) -> Refused | None:
        if learned_at_us is None:
            return _RESTORED
        # A clock that jumped forward says nothing about how long sidecars have had.
        return LEARNING if self.is_held or learned_at_us < self.learning_until_us else None


_RESTORED = Refused(
    reason="RESTORE_UNCONFIRMED",
    message="Postgres was set back: windows that were open then are frozen until `tollkeeper ledger confirm-restore`",
)
LEARNING = Refused(
    reason="RESTORE_UNCONFIRMED",
    message="Postgres was set back: sidecars are saying what they have of this window; ask again in a while",
)
_HELD = Refused(
    reason="CLOCK_UNCONFIRMED",
    message="Postgres' clock jumped: no window is opened until `tollkeeper ledger confirm-clock`",
)


def clock_jump_us(*, expected_us: int, read_us: int, speed_milli: int) -> int:
    """Give how far ledger time jumped forward beyond what elapsed; 0 = not further than may be.

    `speed_milli`: a scaled clock may be off by as much more as it is faster.
    """
    jump_us = read_us - expected_us
    return jump_us if jump_us > CLOCK_JUMP_US_MAX * max(1000, speed_milli) // 1000 else 0
