"""What operators do from the command line, against a real ledger and a real sidecar."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import pytest
from operator_support import decided, rows, window

if TYPE_CHECKING:
    from operator_support import Run
    from platform_support import Platform

TENANT = "ops"


def enforced(run: Run, units: int) -> int:
    """Take units; gives the exit code. A sidecar that reached no authority took nothing: it is asked again."""
    return decided(run, "quota", "enforce", f"op-tokens={units}", "--tenant", TENANT)[0]


async def test_a_reset_gives_the_full_amount_again_once(platform: Platform, run: Run) -> None:
    """Next round: what was used up passes again, at most the sum in all, audited with who and why."""
    await platform.set_limit(TENANT, window("op-reset", 100))
    assert enforced(run, 100) == 0
    assert enforced(run, 1) == 1
    code, out, err = run("--actor", "ada", "quota", "reset", "op-reset", "--tenant", TENANT, "--note", "as agreed")
    assert (code, err) == (0, ""), out
    assert "1 windows reset" in out
    assert enforced(run, 100) == 0
    assert enforced(run, 1) == 1
    (state,) = rows(run, "quota", "states", "op-reset", "--tenant", TENANT)
    assert (state["round"], state["amount"]) == (1, 100)
    entry = rows(run, "quota", "history", "op-reset", "--tenant", TENANT)[0]
    assert (entry["actor"], entry["action"], entry["note"]) == ("ada", "ResetLimit", "as agreed")
    assert run("quota", "set", "op-reset", "-1", "--tenant", TENANT)[0] == 0
    assert enforced(run, 1_000) == 0
    assert run("quota", "unset", "op-reset", "--tenant", TENANT)[0] == 0


def test_a_limit_is_set_whole_and_what_is_not_named_stays(run: Run) -> None:
    """Windows of several units, zones, anchors, keys are set by options; another one changes only what it names."""
    words = ("quota", "set", "op-whole", "7", "--tenant", TENANT)
    assert run(*words, "--window", "2 weeks")[0] == 2
    options = ("--window", "2 weeks", "--time-zone", "Europe/Berlin", "--anchor", "2026-01-08", "--key", "model")
    code, out, err = run(*words, "--meter", "op-tokens", *options)
    assert (code, err) == (0, ""), out
    assert run("quota", "set", "op-whole", "9", "--anchor", "2026-01-15", "--tenant", TENANT)[0] == 0
    (entry, *_) = rows(run, "quota", "history", "op-whole", "--tenant", TENANT)
    kept = {"unit": "week", "count": 2, "time_zone": "Europe/Berlin", "alignment": "calendar", "anchor": "2026-01-15"}
    after = json.loads(entry["after"]) if isinstance(entry["after"], str) else entry["after"]
    assert (after["window"], after["key"], after["amount"]) == (kept, ["model"], 9)
    assert run("quota", "set", "op-whole", "9", "--key", "", "--tenant", TENANT)[0] == 0
    for wrong in (("--window", "fortnight"), ("--anchor", "someday"), ("--time-zone", "Mars")):
        assert run("quota", "set", "op-whole", "9", *wrong, "--tenant", TENANT)[0] == 2
    assert run("quota", "unset", "op-whole", "--tenant", TENANT)[0] == 0


async def test_explain_names_the_limit_that_denies_and_why_others_do_not_count(platform: Platform, run: Run) -> None:
    """What denies stands first, with what it rests on; a limit that doesn't match says why."""
    await platform.set_limit(TENANT, window("op-why", 10))
    await platform.set_limit(TENANT, window("op-large-only", 10, match="large"))
    assert enforced(run, 10) == 0
    assert enforced(run, 1) == 1
    code, out, err = decided(run, "quota", "explain", "op-tokens=1", "--tenant", TENANT)
    assert (code, err) == (0, "")
    assert "denied: quota_exhausted op-why" in out
    assert "op-why has 0 of 10 left, 1 asked for; from override" in out
    found = rows(run, "quota", "explain", "op-tokens=1", "--tenant", TENANT)
    assert found[0]["limit"] == "op-why"
    assert found[0]["says"] == "denies"
    assert {row["limit"]: row["says"] for row in found}["op-large-only"] == "not: attribute model"
    for name in ("op-why", "op-large-only"):
        assert run("quota", "unset", name, "--tenant", TENANT)[0] == 0


async def test_explain_names_every_limit_that_would_deny(platform: Platform, run: Run) -> None:
    """Beside the limit that decided stand the others that lack units, and which of them no waiting helps."""
    for name, amount in (("op-first", 5), ("op-second", 7), ("op-third", 100)):
        await platform.set_limit(TENANT, window(name, amount))
    assert enforced(run, 5) == 0
    _, out, _ = decided(run, "quota", "explain", "op-tokens=6", "--tenant", TENANT)
    said = {row["limit"]: row["says"] for row in rows(run, "quota", "explain", "op-tokens=6", "--tenant", TENANT)}
    assert (said["op-first"], said["op-second"], said["op-third"]) == ("denies", "denies too", "counts")
    assert "op-first never admits more than 5 at once" in out
    assert "op-second never" not in out
    for name in ("op-first", "op-second", "op-third"):
        assert run("quota", "unset", name, "--tenant", TENANT)[0] == 0


async def test_tables_fit_a_narrow_terminal(platform: Platform, run: Run) -> None:
    """At 80 columns no line is wider, and every figure stands whole on one line."""
    await platform.set_limit(TENANT, window("op-wide", 9_000_000_000))
    assert enforced(run, 1_234_567_890) == 0
    for words in (
        ("quota", "get", "op-wide", "--tenant", TENANT),
        ("quota", "states", "op-wide", "--tenant", TENANT),
        ("quota", "explain", "op-tokens=1", "--tenant", TENANT),
        ("quota", "history", "op-wide", "--tenant", TENANT),
        ("ledger", "state"),
    ):
        code, out, _ = run(*words)
        assert code == 0, words
        assert max(map(len, out.splitlines())) <= 80, out
    shown = run("quota", "get", "op-wide", "--tenant", TENANT)[1]
    assert re.search(r"9,000,000,000 +1,234,567,890 ", shown), shown
    assert run("quota", "unset", "op-wide", "--tenant", TENANT)[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("quota", "reset", "nothing", "--tenant", TENANT), 2, "this tenant's limits"),
        (("quota", "reset", "op", "--tenant", "nobody"), 2, "declare it in the catalogue"),
        (("quota", "reset", "op", "--key", "a", "--key", "b", "--tenant", TENANT), 2, ""),
        (("quota", "explain", "op-tokens=x", "--tenant", TENANT), 2, "whole number"),
        (("quota", "explain", "op-tokens=1"), 2, "TOLLKEEPER_TENANT"),
        (("--ledger", "127.0.0.1:1", "ledger", "state"), 3, "doesn't answer"),
    ],
)
def test_errors_name_the_remedy(run: Run, words: tuple[str, ...], code: int, says: str) -> None:
    """Wrong usage exits 2, an unreachable server 3, each with what to do."""
    found, _, err = run(*words)
    assert found == code, err
    assert says in err


def test_nothing_that_is_expired_is_turned_twice(run: Run) -> None:
    """A repeat of reset-all-expired prints nothing, but for windows that ended since: others' are by the minute."""
    turned: set[tuple[str, str, str]] = set()
    while True:
        minute = time.time() // 60
        for _ in range(2):
            again = {(row["tenant"], row["limit"], row["end"]) for row in rows(run, "quota", "reset-all-expired")}
            assert not again & turned
            turned |= again
        if time.time() // 60 == minute:
            break
    assert not again
    assert run("quota", "reset-all-expired", "--tenant", TENANT)[:2] == (0, "")


def test_a_ledger_that_issues_says_so(run: Run) -> None:
    """Neither a restore nor a jump of the clock stops it; confirming nothing changes nothing."""
    assert run("ledger", "state")[0] == 0
    assert rows(run, "ledger", "confirm-restore")[0] == {"timeline": 1, "was_frozen": False}
    assert rows(run, "ledger", "confirm-clock")[0]["was_held"] is False
