"""Drive a recording through a sidecar, and count.

Each request reserves when it arrives and settles when it ends, under one id. A call that finds nobody is repeated with
the same id until it is answered, so that a sidecar or a ledger may be killed and started again at any point.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from tollkeeper_cli.errors import UnreachableError
from tollkeeper_cli.replay.tally import NO_LIMIT, Tally

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from tollkeeper_cli.replay.model import ReplayRequest
    from tollkeeper_cli.replay.pace import RunningPace, SteppingPace

_T = TypeVar("_T")

IN_FLIGHT_MAX = 4_096
RESERVATION_TTL_S = 3_600


class RetryableError(Exception):
    """The call may be made again with the same id; nobody knows whether it was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """The answer to a reservation."""

    token: str = ""
    """Names the reservation; empty = denied."""
    reason: str = ""
    """Why it was denied."""
    limit: str = ""
    """The limit that denied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The answer to a settlement."""

    record_id: str
    refunded: Mapping[str, int]
    expired: bool


class QuotaCalls(Protocol):
    """What a replay asks of a sidecar. Both raise RetryableError where a repeat may help."""

    async def reserve(self, request: ReplayRequest) -> Reserved:
        """Reserve what the request may use."""
        ...

    async def settle(self, token: str, request: ReplayRequest) -> Settled:
        """Settle what the request used."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long and how often a call is repeated."""

    first_s: float = 0.02
    longest_s: float = 0.5
    give_up_after_s: float = 120.0


class Driver:
    """Replays requests. One driver replays once."""

    def __init__(
        self,
        quota: QuotaCalls,
        *,
        retry: RetryPolicy | None = None,
        on_progress: Callable[[Tally], None] = lambda _tally: None,
        in_flight_max: int = IN_FLIGHT_MAX,
    ) -> None:
        self._quota = quota
        self._retry = retry or RetryPolicy()
        self._on_progress = on_progress
        self._in_flight = asyncio.Semaphore(in_flight_max)
        self._taken_s: list[float] = []
        self._late_us = 0
        self.tally = Tally()

    def take_pulse(self) -> tuple[list[float], int]:
        """Return how long reservations took and how late the latest was sent, since the last time this was asked."""
        taken_s, self._taken_s = self._taken_s, []
        late_us, self._late_us = self._late_us, 0
        return taken_s, late_us

    async def run_timed(self, requests: Iterable[ReplayRequest], pace: RunningPace) -> Tally:
        """Send each request when its time has come, however long others take; return when all are settled.

        Raises UnreachableError (in an ExceptionGroup) when a call found nobody for too long.
        """
        async with asyncio.TaskGroup() as group:
            for request in requests:
                late_us = await pace.reach(request.at_us)
                self.tally.late_max_us = max(self.tally.late_max_us, late_us)
                self._late_us = max(self._late_us, late_us)
                await self._in_flight.acquire()
                task = group.create_task(self._reserve_and_settle(request, pace))
                task.add_done_callback(lambda _task: self._in_flight.release())
        return self.tally

    async def run_stepped(self, requests: Iterable[ReplayRequest], pace: SteppingPace) -> Tally:
        """Do one thing after the other in order of their times, setting the clock before each arrival."""
        order = itertools.count()
        open_ends: list[tuple[int, int, str, ReplayRequest]] = []
        for request in requests:
            while open_ends and open_ends[0][0] <= request.at_us:
                await self._settle_next(open_ends)
            await pace.set_clock(request.at_us)
            token = await self._reserve(request)
            if token:
                heapq.heappush(open_ends, (request.at_us + request.duration_us, next(order), token, request))
        while open_ends:
            await pace.set_clock(open_ends[0][0])
            await self._settle_next(open_ends)
        return self.tally

    async def _settle_next(self, open_ends: list[tuple[int, int, str, ReplayRequest]]) -> None:
        """Settle the request that ends first."""
        _, _, token, request = heapq.heappop(open_ends)
        await self._settle(token, request)

    async def _reserve_and_settle(self, request: ReplayRequest, pace: RunningPace) -> None:
        """Take one request from arrival to end."""
        token = await self._reserve(request)
        if token:
            await pace.reach(request.at_us + request.duration_us)
            await self._settle(token, request)

    async def _reserve(self, request: ReplayRequest) -> str:
        """Reserve and count; return the token, empty when denied."""
        asked_s = time.monotonic()
        answer = await self._persist(lambda: self._quota.reserve(request), request)
        self._taken_s.append(time.monotonic() - asked_s)
        counts = self.tally.of(request.tenant)
        counts.requests += 1
        if not answer.token:
            counts.denials[answer.limit or NO_LIMIT, answer.reason] += 1
            self._on_progress(self.tally)
        return answer.token

    async def _settle(self, token: str, request: ReplayRequest) -> None:
        """Settle and count."""
        answer = await self._persist(lambda: self._quota.settle(token, request), request)
        counts = self.tally.of(request.tenant)
        counts.admitted += 1
        counts.units.update(request.settle)
        counts.refunded.update(answer.refunded)
        counts.record_ids.append(answer.record_id)
        counts.expired += answer.expired
        self._on_progress(self.tally)

    async def _persist(self, call: Callable[[], Awaitable[_T]], request: ReplayRequest) -> _T:
        """Repeat a call until it is answered; raise UnreachableError when that takes too long."""
        delay_s = self._retry.first_s
        waited_s = 0.0
        while True:
            try:
                return await call()
            except RetryableError as error:
                if waited_s >= self._retry.give_up_after_s:
                    message = f"request {request.request_id}: nobody answered for {waited_s:.0f} s: {error}"
                    raise UnreachableError(message) from error
            self.tally.retries += 1
            spread_s = delay_s * (0.5 + request.number % 16 / 32)  # hundreds wait for the same restart
            await asyncio.sleep(spread_s)
            waited_s += spread_s
            delay_s = min(delay_s * 2, self._retry.longest_s)
