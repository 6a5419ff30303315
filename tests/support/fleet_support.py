"""Five sidecars, a Redis with a replica, a Postgres and a ledger: real processes, and every line breakable."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import grpc
from platform_support import CALL_TIMEOUT_S, AddedSidecar, Platform
from redis_pair import RedisPair
from tcp_proxy import Proxy
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc
from tollkeeper_cli.stack import Servers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_P = ParamSpec("_P")
_T = TypeVar("_T")

SIDECARS = 5


class Fleet(Platform):
    """A platform of five sidecars. Each reaches Redis, and the ledger, through a proxy of its own.

    Proxy 0 of `redis_lines` carries the ledger and the first sidecar.
    """

    def __init__(self, directory: Path, *, sidecars: int = SIDECARS) -> None:
        self._sidecars = sidecars
        self.redis = RedisPair(directory / "redis")
        self._open = ExitStack()
        self.redis_lines: list[Proxy] = []
        self.ledger_lines: list[Proxy] = []
        self._directory = directory
        # Linux ties a child process to the thread that started it: this one lives as long as the fleet.
        self._hands = self._open.enter_context(ThreadPoolExecutor(1, "fleet"))

    async def do(self, action: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do something to a process, off the event loop."""
        return await asyncio.wrap_future(self._hands.submit(action, *args, **kwargs))

    def start(self) -> None:
        """Start every process and wait until each serves."""
        self.redis.start()
        self.redis_lines.append(self._open.enter_context(Proxy(self.redis.first.port)))
        super().__init__(self._directory, servers=Servers(redis_url=_url(self.redis_lines[0])))
        super().start()
        for number in range(1, self._sidecars):
            self.add_behind_lines(f"sidecar-{number}")

    def add_behind_lines(self, name: str, **environment: str) -> AddedSidecar:
        """Start one more sidecar that reaches Redis and the ledger through lines of its own, the last of each list."""
        port = int(self.stack.addresses.ledger_listen.rpartition(":")[2])
        redis, ledger = (self._open.enter_context(Proxy(to)) for to in (self.redis.first.port, port))
        self.redis_lines.append(redis)
        self.ledger_lines.append(ledger)
        own = {"TOLLKEEPER_REDIS_URL": _url(redis), "TOLLKEEPER_LEDGER_ADDRESS": f"127.0.0.1:{ledger.port}"}
        self.add_sidecar(name, **own, **environment)
        return self.added[-1]

    def stop(self) -> None:
        """Stop every process."""
        super().stop()
        self._open.close()
        self.redis.stop()

    @property
    def targets(self) -> list[str]:
        """Return the targets of all sidecars."""
        return [self.target, *(sidecar.target for sidecar in self.added)]

    def lead_to(self, port: int, *, first: int = SIDECARS) -> None:
        """Lead the first so many sidecars, and with them the ledger, to another Redis."""
        for line in self.redis_lines[:first]:
            line.redirect(port)

    def heal(self) -> None:
        """Make every line perfect again, leading to the first Redis, which has its replica again."""
        self.redis.follow()
        for line in self.redis_lines:
            line.heal()
            line.redirect(self.redis.first.port)
        for line in self.ledger_lines:
            line.heal()

    def pause(self, *numbers: int) -> None:
        """Stop added sidecars (1 to 4) in the middle of whatever they do."""
        for number in numbers:
            os.kill(self.added[number - 1].pid, signal.SIGSTOP)

    def resume(self, *numbers: int) -> None:
        """Let paused sidecars go on."""
        for number in numbers:
            os.kill(self.added[number - 1].pid, signal.SIGCONT)

    async def set_clock_speed(self, speed: int) -> None:
        """Set how many times faster than real time the ledger's clock runs."""
        async with self.ledger() as channel:
            await admin_pb2_grpc.AdminServiceStub(channel).SetClock(
                admin_pb2.SetClockRequest(request_id=self.request_id(), speed_milli=speed * 1_000),
                timeout=CALL_TIMEOUT_S,
            )

    async def load(self, flows: list[dict[str, Any]], *, seconds: float) -> list[dict[str, Any]]:
        """Run flows of checks from a native process of its own and return what each was told."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tollkeeper_sidecar.probe",
            "load",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(json.dumps({"flows": flows, "seconds": seconds}).encode())
        assert process.returncode == 0, err.decode(errors="replace")[-2_000:]
        told: list[dict[str, Any]] = json.loads(out)
        return told

    async def until_admitted(self, tenant: str, *, timeout_s: float = 60.0, **attributes: str) -> float:
        """Wait until every sidecar admits one unit of a tenant's limits and return how many seconds the last one took.

        A sidecar that is away is asked again.
        """
        started_s = time.monotonic()
        request = quota_pb2.CheckQuotaRequest(
            tenant=tenant, costs=[quota_pb2.Cost(meter="requests", units=1)], attributes=attributes
        )

        async def admitted(target: str) -> float:
            said: object = None
            async with self.channel(target) as channel:
                stub = quota_pb2_grpc.QuotaServiceStub(channel)
                while time.monotonic() - started_s < timeout_s:
                    try:
                        answer = await stub.CheckQuota(request, timeout=5)
                    except grpc.aio.AioRpcError as error:
                        said = error.code()
                        await asyncio.sleep(0.01)
                        continue
                    if answer.decision.allowed:
                        return time.monotonic() - started_s
                    said = decision_pb2.DecisionReason.Name(answer.decision.reason)
                    await asyncio.sleep(0.01)
            raise AssertionError(f"{target} admitted nothing for {timeout_s:g} s; last it said {said}")

        return max(await asyncio.gather(*(admitted(target) for target in self.targets)))


def _url(line: Proxy) -> str:
    return f"redis://127.0.0.1:{line.port}"
