"""Whole rules for `quota set`: what the options say, over what the limit says already."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper.ledger.v1 import admin_pb2, limits_pb2
from tollkeeper.quota.v1 import decision_pb2

from tollkeeper_cli.connection import CALL_TIMEOUT_S
from tollkeeper_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper.ledger.v1 import admin_pb2_grpc

_UNITS = ("minute", "hour", "day", "week", "month", "year", "billing_period")
_WINDOW = re.compile(r"(?:(\d+) )?(\w+?)s?")


@dataclass(frozen=True, slots=True)
class RuleAsked:
    """What is asked of a limit's rule; empty or None keeps what there is."""

    meter: str = ""
    window: str = ""
    time_zone: str = ""
    anchor: str = ""
    rolling: bool | None = None
    key: Sequence[str] | None = None
    """Attributes; a single empty one = the limit is not split."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked."""
        return self == RuleAsked()


def known_rule(stub: admin_pb2_grpc.AdminServiceStub, tenant: str, limit: str) -> limits_pb2.LimitRule | None:
    """Read a limit as it is declared; None where there is none.

    While a change of kind or key waits, the rule of before is listed as well, first, and ends where the other begins.
    """
    answer = stub.ListLimits(admin_pb2.ListLimitsRequest(tenant=tenant), timeout=CALL_TIMEOUT_S)
    found = [rule for rule in answer.limits if rule.name == limit]
    if len(found) > 1 and found[0].valid_to_us == found[-1].valid_from_us:
        found[-1].ClearField("valid_from_us")
    return found[-1] if found else None


def rule_of(limit: str, units: int, asked: RuleAsked, known: limits_pb2.LimitRule | None) -> limits_pb2.LimitRule:
    """Describe the whole rule. Raises UsageError where a new limit lacks something, or the window can't be read."""
    rule = limits_pb2.LimitRule()
    if known is not None:
        rule.CopyFrom(known)
    elif not asked.meter or not asked.window:
        raise UsageError("a new limit needs both --meter and --window")
    rule.name, rule.amount = limit, units
    rule.meter = asked.meter or rule.meter
    if asked.window:
        rule.kind = decision_pb2.LIMIT_KIND_WINDOW
        rule.refill_interval_us = rule.burst = 0
        rule.window_unit, rule.window_count = _window(asked.window)
    elif rule.kind != decision_pb2.LIMIT_KIND_WINDOW and (asked.time_zone or asked.anchor or asked.rolling is not None):
        raise UsageError(f"limit {limit!r} has no window: give it one with --window")
    rule.time_zone = asked.time_zone or rule.time_zone or "UTC"
    rule.anchor = asked.anchor or rule.anchor
    if asked.rolling is not None or not rule.alignment:
        rule.alignment = limits_pb2.WINDOW_ALIGNMENT_ROLLING if asked.rolling else limits_pb2.WINDOW_ALIGNMENT_CALENDAR
    if asked.key is not None:
        rule.key[:] = [name for name in asked.key if name]
    return rule


def _window(text: str) -> tuple[limits_pb2.WindowUnit.ValueType, int]:
    """Read `day`, `15 minutes`, `2 weeks`."""
    found = _WINDOW.fullmatch(text.strip())
    if found is None or found[2] not in _UNITS:
        raise UsageError(f"the window is {text!r}, expected `day`, `15 minutes`, `2 weeks`: {', '.join(_UNITS)}")
    return limits_pb2.WindowUnit.Value(f"WINDOW_UNIT_{found[2].upper()}"), int(found[1] or 1)
