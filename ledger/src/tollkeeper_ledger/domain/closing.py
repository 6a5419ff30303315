"""When a billing period may close, and who is waited for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

HOLD_MAX = timedelta(hours=6)
"""Ledger time after a period's end beyond which nobody is waited for."""

SILENT_AFTER = timedelta(minutes=10)
"""Real time without a word after which a producer is silent and isn't waited for."""

_GRACE_MINUTES = {"minute": 1, "hour": 60, "day": 1440}


@dataclass(frozen=True, slots=True)
class ProducerState:
    """A producer that served the tenant, or a partition of a topic."""

    producer: str
    """Its id, hex; of a partition its name."""
    state: str
    """`open`, `closed` or `lost`."""
    watermark: datetime | None
    """All that it received before this ledger time is committed; None where it has not said."""
    silent_for: timedelta
    """Real time since its last word."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a period may close now."""

    may_close: bool
    held_by: tuple[str, ...]
    """What holds it, for people; empty when it may close or isn't due."""
    not_waited_for: tuple[str, ...]
    """Producers whose later usage will be late, with why."""


def grace_of(plan: dict[str, object]) -> timedelta:
    """Give the grace of a plan version's definition."""
    grace = plan["grace"]
    if not isinstance(grace, dict):
        raise TypeError("a definition's grace is a table")
    return timedelta(minutes=_GRACE_MINUTES[grace["unit"]] * grace["count"])


def judge(*, period_end: datetime, grace: timedelta, now: datetime, producers: Sequence[ProducerState]) -> Verdict:
    """Judge a period at ledger time `now`.

    It may close when its grace is over and every open producer's watermark has passed its end. Producers that are
    silent, lost or closed are not waited for, and nobody is later than HOLD_MAX after the end.
    """
    if now < period_end + grace:
        return Verdict(may_close=False, held_by=(), not_waited_for=())
    held: list[str] = []
    ignored: list[str] = []
    for producer in producers:
        if producer.watermark is not None and producer.watermark >= period_end:
            continue
        said = "none" if producer.watermark is None else producer.watermark.isoformat()
        if producer.state == "lost":
            ignored.append(f"{producer.producer} is lost, watermark {said}")
        elif producer.state == "open" and producer.silent_for >= SILENT_AFTER:
            ignored.append(f"{producer.producer} is silent, watermark {said}")
        elif producer.state == "open":
            held.append(f"{producer.producer} has committed up to {said} only")
    if held and now >= period_end + HOLD_MAX:
        ignored.extend(held)
        held = []
    return Verdict(may_close=not held, held_by=tuple(held), not_waited_for=tuple(ignored))
