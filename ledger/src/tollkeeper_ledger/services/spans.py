"""The window of a tenant's limit that holds a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.spans import span_at
from tollkeeper_ledger.domain.windows import Span, end_day_of
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

    It is cut to the time in which the limit has this kind and key. Raises ValueError or OverflowError where the limit
    has none then.
    """
    rule = limit.rule.window
    if rule is None:
        raise ValueError("the limit has no window")
    span = span_at(rule, tenant.schedule, at_us)
    return Span(max(span.start_us, limit.from_us), min(span.end_us, limit.until_us))
