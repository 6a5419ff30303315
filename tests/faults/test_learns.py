"""Postgres is set back under real processes, and a limit learns: issuing goes on without anybody's doing."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from set_back_support import History, running_platform, state_of
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc
from tollkeeper_cli.stack import CHANNEL_OPTIONS
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from platform_support import Platform
    from tollkeeper_cli.embedded import EmbeddedPostgres

AMOUNT = 6_000
PATIENCE_S = 60.0
HEALED_S_MAX = 120.0
CATALOGUE = f"""
version: 1
seller: {{id: default, name: Example, currency: USD, time_zone: UTC}}
meters: [{{name: tokens, unit: tokens, aggregation: sum}}]
plans:
  - name: learning
    currency: USD
    billing_interval: month
    limits:
      - {{name: year, meter: tokens, kind: window, amount: {AMOUNT}, window: year, after_restore: learn}}
tenants: [{{id: acme, name: Acme, plan: learning, subscription: {{start: "2026-01-01T00:00:00Z", anchor: start}}}}]
"""


@pytest.fixture
def platform(
    new_empty_database: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    """Run a platform whose sidecars have five seconds to say what they have."""
    monkeypatch.setenv("TOLLKEEPER_LEARNING_S", "5")
    monkeypatch.setenv("TOLLKEEPER_USAGE_LOG_BYTES", str(64 << 20))
    with running_platform(tmp_path_factory.mktemp("learns"), new_empty_database, redis_url) as platform:
        yield platform


class Caller:
    """Spends at one sidecar and counts what was admitted."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.admitted = 0
        self.reasons: Counter[str] = Counter()

    async def spend(self, calls: int, *, units: int = 10) -> None:
        """Make so many calls, one after the other."""
        async with grpc.aio.insecure_channel(self._target, options=CHANNEL_OPTIONS) as channel:
            stub = quota_pb2_grpc.QuotaServiceStub(channel)
            for _ in range(calls):
                request = quota_pb2.CheckQuotaRequest(
                    tenant="acme",
                    costs=[quota_pb2.Cost(meter="tokens", units=units)],
                    mode=quota_pb2.CHECK_MODE_CONSUME,
                )
                decision = (await stub.CheckQuota(request, timeout=PATIENCE_S)).decision
                self.admitted += units * decision.allowed
                self.reasons[decision_pb2.DecisionReason.Name(decision.reason)] += 1

    async def can_spend(self) -> bool:
        """Spend once; tell whether that was admitted."""
        before = self.admitted
        await self.spend(1)
        return self.admitted > before

    async def is_exhausted(self) -> bool:
        """Spend a little; tell whether the ledger or a pool has proved that nothing is left, for one unit."""
        self.reasons.clear()
        await self.spend(20, units=1)
        return self.reasons.keys() == {"DECISION_REASON_QUOTA_EXHAUSTED"}


async def is_set_back(platform: Platform) -> bool:
    """Tell whether the ledger has noticed."""
    async with platform.ledger() as channel:
        try:
            return (await state_of(channel)).timeline > 1
        except grpc.aio.AioRpcError:
            return False  # the connections are gone; the ledger takes new ones


async def test_a_limit_that_learns_is_issued_from_again_by_itself(
    platform: Platform, new_empty_database: str, postgres: EmbeddedPostgres, report: Callable[[str], None]
) -> None:
    """Postgres is set back under three sidecars, one of which is stopped meanwhile and says nothing.

    The two others say what they have; then the rest of the limit is issued, to the last unit, although nobody
    confirmed. Admitted is at most the limit and what the stopped one had.
    """
    history = History(postgres.url, new_empty_database)
    await platform.apply(CATALOGUE)
    targets = [platform.target, platform.add_sidecar("two"), platform.add_sidecar("three")]
    first, second, silent = callers = [Caller(target) for target in targets]
    for caller in callers:
        await wait_until(caller.can_spend)
    platform.stack.kill_ledger()
    await history.back_up()
    platform.stack.start_ledger()
    for caller in callers:
        await wait_until(caller.can_spend)
        await caller.spend(60)
    before = sum(caller.admitted for caller in callers)
    paused = platform.added[1].pid
    os.kill(paused, signal.SIGSTOP)
    try:
        await history.set_back()
        await wait_until(lambda: is_set_back(platform))
        for caller in (first, second):
            await wait_until(caller.is_exhausted, seconds_max=HEALED_S_MAX)
    finally:
        os.kill(paused, signal.SIGCONT)
    living = first.admitted + second.admitted
    assert sum(caller.admitted for caller in callers) > before, "issuing went on"
    await wait_until(silent.is_exhausted, seconds_max=HEALED_S_MAX)
    total = living + silent.admitted
    assert total <= AMOUNT + silent.admitted
    async with platform.ledger() as channel:
        assert (await state_of(channel)).HasField("frozen_before"), "nobody confirmed"
    report(
        f"Postgres set back, limit that learns: {before} admitted before, {total} of {AMOUNT} in the end,"
        f" {silent.admitted} of them at the sidecar that said nothing"
    )
