"""Operators' orders to every live sidecar, whichever replica it is connected to.

An order goes to all replicas as a notification. Each says at once how many sidecars it asks, and again what came of it;
the replica that was asked adds them up. A replica is heard if it says so while the asked one still waits, or within
250 ms after that: one that is slower carries the order out uncounted.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tollkeeper_ledger.services.watch import CacheOrder
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.services.watch import WatchHub
    from tollkeeper_ledger.store.listener import Listener
    from tollkeeper_ledger.store.pool import Pool

CACHES_CHANNEL = "tollkeeper_caches"
SIDECAR_S_MAX = 2.0
"""A sidecar that has not answered by then is counted as silent."""
_OTHERS_S = 0.25
_REPLICAS_S_MAX = 5.0


@dataclass(frozen=True, slots=True)
class OrderDone:
    """What came of an order: sidecars that did it, sidecars that were silent, keys of limits that it touched."""

    sidecars: int
    silent: int
    keys: int


@dataclass(slots=True)
class _Count:
    """What replicas have said of one order."""

    asked: set[str] = field(default_factory=set)
    done: dict[str, OrderDone] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def is_complete(self, own: str) -> bool:
        """Whether replica `own`, and whoever else said that it asks, has said what came of it."""
        return own in self.done and self.asked <= self.done.keys()


class Caches:
    """Send orders, carry out those that any replica sends, and add up what came of one's own."""

    def __init__(self, pool: Pool, listener: Listener, hub: WatchHub, log: FilteringBoundLogger) -> None:
        self._pool = pool
        self._hub = hub
        self._log = log
        self._replica = secrets.token_hex(8)
        self._counts: dict[str, _Count] = {}
        self._running: set[asyncio.Task[None]] = set()
        listener.on(CACHES_CHANNEL, self._heard)

    async def order(self, action: str, tenant: str) -> OrderDone:
        """Have every live sidecar `warm` or `invalidate` what it leased of a tenant, empty = of all; give the outcome.

        Takes 5 s at most. A repeat is a new order, which is harmless.
        """
        order_id = secrets.token_hex(16)
        count = self._counts[order_id] = _Count()
        try:
            await self._tell({"say": "order", "id": order_id, "action": action, "tenant": tenant})
            await self._complete(count)
        finally:
            del self._counts[order_id]
        found = list(count.done.values())
        return OrderDone(
            sidecars=sum(one.sidecars for one in found),
            silent=sum(one.silent for one in found),
            keys=sum(one.keys for one in found),
        )

    async def _complete(self, count: _Count) -> None:
        """Wait until all who said that they ask have said what came of it, and nobody new says so for a moment."""
        try:
            async with asyncio.timeout(_REPLICAS_S_MAX):
                while True:
                    count.news.clear()
                    try:
                        async with asyncio.timeout(_OTHERS_S if count.is_complete(self._replica) else None):
                            await count.news.wait()
                    except TimeoutError:
                        if count.is_complete(self._replica):
                            return
                        raise
        except TimeoutError:
            self._log.warning(
                "replicas did not say what came of an order", silent=sorted(count.asked - set(count.done))
            )

    def _heard(self, text: str) -> None:
        told = json.loads(text)
        count = self._counts.get(told["id"])
        match told["say"]:
            case "order":
                task = asyncio.get_running_loop().create_task(self._carry_out(told))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            case "asked" if count is not None:
                count.asked.add(told["replica"])
                count.news.set()
            case "done" if count is not None:
                count.done[told["replica"]] = OrderDone(told["sidecars"], told["silent"], told["keys"])
                count.news.set()
            case _:
                # Another replica's order.
                pass

    async def _carry_out(self, told: dict[str, str]) -> None:
        """Send an order to this replica's sidecars, wait for them, and say what came of it."""
        own = {"id": told["id"], "replica": self._replica}
        try:
            await self._tell({**own, "say": "asked"})
            order = CacheOrder(bytes.fromhex(told["id"]), told["action"], told["tenant"])
            answers = await self._hub.send_order(order)
            if answers:
                await asyncio.wait(answers, timeout=SIDECAR_S_MAX)
            keys = [one.result() for one in answers if one.done() and not one.cancelled()]
            await self._tell(
                {**own, "say": "done", "sidecars": len(keys), "silent": len(answers) - len(keys), "keys": sum(keys)}
            )
        except Exception as error:  # noqa: BLE001 - a task's top: who waits for it gives up by itself
            self._log.warning("an order to sidecars failed", error=str(error), kind=type(error).__name__)

    async def _tell(self, told: dict[str, object]) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(sql("installation.notify"), CACHES_CHANNEL, json.dumps(told, separators=(",", ":")))
