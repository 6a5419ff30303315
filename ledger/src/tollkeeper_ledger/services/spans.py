"""The window of a tenant's limit that holds a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.periods import from_us, period_at, to_us
from tollkeeper_ledger.domain.windows import Alignment, Span, WindowUnit, end_day_of, rolling_at, window_at
from tollkeeper_ledger.store.limits import DAY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tollkeeper_ledger.domain.limits import EffectiveLimit
    from tollkeeper_ledger.store.tenants import TenantView


def name_window(span: Span, random_bytes: Callable[[int], bytes]) -> bytes:
    """Give a new window's id: its end day and twelve random bytes."""
    return end_day_of(span.end_us).to_bytes(DAY_BYTES, "big") + random_bytes(16 - DAY_BYTES)


def span_of(tenant: TenantView, limit: EffectiveLimit, at_us: int) -> Span:
    """Give the window that holds `at_us`; a rolling one begins there.

    Raises ValueError or OverflowError where the limit has none then.
    """
    rule = limit.rule.window
    if rule is None:
        raise ValueError("the limit has no window")
    if rule.alignment is Alignment.ROLLING:
        return rolling_at(rule, at_us)
    if rule.unit is WindowUnit.BILLING_PERIOD:
        return _billing_span(tenant, at_us)
    return window_at(rule, at_us)


def _billing_span(tenant: TenantView, at_us: int) -> Span:
    if tenant.schedule is None:
        raise ValueError(f"tenant {tenant.wire_id} has no subscription, so no billing period")
    period = period_at(tenant.schedule, from_us(at_us))
    if period is None:
        raise ValueError(f"tenant {tenant.wire_id} has no billing period then")
    return Span(to_us(period.start), to_us(period.end))
