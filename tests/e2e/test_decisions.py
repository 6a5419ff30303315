"""Calls that a limit denied, from the sidecar to the command line."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

import grpc
from limit_rules import yearly
from tollkeeper.ledger.v1 import decisions_pb2
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc
from waiting import wait_until

if TYPE_CHECKING:
    from operator_support import Run
    from platform_support import Platform

TENANT = "tables"


async def test_a_denied_call_is_listed_with_what_it_met(platform: Platform, more_sidecars: list[str], run: Run) -> None:
    """Counts are exact over two sidecars; who called is a pseudonym, and what no meter declares is nowhere.

    A limit that says `off` is counted further and nothing more is kept.
    """
    name = f"kept-{secrets.token_hex(4)}"
    person = f"ann-{name}@example.com"
    rule = yearly(name, 5, meter="private-calls", site=name)
    rule.decision_log = decisions_pb2.DECISION_LOG_ALL
    await platform.set_limit(TENANT, rule)

    async def call(target: str, units: int) -> decision_pb2.Decision:
        request = quota_pb2.CheckQuotaRequest(
            tenant=TENANT,
            costs=[quota_pb2.Cost(meter="private-calls", units=units)],
            attributes={"person": person, "site": name},
        )
        async with platform.channel(target) as channel:
            return (await quota_pb2_grpc.QuotaServiceStub(channel).CheckQuota(request, timeout=20)).decision

    async def is_denied(target: str, units: int = 6) -> bool:
        return (await call(target, units)).reason == decision_pb2.DECISION_REASON_COST_EXCEEDS_LIMIT

    def told(*words: str) -> list[dict[str, Any]]:
        code, out, err = run("violations", *words, "--tenant", TENANT, "--name", name, "-o", "json")
        assert code == 0, err
        rows: list[dict[str, Any]] = json.loads(out)
        return rows

    async def are_counted(count: int) -> bool:
        rows = told("counts")
        return count == sum(row["count"] for row in rows if row["reason"] == "cost_exceeds_limit")

    targets = [platform.target, more_sidecars[0]]
    for target in targets:
        await wait_until(lambda target=target: is_denied(target), "the limit", away=(grpc.aio.AioRpcError,))
    # What tests before this one left in the sidecars' buffers is told by now.
    await wait_until(lambda: are_counted(2), "a denial at each")
    for target in targets:
        for _ in range(4):
            assert await is_denied(target, 7)
    await wait_until(lambda: are_counted(10), "ten denials")
    rows = [row for row in told("list") if row["units"] != 6]
    assert len(rows) == 8
    assert {(row["limit"], row["reason"], row["units"], row["amount"], row["caller"]) for row in rows} == {
        (name, "cost_exceeds_limit", 7, 5, TENANT)
    }
    (shown,) = {tuple(sorted(row["attributes"].items())) for row in rows}
    ((attribute, pseudonym),) = shown
    assert (attribute, pseudonym[:3], len(pseudonym)) == ("person", "p1.", 25)
    assert run("quota", "set", name, "5", "--tenant", TENANT, "--decision-log", "off")[0] == 0
    count = 10

    async def is_off() -> bool:
        nonlocal count
        for target in targets:
            assert await is_denied(target)
        kept, count = len(told("list")), count + len(targets)
        await wait_until(lambda: are_counted(count), "every denial")
        return len(told("list")) == kept

    await wait_until(is_off, "a limit that keeps no calls")
