"""Subscriptions, coupons, grants and what-if against servers that answer from memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_servers import FakeLedger

    Tollkeeper = Callable[..., int]


def test_a_subscription_is_created_as_asked(
    tollkeeper: Tollkeeper, ledger: FakeLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left out is left to the plan; the answer is shown in every form."""
    words = ("subscription", "create", "--tenant", "code", "--plan", "pro", "--seats", "5", "-o", "json")
    assert tollkeeper(*words) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["tenant"], row["plan"], row["state"], row["quantity"]) == ("code", "pro", "active", 5)
    assert tollkeeper("subscription", "create", "--tenant", "code", "--plan", "pro", "--trial-days", "0") == 0
    first, second = ledger.requests
    assert (first.quantity, first.HasField("trial_days"), second.HasField("trial_days")) == (5, False, True)
    assert first.request_id != second.request_id


def test_a_change_says_only_what_was_asked(tollkeeper: Tollkeeper, ledger: FakeLedger) -> None:
    """Seats alone leave the plan, a plan alone the seats; the time is now unless said."""
    assert tollkeeper("subscription", "change", "--tenant", "code", "--seats", "0") == 0
    assert tollkeeper("subscription", "change", "--tenant", "code", "--plan", "big", "--at", "period_end") == 0
    seats, plan = ledger.requests
    assert (seats.plan, seats.HasField("quantity"), seats.quantity, seats.at) == ("", True, 0, "now")
    assert (plan.plan, plan.HasField("quantity"), plan.at) == ("big", False, "period_end")


def test_changes_to_come_are_told_listed_and_taken_back(
    tollkeeper: Tollkeeper, ledger: FakeLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    """A time goes as a time, not as a word; what is none is a usage error; the listing shows what will be."""
    assert tollkeeper("subscription", "change", "--tenant", "code", "--plan", "big", "--at", "2031-05-01") == 0
    assert tollkeeper("subscription", "unschedule", "--tenant", "code", "--at", "2031-05-01T00:00:00Z") == 0
    change, undo = ledger.requests
    assert (change.at, change.at_time.seconds, undo.at_time) == ("", 1_935_360_000, change.at_time)
    capsys.readouterr()
    assert tollkeeper("subscription", "scheduled", "-o", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["tenant"], row["plan"], row["plan_version"], row["quantity"]) == ("code", "big", 2, 3)
    assert row["at_time"].startswith("2023-11-16")
    for wrong in (("change", "--plan", "big", "--at", "soon"), ("unschedule",), ("pause", "--at", "")):
        assert tollkeeper("subscription", wrong[0], "--tenant", "code", *wrong[1:]) == 2


def test_a_trial_is_ended_and_states_are_filtered(tollkeeper: Tollkeeper, ledger: FakeLedger) -> None:
    """The trial of the tenant that is named; the listing asks for the state that is named."""
    assert tollkeeper("subscription", "activate", "--tenant", "code") == 0
    assert tollkeeper("subscription", "list", "--state", "past_due") == 0
    trial, listing = ledger.requests
    assert (trial.tenant, listing.state, listing.tenant) == ("code", "past_due", "")


def test_an_end_is_shown(tollkeeper: Tollkeeper, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever cancels sees when it ends."""
    assert tollkeeper("subscription", "cancel", "--tenant", "code", "--at", "period_end", "-o", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["ends_at"].startswith("2023-11-16")


def test_coupons_and_grants_print_their_ids(
    tollkeeper: Tollkeeper, ledger: FakeLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Amounts are minor units; what is granted has its history."""
    assert tollkeeper("subscription", "coupon", "Spring", "--tenant", "code", "--percent", "20", "--invoices", "3") == 0
    assert tollkeeper("grant", "create", "500", "--tenant", "code", "--currency", "USD", "--recurs") == 0
    assert capsys.readouterr().out.split() == ["coupon-1", "grant-1"]
    coupon, grant = ledger.requests
    assert (coupon.name, coupon.percent, coupon.periods) == ("Spring", "20", 3)
    assert (grant.amount, grant.currency, grant.meter, grant.recurs) == (500, "USD", "", True)
    assert tollkeeper("grant", "history", "--tenant", "code", "-o", "json") == 0
    assert [(row["amount"], row["balance"]) for row in json.loads(capsys.readouterr().out)] == [(500, 500), (-300, 200)]
    assert tollkeeper("grant", "list", "--tenant", "code") == 0


@pytest.mark.parametrize(
    "words",
    [
        ["subscription", "create", "--tenant", "code"],
        ["subscription", "create", "--plan", "pro"],
        ["subscription", "change", "--tenant", "code"],
        ["subscription", "cancel", "--tenant", "code", "--at", "someday"],
        ["grant", "create", "0", "--tenant", "code", "--currency", "USD"],
        ["rate"],
        ["rate", "--what-if", "plan.yaml"],
    ],
)
def test_wrong_usage_asks_nobody(tollkeeper: Tollkeeper, ledger: FakeLedger, tmp_path: Path, words: list[str]) -> None:
    """What is missing or unknown is exit code 2, before anything is sent."""
    (tmp_path / "plan.yaml").write_text("plans: []")
    assert tollkeeper(*words) == 2
    assert ledger.requests == []


def test_a_month_under_another_plan(tollkeeper: Tollkeeper, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each tenant's difference is shown, and their sum below a table; a refusal is exit code 2."""
    plan = tmp_path / "plan.yaml"
    plan.write_text("version: 1\nplans: []\n")
    words = ("rate", "--what-if", str(plan), "--period", "2026-10")
    assert tollkeeper(*words, "-o", "json") == 0
    assert [(row["tenant"], row["difference_minor"]) for row in json.loads(capsys.readouterr().out)] == [
        ("code", 3_600),
        ("conv", -100),
    ]
    assert tollkeeper(*words) == 0
    assert "2 periods: 71.00" in capsys.readouterr().out
    plan.write_text("version: 1\n")
    assert tollkeeper(*words) == 2
