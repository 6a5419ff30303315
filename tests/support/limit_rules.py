"""Limits as tests of running platforms declare them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper.quota.v1 import decision_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence


def yearly(
    name: str,
    amount: int,
    *,
    meter: str = "requests",
    policy: decision_pb2.FailurePolicy.ValueType = decision_pb2.FAILURE_POLICY_CLOSED,
    key: Sequence[str] = (),
    **match: str,
) -> limits_pb2.LimitRule:
    """Describe a hard limit of a calendar year, so that no window ends within a test.

    `match`: only for calls whose attributes are these; `*` stands for any value.
    """
    rule = limits_pb2.LimitRule(
        name=name,
        meter=meter,
        kind=decision_pb2.LIMIT_KIND_WINDOW,
        amount=amount,
        enforcement=decision_pb2.ENFORCEMENT_HARD,
        failure_policy=policy,
        window_unit=limits_pb2.WINDOW_UNIT_YEAR,
        window_count=1,
        time_zone="UTC",
        alignment=limits_pb2.WINDOW_ALIGNMENT_CALENDAR,
        key=key,
    )
    for attribute, value in match.items():
        if value == "*":
            rule.match.add(attribute=attribute, any=True)
        else:
            rule.match.add(attribute=attribute, exact=value)
    return rule
