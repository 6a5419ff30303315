"""Which of plan, subscription and override is in force."""

from __future__ import annotations

from typing import Any

import pytest
from tollkeeper_ledger.domain.limits import Source, merge, rule_from_json

PLAN: list[dict[str, Any]] = [
    {"name": "day", "meter": "m", "kind": "window", "amount": 10, "window": {"unit": "day"}, "key": ["user"]},
    {"name": "rate", "meter": "m", "kind": "token_bucket", "amount": 5, "refill": {"unit": "second"}, "burst": 9},
]


def in_force(subscription: list[dict[str, Any]], overrides: list[dict[str, Any]]) -> dict[str, tuple[int, str]]:
    """Give each limit's amount and where it is from."""
    found = merge(PLAN, subscription, overrides)
    return {str(rule["name"]): (rule_from_json(rule).amount, source.value) for rule, source in found}


def test_the_most_specific_replaces_the_less_specific() -> None:
    """A subscription's rule stands for the plan's, an override for both; others of the plan stay, in name order."""
    whole = {"name": "day", "meter": "m", "kind": "window", "amount": 20, "window": {"unit": "month"}}
    assert in_force([whole], []) == {"day": (20, "subscription"), "rate": (5, "plan")}
    (rule, source), _ = merge(PLAN, [whole], [])
    assert (source, rule.get("key")) == (Source.SUBSCRIPTION, None)
    assert in_force([whole], [{"name": "day", "amount": 3}])["day"] == (3, "override")
    assert in_force([], [{**whole, "amount": 4}])["day"] == (4, "override")
    added = in_force([{**whole, "name": "also"}], [])
    assert list(added) == ["also", "day", "rate"]


def test_an_entry_without_a_kind_changes_only_what_it_has() -> None:
    """The rest is the less specific one's, through both steps; without one to change it says nothing."""
    found = merge(PLAN, [{"name": "rate", "amount": 6}], [{"name": "rate", "enforcement": "soft"}])
    (rate,) = [rule_from_json(rule) for rule, _ in found if rule["name"] == "rate"]
    assert (rate.amount, rate.burst, rate.enforcement.value) == (6, 9, "soft")
    assert "gone" not in in_force([{"name": "gone", "amount": 1}], [{"name": "gone", "amount": 2}])


def test_an_entry_without_a_name_is_refused() -> None:
    """It can't be said what it would replace."""
    with pytest.raises(KeyError):
        merge(PLAN, [{"amount": 1}], [])
