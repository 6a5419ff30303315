"""Learn from holders, after Postgres was set back, what had left a window. Pure.

Each living holder says once what it has of each window of an earlier timeline, per source, and takes no more of that
window from anybody. So whatever is spent of it beyond the sum of what was said is in the hands of holders that said
nothing. What else is known only raises the figure: how much had gone into pools, how much had left the limit.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tollkeeper_ledger.domain.windows import Span


@dataclass(frozen=True, slots=True)
class Told:
    """What one holder said that it has of one source of one window."""

    timeline: int
    """The timeline in which it said so; the window is of an earlier one."""
    window_id: bytes
    start_us: int
    end_us: int
    holder: bytes
    generation: int
    """0 = the ledger, else a pool's."""
    units: int
    """Units that did not go back to the source."""
    total: int = 0
    """Units that had gone into the generation, as it heard last."""
    allotted: int = 0
    """Units that had left the limit, as it heard last."""
    unspent: int | None = None
    """Units that the generation never gave; None = its pool may still be open."""

    def overlaps(self, span: Span) -> bool:
        """Whether its window and `span` have an instant in common."""
        return self.start_us < span.end_us and span.start_us < self.end_us


def learned_out(told: Iterable[Told]) -> int:
    """Give how many units are out of a window by what holders said: at least the sum of what they have.

    A pool counts with all that is known to have gone into it, but for what it never gave.
    """
    said = list(told)
    units: dict[tuple[bytes, int], int] = defaultdict(int)
    total: dict[tuple[bytes, int], int] = defaultdict(int)
    unspent: dict[tuple[bytes, int], int] = {}
    for one in said:
        pool = (one.window_id, one.generation)
        units[pool] += one.units
        total[pool] = max(total[pool], one.total)
        unspent[pool] = max(unspent.get(pool, 0), one.unspent or 0)
    by_source = sum(max(held, total[pool] - unspent[pool]) for pool, held in units.items())
    heard = max((one.allotted for one in said), default=0) - sum(unspent.values())
    return max(by_source, heard)


def has_open_pool(told: Iterable[Told]) -> bool:
    """Give whether a pool is named of which nobody has said yet what it never gave."""
    return any(one.generation > 0 and one.unspent is None for one in told)
