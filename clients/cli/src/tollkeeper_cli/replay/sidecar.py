"""Ask a sidecar on behalf of a replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc, usage_pb2

from tollkeeper_cli.errors import FoundProblemsError, from_rpc_error
from tollkeeper_cli.replay.driver import RESERVATION_TTL_S, Reserved, RetryableError, Settled
from tollkeeper_cli.replay.model import MICROSECONDS
from tollkeeper_cli.stack import CHANNEL_OPTIONS

if TYPE_CHECKING:
    from tollkeeper_cli.replay.model import ReplayRequest

_CALL_TIMEOUT_S = 10.0
_REASON_PREFIX = "DECISION_REASON_"
# Nobody knows whether these were done, or the server asks to come again.
_RETRYABLE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
# A restarted sidecar should be found at once, not after grpc's usual minute.
_RECONNECT_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 250),
)


def sidecar_channel(target: str) -> grpc.aio.Channel:
    """Open a channel to a sidecar that may be killed and started again."""
    return grpc.aio.insecure_channel(target, options=(*CHANNEL_OPTIONS, *_RECONNECT_OPTIONS))


class SidecarCalls:
    """Reserves and settles through one channel."""

    def __init__(self, channel: grpc.aio.Channel, *, recorded_times: bool) -> None:
        """Use a channel; with `recorded_times` usage is dated as recorded, else as the sidecar's clock says."""
        self._stub = quota_pb2_grpc.QuotaServiceStub(channel)
        self._recorded_times = recorded_times

    async def reserve(self, request: ReplayRequest) -> Reserved:
        """Reserve what the request may use, under its id."""
        message = quota_pb2.CheckQuotaRequest(
            tenant=request.tenant,
            costs=[quota_pb2.Cost(meter=meter, units=units) for meter, units in request.reserve.items()],
            attributes=request.attributes,
            request_id=request.request_id,
            mode=quota_pb2.CHECK_MODE_RESERVE,
            reservation_ttl=Duration(seconds=RESERVATION_TTL_S),
        )
        try:
            answer = await self._stub.CheckQuota(message, timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _failure(error, request) from error
        decision = answer.decision
        if decision.allowed:
            if not answer.reservation.token:
                raise FoundProblemsError(f"request {request.request_id} was admitted without a reservation")
            return Reserved(token=answer.reservation.token)
        reason = decision_pb2.DecisionReason.Name(decision.reason).removeprefix(_REASON_PREFIX)
        return Reserved(reason=reason, limit=decision.binding.name or decision.subject)

    async def settle(self, token: str, request: ReplayRequest) -> Settled:
        """Settle what the request used."""
        message = quota_pb2.SettleReservationRequest(
            token=token,
            quantities=[usage_pb2.Quantity(meter=meter, units=units) for meter, units in request.settle.items()],
        )
        if self._recorded_times:
            ended_us = request.at_us + request.duration_us
            message.event_time.CopyFrom(
                Timestamp(seconds=ended_us // MICROSECONDS, nanos=ended_us % MICROSECONDS * 1_000)
            )
        try:
            answer = await self._stub.SettleReservation(message, timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _failure(error, request) from error
        refunded = {quantity.meter: quantity.units for quantity in answer.refunded}
        return Settled(record_id=answer.record_id, refunded=refunded, expired=answer.expired)


def _failure(error: grpc.aio.AioRpcError, request: ReplayRequest) -> Exception:
    """Tell a failure that a repeat may mend from one that it can't."""
    if error.code() in _RETRYABLE:
        return RetryableError(f"{error.code().name}: {error.details()}")
    return from_rpc_error(error, server=f"the sidecar, asked for {request.request_id},")
