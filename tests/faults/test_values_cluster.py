"""Limits on distinct values on a real Redis cluster: a pool and its values are in one slot, wherever that is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from platform_support import Platform
from redis_support import RedisCluster, redis_cluster
from tollkeeper_cli.stack import Servers
from values_support import EXHAUSTED, bring, rule, until_in_force

if TYPE_CHECKING:
    from pathlib import Path

CATALOGUE = """
version: 1
seller: {id: default, name: "Example GmbH", address: ["A 1"], tax_id: DE123456789, invoice_prefix: TK, currency: USD,
  time_zone: UTC}
meters: [{name: active-users, unit: users, aggregation: unique, value_attribute: user, attributes: [case, user, team]}]
plans:
  - {name: plain, currency: USD, billing_interval: {unit: month, count: 1}, limits: []}
tenants:
  - {id: acme, name: Acme, plan: plain, subscription: {start: "2026-01-01T00:00:00Z", anchor: start, time_zone: UTC}}
"""
TEAMS = [f"team-{number}" for number in range(16)]
AMOUNT = 3


@pytest.fixture(autouse=True)
def patient_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six Redis processes and four of ours share two cores: a round trip may take longer than 5 ms."""
    monkeypatch.setenv("TOLLKEEPER_REDIS_BUDGET_MS", "250")


async def places_of(cluster: RedisCluster) -> dict[str, set[str]]:
    """Give, by primary, the hash tags of its pools and of its sets of values."""
    found: dict[str, set[str]] = {}
    for name, primary in (await cluster.owners()).items():
        async with primary.client() as client:
            kinds = {kind: [key async for key in client.scan_iter(match=f"tk:*:{kind}:*")] for kind in "pu"}
        tags = {kind: {key.partition("{")[2].partition("}")[0] for key in keys} for kind, keys in kinds.items()}
        assert tags["p"] == tags["u"], "each pool of values has its set beside it"
        found[name] = tags["u"]
    return found


async def test_values_and_their_pool_share_a_slot(new_empty_database: str, tmp_path: Path) -> None:
    """Over two sidecars and three primaries each team admits its three users, repeated anywhere, and no fourth."""
    async with redis_cluster() as cluster:
        platform = Platform(tmp_path / "p", servers=Servers(database_url=new_empty_database, redis_url=cluster.url))
        try:
            await asyncio.to_thread(platform.start)
            await platform.apply(CATALOGUE)
            second_target = await asyncio.to_thread(platform.add_sidecar, "second")
            limit = rule("users-of-a-team", AMOUNT)
            limit.key.append("team")
            await platform.set_limit("acme", limit)
            async with platform.channel() as first, platform.channel(second_target) as second:
                for channel in (first, second):
                    await until_in_force(channel, "acme", limit.name)
                for number, team in [(number, team) for number in range(AMOUNT) for team in TEAMS]:
                    for channel in (first, second):
                        decision = await bring(channel, "acme", case=limit.name, team=team, user=f"user-{number}")
                        assert decision.allowed, f"{number} of {team}: {decision}"
                for team in TEAMS:
                    for channel in (first, second):
                        decision = await bring(channel, "acme", case=limit.name, team=team, user="one-more")
                        assert decision.reason == EXHAUSTED
            places = await places_of(cluster)
        finally:
            await asyncio.to_thread(platform.stop)
    assert len(places) == 3
    assert sum(map(bool, places.values())) > 1, "sixteen pools are not all on one primary"
    assert sum(map(len, places.values())) == len(TEAMS)
