"""Orders to sidecars, and levels set by hand, from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from operator_support import decided, rows
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper.quota.v1 import decision_pb2

if TYPE_CHECKING:
    from operator_support import Run
    from platform_support import Platform


async def test_sidecars_warm_and_begin_anew_at_an_operators_word(platform: Platform, run: Run) -> None:
    """Every live sidecar is counted; what it leased goes back, what was used stays counted; warming leases again."""
    assert decided(run, "quota", "enforce", "tokens=10", "--tenant", "ops")[0] == 0
    live = 1 + len(platform.added)
    for what in ("invalidate", "warm"):
        (told,) = rows(run, "cache", what, "--tenant", "ops")
        assert (told["sidecars"], told["sidecars_silent"], told["tenant"]) == (live, 0, "ops")
        assert told["pools"] >= 1
        (told,) = rows(run, "cache", what)
        assert (told["sidecars"], told["tenant"]) == (live, "all")
    (state,) = rows(run, "quota", "get", "tokens-per-day", "--tenant", "ops")
    assert (state["amount"], state["used"] in {0, 10}) == (1_000_000_000, True)
    assert run("cache", "warm", "--tenant", "nobody")[0] == 2


async def test_a_level_is_set_to_what_the_world_has(platform: Platform, run: Run) -> None:
    """The answer has what was before; the reason is required, and the act is in the limit's history."""
    level = limits_pb2.LimitRule(
        name="op-seats",
        meter="requests",
        kind=decision_pb2.LIMIT_KIND_LEVEL,
        amount=10,
        enforcement=decision_pb2.ENFORCEMENT_HARD,
        match=[limits_pb2.AttributeMatch(attribute="case", exact="op-seats")],
    )
    await platform.set_limit("ops", level)
    words = ("quota", "set-level", "op-seats", "7", "--tenant", "ops")
    assert run(*words)[0] == 2
    (told,) = rows(run, *words, "--reason", "counted by hand")
    assert (told["before"], told["units"], told["leased"], told["amount"]) == (0, 7, 0, 10)
    assert rows(run, *words, "--reason", "again")[0]["before"] == 7
    assert run("quota", "set-level", "op-seats", "-1", "--tenant", "ops", "--reason", "x")[0] == 2
    entry = rows(run, "quota", "history", "op-seats", "--tenant", "ops")[0]
    assert entry["action"] == "SetLevel"
    assert run("quota", "unset", "op-seats", "--tenant", "ops")[0] == 0
