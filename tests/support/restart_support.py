"""Sidecars that are killed and started again on their volume, in tests with real processes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import grpc
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc, usage_pb2

if TYPE_CHECKING:
    from platform_support import AddedSidecar, Platform

PATIENCE_S = 60.0
METER = "requests"
"""No plan of the catalogue limits it."""
UNREACHABLE = decision_pb2.DECISION_REASON_AUTHORITY_UNREACHABLE
EXHAUSTED = decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED


def seats(name: str, amount: int) -> limits_pb2.LimitRule:
    """Describe a hard level for calls whose `case` is its name."""
    return limits_pb2.LimitRule(
        name=name,
        meter=METER,
        kind=decision_pb2.LIMIT_KIND_LEVEL,
        amount=amount,
        enforcement=decision_pb2.ENFORCEMENT_HARD,
        failure_policy=decision_pb2.FAILURE_POLICY_CLOSED,
        match=[limits_pb2.AttributeMatch(attribute="case", exact=name)],
    )


class Caller:
    """Makes calls of one tenant and one case to one sidecar, and counts what was admitted."""

    def __init__(self, platform: Platform, sidecar: AddedSidecar | Platform, case: str, *, meter: str = METER) -> None:
        self._platform, self._sidecar, self.case, self._meter = platform, sidecar, case, meter
        self.admitted = 0

    async def call(self, units: int, mode: quota_pb2.CheckMode.ValueType = 0) -> quota_pb2.CheckQuotaResponse:
        """Make one call; a sidecar that is still starting is asked again."""
        until = time.monotonic() + PATIENCE_S
        async with self._platform.channel(self._sidecar.target) as channel:
            while True:
                try:
                    return await self.ask(channel, units, mode)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                        raise
                    await asyncio.sleep(0.02)

    async def ask(
        self, channel: grpc.aio.Channel, units: int, mode: quota_pb2.CheckMode.ValueType = 0
    ) -> quota_pb2.CheckQuotaResponse:
        """Make one call on an open channel."""
        request = quota_pb2.CheckQuotaRequest(
            tenant="shared",
            costs=[quota_pb2.Cost(meter=self._meter, units=units)],
            attributes={"case": self.case},
            mode=mode,
            request_id=self._platform.request_id() if mode == quota_pb2.CHECK_MODE_RESERVE else "",
        )
        answer = await quota_pb2_grpc.QuotaServiceStub(channel).CheckQuota(request, timeout=20)
        if answer.decision.allowed and mode != quota_pb2.CHECK_MODE_PEEK:
            self.admitted += units
        return answer

    async def begin(self) -> None:
        """Wait until the limit is in force here, and spend one unit. Raises TimeoutError after a minute."""
        ends = time.monotonic() + PATIENCE_S
        while self.case != (decision := (await self.call(1, quota_pb2.CHECK_MODE_PEEK)).decision).binding.name:
            if time.monotonic() > ends:
                raise TimeoutError(str(decision))
            await asyncio.sleep(0.02)
        while not (decision := (await self.call(1)).decision).allowed:
            if time.monotonic() > ends:
                raise TimeoutError(str(decision))
            await asyncio.sleep(0.02)

    async def spend(self, units: int, calls: int) -> decision_pb2.Decision:
        """Make so many calls, or fewer if one is denied; return the last decision."""
        decision = decision_pb2.Decision()
        async with self._platform.channel(self._sidecar.target) as channel:
            for _ in range(calls):
                decision = (await self.ask(channel, units)).decision
                if not decision.allowed:
                    break
        return decision

    async def settle(self, token: str, units: int) -> str:
        """End a reservation and return the id of its record."""
        async with self._platform.channel(self._sidecar.target) as channel:
            answer = await quota_pb2_grpc.QuotaServiceStub(channel).SettleReservation(
                quota_pb2.SettleReservationRequest(
                    token=token, quantities=[usage_pb2.Quantity(meter=self._meter, units=units)]
                ),
                timeout=20,
            )
        return answer.record_id

    async def until_stored(self, record_id: str) -> None:
        """Wait until the ledger has a record, once. Raises TimeoutError after a minute."""
        ends = time.monotonic() + PATIENCE_S
        while (count := (await self._platform.stored_ids("shared")).count(record_id)) != 1:
            if time.monotonic() > ends:
                raise TimeoutError(f"{record_id} is stored {count} times")
            await asyncio.sleep(0.1)

    async def exhaust(self) -> None:
        """Spend until it is proved that not one unit is left. Raises TimeoutError after a minute."""
        async with asyncio.timeout(PATIENCE_S), self._platform.channel(self._sidecar.target) as channel:
            for units in (100, 10, 1):
                while (decision := (await self.ask(channel, units)).decision).reason != EXHAUSTED:
                    if not decision.allowed:
                        await asyncio.sleep(0.02)


def has_snapshot_of(sidecar: AddedSidecar, name: str) -> bool:
    """Tell whether a sidecar's snapshot speaks of this limit."""
    path = sidecar.log_folder / "snapshot"
    return path.is_file() and name.encode() in path.read_bytes()
