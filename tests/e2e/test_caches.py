"""Orders to sidecars, levels set by hand, and what a child sees of its parent, from the command line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from operator_support import decided, rows, window
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc

if TYPE_CHECKING:
    from operator_support import Run
    from platform_support import Platform


async def ask(platform: Platform, tenant: str, *, cost: int, peek: bool = False) -> decision_pb2.Decision:
    """Make one call of `op-tokens` with all limits in its answer; again, within a minute, while nobody could decide."""
    request = quota_pb2.CheckQuotaRequest(
        tenant=tenant,
        costs=[quota_pb2.Cost(meter="op-tokens", units=cost)],
        mode=quota_pb2.CHECK_MODE_PEEK if peek else quota_pb2.CHECK_MODE_CONSUME,
        detail=quota_pb2.DETAIL_ALL,
        want_headers=True,
    )
    async with platform.channel() as channel, asyncio.timeout(60):
        while True:
            decision = (await quota_pb2_grpc.QuotaServiceStub(channel).CheckQuota(request, timeout=20)).decision
            if decision.reason != decision_pb2.DECISION_REASON_AUTHORITY_UNREACHABLE:
                return decision


async def until_seen(platform: Platform, tenant: str, limit: str, *, hidden: bool) -> decision_pb2.LimitState:
    """Wait until a call of the tenant meets a limit, with or without its figures."""
    async with asyncio.timeout(30):
        while True:
            for state in (await ask(platform, tenant, cost=1, peek=True)).limits:
                if state.name == limit and state.hidden == hidden:
                    return state
            await asyncio.sleep(0.01)


async def test_sidecars_warm_and_begin_anew_at_an_operators_word(platform: Platform, run: Run) -> None:
    """Every live sidecar is counted; what it leased goes back, what was used stays counted; warming leases again."""
    # The sidecar follows the tenant before its limits change.
    assert decided(run, "quota", "enforce", "tokens=1", "--tenant", "ops")[0] == 0
    await platform.set_limit("ops", window("op-cache", 1_000))
    await until_seen(platform, "ops", "op-cache", hidden=False)
    assert decided(run, "quota", "enforce", "op-tokens=10", "--tenant", "ops")[0] == 0
    live = 1 + len(platform.added)
    for what in ("invalidate", "warm"):
        (told,) = rows(run, "cache", what, "--tenant", "ops")
        assert (told["sidecars"], told["sidecars_silent"], told["tenant"]) == (live, 0, "ops")
        assert told["pools"] >= 1
        (told,) = rows(run, "cache", what)
        assert (told["sidecars"], told["tenant"]) == (live, "all")
    (state,) = rows(run, "quota", "get", "op-cache", "--tenant", "ops")
    assert (state["amount"], state["used"]) == (1_000, 10)
    assert run("cache", "warm", "--tenant", "nobody")[0] == 2
    assert run("quota", "unset", "op-cache", "--tenant", "ops")[0] == 0


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


def figures(state: decision_pb2.LimitState) -> tuple[Any, ...]:
    """Give what is hidden of a parent's limit."""
    return state.amount, state.used, state.used_percent, state.remaining, state.source


async def test_a_parents_figures_are_hidden_from_children_until_shared(platform: Platform, run: Run) -> None:
    """Decision, headers, quota and explanation tell a child that the limit counts and denies, and no figure of it."""
    assert decided(run, "quota", "enforce", "tokens=1", "--tenant", "child")[0] == 0
    await platform.set_limit("family", window("op-house", 50))
    await until_seen(platform, "child", "op-house", hidden=True)
    admitted = await ask(platform, "child", cost=20)
    (state,) = admitted.limits
    assert figures(state) == (0, 0, 0, 0, "")
    assert not admitted.HasField("remaining")
    assert not admitted.headers
    assert state.tenant == "family"
    (row,) = rows(run, "quota", "get", "op-house", "--tenant", "child")
    assert (row["hidden"], row["amount"], row["used"], row["remaining"]) == (True, None, None, None)
    (why,) = [
        row for row in rows(run, "quota", "explain", "op-tokens=31", "--tenant", "child") if row["says"] == "denies"
    ]
    assert (why["limit"], why["amount"], why["balance"], why["allotted"], why["pool_free"]) == (
        "op-house",
        None,
        0,
        0,
        None,
    )
    assert "does not share its figures" in run("quota", "explain", "op-tokens=31", "--tenant", "child")[1]
    (own,) = rows(run, "quota", "get", "op-house", "--tenant", "family")
    assert (own["hidden"], own["amount"], own["used"]) == (False, 50, 20)
    assert run("quota", "set", "op-house", "50", "--shared", "--tenant", "family")[0] == 0
    shown = await until_seen(platform, "child", "op-house", hidden=False)
    assert (shown.amount, shown.used, shown.remaining) == (50, 20, 30)
    assert run("quota", "set", "op-house", "50", "--hidden", "--tenant", "family")[0] == 0
    await until_seen(platform, "child", "op-house", hidden=True)
    assert run("quota", "unset", "op-house", "--tenant", "family")[0] == 0
