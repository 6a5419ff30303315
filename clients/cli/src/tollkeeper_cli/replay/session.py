"""Replay requests against a running stack, with its clock where it has a scaled one."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tollkeeper_client import AsyncClient

from tollkeeper_cli.errors import CommandError, FoundProblemsError, UsageError
from tollkeeper_cli.replay.brake import INTERVAL_S, Brake
from tollkeeper_cli.replay.driver import Driver
from tollkeeper_cli.replay.pace import RunningPace, SteppingPace, shift_to_present
from tollkeeper_cli.replay.sidecar import CALL_TIMEOUT_S, SidecarCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tollkeeper_cli.ledger_calls import LedgerCalls
    from tollkeeper_cli.replay.model import ReplayRequest
    from tollkeeper_cli.replay.tally import Tally

# The clock starts so much before the first request: setting it takes real time, which counts 120-fold.
LEAD_US = 10_000_000


class Speed(StrEnum):
    """How fast a recording is replayed."""

    REAL = "1"
    FAST = "60"
    FASTER = "120"
    MAX = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a recording is replayed, by ledger time."""

    first_us: int
    """Its first arrival, after shifting."""
    shift_us: int
    """What was added to every time of the recording."""
    scaled: bool
    """The ledger's clock is ours to set."""


def shifted(requests: Sequence[ReplayRequest], shift_us: int) -> Sequence[ReplayRequest]:
    """Return the requests moved in time."""
    if shift_us == 0:
        return requests
    return [dataclasses.replace(request, at_us=request.at_us + shift_us) for request in requests]


async def plan_timing(ledger: LedgerCalls, first_us: int, *, fresh: bool) -> Timing:
    """Choose when to replay. A clock that was never set may go back; one that was set may not."""
    clock = await ledger.clock()
    if not clock.embedded:
        return Timing(first_us=first_us, shift_us=0, scaled=False)
    shift_us = 0 if fresh else shift_to_present(first_us - LEAD_US, clock.now_us)
    return Timing(first_us=first_us + shift_us, shift_us=shift_us, scaled=True)


async def replay(
    requests: Sequence[ReplayRequest],
    *,
    ledger: LedgerCalls,
    sidecar: str,
    speed: Speed,
    timing: Timing,
    on_progress: Callable[[Tally], None],
) -> Tally:
    """Replay requests and return what came of them; leave the clock running at real speed.

    Where the machine can't keep up with the speed, the clock is slowed until it can.

    Raises UsageError where a speed needs the scaled clock and there is none, UnreachableError when nobody answers for
    too long, FoundProblemsError when an answer makes no sense.
    """
    if not timing.scaled and speed is not Speed.REAL:
        raise UsageError("only an embedded setup has a clock that can be sped up: use --speed 1")
    async with AsyncClient(sidecar, timeout_s=CALL_TIMEOUT_S) as client:
        driver = Driver(SidecarCalls(client, recorded_times=timing.scaled), on_progress=on_progress)
        try:
            if speed is Speed.MAX:
                tally = await _stepped(driver, requests, ledger, timing)
            else:
                tally = await _running(driver, requests, ledger, int(speed), timing=timing)
        except* CommandError as group:
            raise _first(group) from None
    if timing.scaled:
        await ledger.set_clock(speed=1)
    return tally


async def _stepped(driver: Driver, requests: Sequence[ReplayRequest], ledger: LedgerCalls, timing: Timing) -> Tally:
    """Replay with a clock that stands still between steps."""
    await ledger.set_clock(now_us=timing.first_us - LEAD_US, speed=0)

    async def step(at_us: int) -> None:
        await ledger.set_clock(now_us=at_us)

    return await driver.run_stepped(requests, SteppingPace(set_clock=step))


async def _running(
    driver: Driver, requests: Sequence[ReplayRequest], ledger: LedgerCalls, speed: int, *, timing: Timing
) -> Tally:
    """Replay with a clock that runs."""
    brake = Brake(speed, [request.at_us for request in requests]) if timing.scaled else None
    pace = await _running_pace(ledger, brake.speed if brake else speed, timing)
    async with asyncio.TaskGroup() as group:
        braking = group.create_task(_keep_up(driver, ledger, pace, brake)) if brake else None
        tally = await driver.run_timed(requests, pace)
        if braking is not None:
            braking.cancel()
    return tally


async def _keep_up(driver: Driver, ledger: LedgerCalls, pace: RunningPace, brake: Brake) -> None:
    """Slow the clock while the machine can't keep up. Runs until cancelled."""
    while True:
        await asyncio.sleep(INTERVAL_S)
        if brake.is_on:
            driver.tally.braked_s += INTERVAL_S
        speed = brake.decide(*driver.take_pulse(), now_us=pace.now_us())
        if speed is not None:
            await ledger.set_clock(speed=speed)
            await _follow(ledger, pace, speed)


async def _follow(ledger: LedgerCalls, pace: RunningPace, speed: int) -> None:
    """Read the clock once and follow it from there."""
    asked_s = time.monotonic()
    clock = await ledger.clock()
    pace.restart(start_us=clock.now_us, speed=speed, started_s=(asked_s + time.monotonic()) / 2)


async def _running_pace(ledger: LedgerCalls, speed: int, timing: Timing) -> RunningPace:
    """Start the clock, and follow it from here without asking again."""
    if not timing.scaled:
        return RunningPace(start_us=timing.first_us, speed=speed)
    await ledger.set_clock(now_us=timing.first_us - LEAD_US, speed=speed)
    pace = RunningPace(start_us=timing.first_us - LEAD_US, speed=speed)
    await _follow(ledger, pace, speed)
    return pace


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Take the first error out of nested groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, CommandError) else FoundProblemsError(str(error))
