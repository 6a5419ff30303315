"""Ask a sidecar on behalf of a replay, through the Python client."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tollkeeper_client import DeadlineExceeded, SidecarFull, TollkeeperError, Unavailable

from tollkeeper_cli.errors import FoundProblemsError
from tollkeeper_cli.replay.driver import RESERVATION_TTL_S, Reserved, RetryableError, Settled
from tollkeeper_cli.replay.model import MICROSECONDS

if TYPE_CHECKING:
    from tollkeeper_client import AsyncClient

    from tollkeeper_cli.replay.model import ReplayRequest

CALL_TIMEOUT_S = 10.0
_TTL = timedelta(seconds=RESERVATION_TTL_S)
# Nobody knows whether these were done, or the sidecar asks to come again.
_RETRYABLE = (Unavailable, DeadlineExceeded, SidecarFull)


class SidecarCalls:
    """Reserves and settles through one client."""

    def __init__(self, client: AsyncClient, *, recorded_times: bool) -> None:
        """Use a client; with `recorded_times` usage is dated as recorded, else as the sidecar's clock says."""
        self._client = client
        self._recorded_times = recorded_times

    async def reserve(self, request: ReplayRequest) -> Reserved:
        """Reserve what the request may use, under its id."""
        try:
            hold = await self._client.reserve(
                request.tenant,
                request.reserve,
                ttl=_TTL,
                attributes=request.attributes,
                request_id=request.request_id,
                timeout_s=CALL_TIMEOUT_S,
            )
        except TollkeeperError as error:
            raise _failure(error, request) from error
        decision = hold.decision
        limit = decision.binding.name if decision.binding is not None else decision.subject
        return Reserved(token=hold.token or "", reason=decision.reason.value, limit=limit)

    async def settle(self, token: str, request: ReplayRequest) -> Settled:
        """Settle what the request used."""
        ended_us = request.at_us + request.duration_us
        try:
            answer = await self._client.settle(
                token,
                request.settle,
                event_time=_moment(ended_us) if self._recorded_times else None,
                timeout_s=CALL_TIMEOUT_S,
            )
        except TollkeeperError as error:
            raise _failure(error, request) from error
        return Settled(record_id=answer.record_id, refunded=answer.refunded, expired=answer.expired)


def _moment(micros: int) -> datetime:
    """Return a time, exactly."""
    return datetime.fromtimestamp(micros // MICROSECONDS, UTC).replace(microsecond=micros % MICROSECONDS)


def _failure(error: TollkeeperError, request: ReplayRequest) -> Exception:
    """Tell a failure that a repeat may mend from one that it can't."""
    kind = type(error).__name__
    if isinstance(error, _RETRYABLE):
        return RetryableError(f"{kind}: {error}")
    reason = f" ({error.reason})" if error.reason else ""
    return FoundProblemsError(f"request {request.request_id}: {kind}: {error}{reason}")
