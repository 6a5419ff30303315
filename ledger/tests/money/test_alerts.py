"""Which thresholds a figure has reached, and which a limit and a tenant have."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.alerts import DEFAULT_AT, is_mailed, reached, rules_in_force, threshold_of, thresholds_of
from tollkeeper_ledger.domain.limits import rule_from_json


@given(base=st.integers(1, 2**53), percent=st.integers(1, 10_000), value=st.integers(0, 2**60))
def test_a_share_is_reached_exactly_where_it_is(base: int, percent: int, value: int) -> None:
    """Whole numbers alone decide, at any size: not a unit early, not one late."""
    assert bool(reached([f"{percent}%"], Decimal(value), base=Decimal(base))) == (value * 100 >= base * percent)


def test_of_nothing_no_share_is_reached_but_amounts_are() -> None:
    """A limit of 0 has no percentages."""
    assert reached(["1%", "5"], Decimal(5), base=Decimal(0)) == ("5",)


@pytest.mark.parametrize(("text", "form"), [("90%", "90%"), ("090.0%", "90%"), ("7.50", "7.5"), ("5000", "5000")])
def test_a_threshold_has_one_form(text: str, form: str) -> None:
    """However it is written it is the same one, so that it is told of once."""
    assert threshold_of(text) == form


@pytest.mark.parametrize("text", ["", "%", "0", "0%", "-1", "1e3", "10001%", "90 %", "1.", "NaN", "٣%"])
def test_what_is_no_threshold_is_refused(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match=r"is neither|is out of range"):
        threshold_of(text)


@pytest.mark.parametrize(
    ("unit", "key", "said", "at", "mailed"),
    [
        ("day", [], None, DEFAULT_AT, True),
        ("minute", [], None, DEFAULT_AT, False),
        ("minute", ["user"], None, (), False),
        ("day", ["user"], None, DEFAULT_AT, False),
        ("minute", ["user"], ["5"], ("5",), False),
        ("month", [], [], (), True),
    ],
)
def test_which_thresholds_a_limit_has(
    unit: str, key: list[str], said: list[str] | None, at: tuple[str, ...], *, mailed: bool
) -> None:
    """Its own, or 75, 90 and 100 %; of short windows of keys none unless it says so."""
    told: dict[str, Any] = {"window": {"unit": unit}, "key": key} | ({} if said is None else {"alerts": said})
    rule = rule_from_json({"name": "l", "meter": "m", "kind": "window", "amount": 10, **told})
    assert (thresholds_of(rule), is_mailed(rule)) == (at, mailed)


def test_token_buckets_have_no_thresholds() -> None:
    """There is no window that they could be told of once in."""
    rule = rule_from_json({"name": "l", "meter": "m", "kind": "token_bucket", "amount": 9, "refill": {"unit": "hour"}})
    assert thresholds_of(rule) == ()


def test_own_rules_replace_those_about_the_same() -> None:
    """Meter by meter, and spend; a rule without thresholds tells nothing."""
    plan = [
        {"kind": "spend", "amount": "1", "at": ["5%"]},
        {"kind": "meter", "meter": "a", "amount": "1", "at": ["5%"]},
    ]
    own = [{"kind": "spend", "amount": "2", "at": ["6%"]}, {"kind": "meter", "meter": "a", "amount": "1", "at": []}]
    assert rules_in_force(plan, own) == [own[0]]
