"""Wires the control plane together and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from tollkeeper_sidecar.commands import Commands
from tollkeeper_sidecar.health import HealthServer
from tollkeeper_sidecar.ledger_link import LedgerLink
from tollkeeper_sidecar.outbox import Outbox
from tollkeeper_sidecar.pools import LINK_OPTIONS, RedisPools
from tollkeeper_sidecar.redis_topology import locator_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from tollkeeper_sidecar.config import Settings
    from tollkeeper_sidecar.plane import DataPlane

DRAIN_POLL_S: Final = 0.02

_T = TypeVar("_T")

_log = structlog.get_logger(__name__)


async def run(
    plane: DataPlane, settings: Settings, *, stopping: asyncio.Event, on_http: Callable[[str], None] | None = None
) -> bool:
    """Carry the data plane's commands until `stopping`, then drain it; return whether the drain came to its end.

    `on_http` is told the address of health and metrics. Raises OSError where that can't be bound, and whatever
    ends a loop that must never end.
    """
    outbox = Outbox(plane.give_answers)
    ledger = LedgerLink(settings.ledger_address, outbox)
    pools = RedisPools(locator_of(settings.redis_url, **LINK_OPTIONS), outbox)
    health = HealthServer(plane)
    if settings.sidecar_http is not None:
        http = await health.start(settings.sidecar_http)
        _log.info("health and metrics are served", address=http)
        if on_http is not None:
            on_http(http)
    commands = Commands(plane, outbox, ledger=ledger, pools=pools)
    loops = [asyncio.ensure_future(loop) for loop in (commands.run(), ledger.run(), pools.run())]
    try:
        await _unless_one_ends(loops, stopping.wait())
        plane.begin_drain()
        _log.info("draining", longest_s=settings.drain_s)
        return await _unless_one_ends(loops, _drained(plane, settings.drain_s))
    finally:
        await health.stop()
        # Commands end first: their last answers need the outbox, and their failing links would answer them anyway.
        for task in loops:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _drained(plane: DataPlane, longest_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(longest_s):
            while not plane.drained():  # noqa: ASYNC110 - the data plane tells only when asked
                await asyncio.sleep(DRAIN_POLL_S)
            return True
    return False


async def _unless_one_ends(loops: Sequence[asyncio.Future[None]], wanted: Coroutine[Any, Any, _T]) -> _T:
    """Wait for `wanted`; a loop that ends before it raises here what ended it."""
    waiting = asyncio.ensure_future(wanted)
    try:
        everything: list[asyncio.Future[Any]] = [waiting, *loops]
        await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
        for loop in loops:
            if loop.cancelled():
                # Raised as what it is, it would look like a second order to stop.
                raise RuntimeError("a loop of the control plane was cancelled, and nobody told it to stop")
            if loop.done():
                loop.result()
                raise RuntimeError("a loop of the control plane ended by itself")
        return waiting.result()
    finally:
        waiting.cancel()


def stop_on_signals(stopping: asyncio.Event) -> None:
    """Drain on the first SIGTERM or SIGINT, and end at once on the second."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def told() -> None:
        if stopping.is_set() and task is not None:
            task.cancel()
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
