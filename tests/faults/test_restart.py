"""What a sidecar that is killed leaves to the next process on its volume, with real processes."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import pytest
from platform_support import AddedSidecar, Platform
from restart_support import UNREACHABLE, Caller, has_snapshot_of, until, yearly
from tollkeeper.quota.v1 import quota_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CATALOGUE = "tests/e2e/catalogue.yaml"
RESERVE = quota_pb2.CHECK_MODE_RESERVE


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Platform]:
    """Run a platform whose processes get killed."""
    platform = Platform(tmp_path_factory.mktemp("restart"))
    try:
        platform.start()
        asyncio.run(platform.apply((pytestconfig.rootpath / CATALOGUE).read_text()))
        yield platform
    finally:
        platform.stop()


@pytest.fixture
def sidecar(platform: Platform) -> Iterator[AddedSidecar]:
    """Run one more sidecar, that the test may kill and start."""
    sidecar = AddedSidecar(platform.stack, secrets.token_hex(2), {})
    sidecar.start()
    yield sidecar
    sidecar.stop()


async def test_a_cold_start_admits_what_was_kept_and_not_one_more(
    platform: Platform, sidecar: AddedSidecar, report: Callable[[str], None]
) -> None:
    """Killed and started while ledger and Redis are down, a sidecar spends what it had kept and not one unit more.

    It ends its reservation; with both back exactly the rest is admitted, and never more than the limit.
    """
    name, amount = "cold", 20_000
    await platform.set_limit("shared", yearly(name, amount))
    caller = Caller(platform, sidecar, name)
    await caller.begin()
    await caller.spend(10, 400)
    held = (await caller.call(10, RESERVE)).reservation.token
    await until(lambda: has_snapshot_of(sidecar, name), "a snapshot that knows the limit")
    await caller.call(1, RESERVE)
    await asyncio.to_thread(sidecar.kill)
    await asyncio.to_thread(platform.stack.kill_ledger)
    await asyncio.to_thread(platform.stack.kill_valkey)
    before = caller.admitted
    try:
        await asyncio.to_thread(sidecar.start)
        denial = await caller.spend(1, amount)
        kept = caller.admitted - before
        again = [(await caller.call(1)).decision for _ in range(20)]
        record = await caller.settle(held, 10)
    finally:
        await asyncio.to_thread(platform.stack.start_valkey)
        await asyncio.to_thread(platform.stack.start_ledger)
    assert (UNREACHABLE, {UNREACHABLE}) == (denial.reason, {decision.reason for decision in again})
    assert kept > 0
    await caller.exhaust()
    stranded = amount - caller.admitted
    report(f"cold start: {kept} units kept, {stranded} of {amount} stranded by the kill")
    assert 0 <= stranded < amount // 10
    await caller.until_stored(record)
