"""The window of a rule that holds a time, whatever its alignment and unit. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.periods import from_us, period_at, to_us
from tollkeeper_ledger.domain.windows import Alignment, Span, WindowUnit, rolling_at, window_at

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.periods import Schedule
    from tollkeeper_ledger.domain.windows import WindowRule


def span_at(rule: WindowRule, schedule: Schedule | None, at_us: int) -> Span:
    """Give the window that holds `at_us`; a rolling one begins there. `schedule` has the tenant's billing periods.

    Raises ValueError or OverflowError where there is none then.
    """
    if rule.alignment is Alignment.ROLLING:
        return rolling_at(rule, at_us)
    if rule.unit is WindowUnit.BILLING_PERIOD:
        return _billing_span(schedule, at_us)
    return window_at(rule, at_us)


def _billing_span(schedule: Schedule | None, at_us: int) -> Span:
    if schedule is None:
        raise ValueError("the tenant has no subscription, so no billing period")
    period = period_at(schedule, from_us(at_us))
    if period is None:
        raise ValueError("the tenant has no billing period then")
    return Span(to_us(period.start), to_us(period.end))
