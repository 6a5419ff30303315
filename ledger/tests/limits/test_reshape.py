"""When a change of kind or key comes into force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tollkeeper_ledger.domain.issuing import AHEAD_US_MAX
from tollkeeper_ledger.domain.limits import LimitKind, Source, rule_from_json
from tollkeeper_ledger.domain.reshape import Hold, Use, hold_after, limits_in_turn

if TYPE_CHECKING:
    from collections.abc import Mapping

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
NOW_US = 20_000 * DAY_US + 10 * HOUR_US
MIDNIGHT_US = 20_001 * DAY_US
FOREVER_US = 253_402_214_400_000_000
UNUSED = Use(is_used=False, last_end_us=0)
USED = Use(is_used=True, last_end_us=MIDNIGHT_US)
DAILY: dict[str, Any] = {
    "name": "limit", "meter": "m", "kind": "window", "amount": 100, "window": {"unit": "day"}
}  # fmt: skip
HOURLY = {**DAILY, "window": {"unit": "hour"}}
BY_USER = {**DAILY, "key": ["user"], "amount": 7}
BUCKET: dict[str, Any] = {
    "name": "limit", "meter": "m", "kind": "token_bucket", "amount": 5, "refill": {"unit": "second"}
}  # fmt: skip
SEATS: dict[str, Any] = {"name": "limit", "meter": "m", "kind": "level", "amount": 3}
FLIGHTS = {**SEATS, "kind": "concurrency"}


def after(
    before: Mapping[str, Any],
    rule: Mapping[str, Any],
    use: Use = USED,
    *,
    hold: Hold | None = None,
    now_us: int = NOW_US,
) -> Hold | None:
    """Declare a rule instead of another one, for a tenant without billing periods."""
    return hold_after(before, hold, rule, use, schedule=None, now_us=now_us)


@pytest.mark.parametrize("rule", [BY_USER, BUCKET, SEATS, FLIGHTS])
def test_another_kind_or_key_waits_for_the_windows_end(rule: dict[str, Any]) -> None:
    """Nothing is given beside the window that is open: the rule before is in force until it ends."""
    held = after(DAILY, rule)
    assert held is not None
    assert held.until_us == MIDNIGHT_US


@pytest.mark.parametrize("rule", [BY_USER, BUCKET, SEATS])
def test_what_was_never_used_changes_at_once(rule: dict[str, Any]) -> None:
    """Without a window there is nothing to wait for."""
    assert after(DAILY, rule, UNUSED) is None
    assert after(SEATS, DAILY, UNUSED) is None


def test_amounts_lengths_and_matches_are_no_other_limit() -> None:
    """Where kind and key stay, nothing is held: windows follow by themselves."""
    for change in ({"amount": 1}, {"window": {"unit": "month"}}, {"enforcement": "soft"}, {"match": []}, {"key": []}):
        assert after(DAILY, {**DAILY, **change}) is None
    assert after(BUCKET, {**BUCKET, "amount": 9, "burst": 1}) is None


def test_within_a_kind_everything_but_the_key_changes_at_once() -> None:
    """The window that is open has the new amount; of another kind it keeps its own."""
    held = after(DAILY, BY_USER)
    assert held is not None
    assert held.rule == {**DAILY, "amount": 7, "key": []}
    of_another_kind = after(DAILY, BUCKET)
    assert of_another_kind is not None
    assert of_another_kind.rule == DAILY


def test_a_window_that_may_be_leased_already_counts() -> None:
    """Five seconds before its end the next window may be open, and windows of a longer length before go on."""
    held = after(DAILY, BY_USER, now_us=MIDNIGHT_US - AHEAD_US_MAX)
    assert held is not None
    assert held.until_us == MIDNIGHT_US + DAY_US
    longer = after(HOURLY, BY_USER, Use(is_used=True, last_end_us=NOW_US + 3 * DAY_US))
    assert longer is not None
    assert longer.until_us == NOW_US + 3 * DAY_US
    rolling = {**DAILY, "window": {"unit": "day", "alignment": "rolling"}}
    first_use = after(rolling, BY_USER, Use(is_used=True, last_end_us=NOW_US - 1))
    assert first_use is not None
    assert first_use.until_us == NOW_US + AHEAD_US_MAX + DAY_US


def test_a_bucket_becomes_a_window_where_one_begins() -> None:
    """A bucket has no turn: the window's own is taken, so that the bucket's tokens are not beside a window's units."""
    held = after(BUCKET, DAILY, Use(is_used=True, last_end_us=0))
    assert held == Hold(rule=BUCKET, until_us=MIDNIGHT_US)
    assert after(BUCKET, {**BUCKET, "key": ["user"]}, Use(is_used=True, last_end_us=0)) is None
    assert after(BUCKET, SEATS, Use(is_used=True, last_end_us=0)) is None


@pytest.mark.parametrize("rule", [DAILY, BUCKET, FLIGHTS, {**SEATS, "key": ["user"]}])
def test_a_level_that_was_used_stays_what_it_is(rule: dict[str, Any]) -> None:
    """What is stored has no turn: no other kind or key gives the same units again."""
    held = after(SEATS, rule, Use(is_used=True, last_end_us=FOREVER_US))
    assert held is not None
    assert held.until_us == FOREVER_US


def test_a_second_change_does_not_move_the_first_ones_time() -> None:
    """However often it changes meanwhile, what is held ends when it ends, and comes back where it is declared again."""
    first = after(DAILY, BY_USER)
    assert first is not None
    by_team = {**DAILY, "key": ["team"]}
    later = after(BY_USER, by_team, hold=first, now_us=NOW_US + HOUR_US)
    assert later == Hold(rule={**DAILY, "key": []}, until_us=MIDNIGHT_US)
    assert after(by_team, {**DAILY, "amount": 1}, hold=later, now_us=NOW_US + HOUR_US) is None


def test_a_hold_that_is_over_holds_nothing() -> None:
    """After its end the rule that followed is the present one."""
    first = after(DAILY, BY_USER)
    assert after(BY_USER, BY_USER, hold=first, now_us=MIDNIGHT_US) is None
    assert after(BY_USER, {**BY_USER, "amount": 8}, hold=first, now_us=MIDNIGHT_US + 1) is None
    again = after(BY_USER, DAILY, hold=first, now_us=MIDNIGHT_US)
    assert again is not None
    assert again.until_us == MIDNIGHT_US + DAY_US


def test_sidecars_are_told_both_one_after_the_other() -> None:
    """The one ends where the other begins; their own validity still counts."""
    rule = rule_from_json({**BUCKET, "valid_from": "2020-01-01T00:00:00+00:00"})
    hold = Hold(rule=DAILY, until_us=MIDNIGHT_US)
    held, next_one = limits_in_turn(rule, Source.PLAN, hold, amount_version=3, shape=2)
    assert (held.rule.kind, held.rule.valid_to_us, held.until_us) == (LimitKind.WINDOW, MIDNIGHT_US, MIDNIGHT_US)
    assert (next_one.rule.kind, next_one.rule.valid_from_us) == (LimitKind.TOKEN_BUCKET, MIDNIGHT_US)
    assert next_one.from_us == MIDNIGHT_US
    ended = Hold(rule={**DAILY, "valid_to": "2020-01-01T00:00:00+00:00"}, until_us=MIDNIGHT_US)
    assert (
        limits_in_turn(rule, Source.PLAN, ended, amount_version=3, shape=2)[0].rule.valid_to_us == 1_577_836_800_000_000
    )
