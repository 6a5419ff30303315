"""A Postgres that is set back under a whole platform of real processes: usage heals without anybody's doing."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from set_back_support import History, running_platform, state_of
from tollkeeper.quota.v1 import quota_pb2, quota_pb2_grpc, usage_pb2
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from platform_support import Platform
    from tollkeeper_cli.embedded import EmbeddedPostgres

CATALOGUE = "tests/e2e/catalogue.yaml"
TENANT = "code"
HEALED_S_MAX = 60.0
PATIENCE_S = 60.0


@pytest.fixture
def platform(
    new_empty_database: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    """Run a platform that isn't embedded: its sidecar keeps for a day what a restored Postgres may lack."""
    monkeypatch.setenv("TOLLKEEPER_USAGE_LOG_BYTES", str(64 << 20))
    with running_platform(tmp_path_factory.mktemp("set-back"), new_empty_database, redis_url) as platform:
        yield platform


class Recorder:
    """Records usage at the sidecar, ten records in a call, and remembers what was acknowledged."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.acknowledged: list[str] = []

    async def record(self, calls: int, *, at_ledger: bool = False) -> None:
        """Make so many calls; with `at_ledger` each is acknowledged once Postgres has committed it."""
        async with self._platform.channel() as channel:
            stub = quota_pb2_grpc.QuotaServiceStub(channel)
            for _ in range(calls):
                request = self._request(at_ledger=at_ledger)
                answer = await stub.RecordUsage(request, timeout=PATIENCE_S)
                assert {result.outcome for result in answer.results} == {usage_pb2.RECORD_OUTCOME_RECORDED}
                self.acknowledged += [record.id for record in request.records]

    async def begin(self) -> None:
        """Wait until the sidecar knows the tenant."""
        async with self._platform.channel() as channel:
            stub = quota_pb2_grpc.QuotaServiceStub(channel)
            request = quota_pb2.CheckQuotaRequest(
                tenant=TENANT, costs=[quota_pb2.Cost(meter="requests", units=1)], mode=quota_pb2.CHECK_MODE_PEEK
            )

            async def known() -> bool:
                return (await stub.CheckQuota(request, timeout=PATIENCE_S)).decision.allowed

            await wait_until(known)

    def _request(self, *, at_ledger: bool) -> usage_pb2.RecordUsageRequest:
        records = [
            usage_pb2.UsageRecord(
                id=secrets.token_hex(8),
                tenant=TENANT,
                event_time=self._platform.now(),
                quantities=[usage_pb2.Quantity(meter="requests", units=1)],
            )
            for _ in range(10)
        ]
        acknowledgement = usage_pb2.ACKNOWLEDGEMENT_LEDGER if at_ledger else usage_pb2.ACKNOWLEDGEMENT_LOCAL
        return usage_pb2.RecordUsageRequest(records=records, acknowledgement=acknowledgement)

    async def stored(self) -> Counter[str]:
        """Count what is stored by id; nothing while the ledger's connections to Postgres are broken."""
        try:
            return Counter(await self._platform.stored_ids(TENANT))
        except grpc.aio.AioRpcError:
            return Counter()

    async def is_exact(self) -> bool:
        """Tell whether exactly what was acknowledged is stored, each record once."""
        return await self.stored() == Counter(self.acknowledged)


async def test_usage_is_exact_again_after_postgres_was_set_back(
    platform: Platform,
    new_empty_database: str,
    postgres: EmbeddedPostgres,
    pytestconfig: pytest.Config,
    report: Callable[[str], None],
) -> None:
    """What was acknowledged, some of it as committed, is stored again, each record once, without anybody's doing.

    Sidecars find that the ledger knows less than they were told, and send again what they keep for that. The witness
    tells that Postgres went back: nothing is issued from open windows.
    """
    history = History(postgres.url, new_empty_database)
    recorder = Recorder(platform)
    await platform.apply(pytestconfig.rootpath.joinpath(CATALOGUE).read_text())
    await recorder.begin()
    await recorder.record(20)
    await recorder.record(1, at_ledger=True)
    platform.stack.kill_ledger()
    await history.back_up()
    kept = len(recorder.acknowledged)
    platform.stack.start_ledger()
    await recorder.record(20)
    await recorder.record(1, at_ledger=True)
    await wait_until(recorder.is_exact)
    lost = len(recorder.acknowledged) - kept
    await history.set_back()
    began_s = time.monotonic()
    await recorder.record(20)
    await wait_until(recorder.is_exact, seconds_max=HEALED_S_MAX)
    healed_s = time.monotonic() - began_s
    async with platform.ledger() as channel:
        state = await state_of(channel)
    assert (state.timeline, state.HasField("frozen_before")) == (2, True)
    report(f"Postgres set back: {lost} records lost, all stored once after {healed_s:.1f} s")
