"""Answers and news on their way into the data plane, one batch per turn of the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tollkeeper.bridge.v1 import bridge_pb2

if TYPE_CHECKING:
    from collections.abc import Callable


class Outbox:
    """Collects answers in their order and hands over what one turn of the loop brought.

    Belongs to one event loop; not thread-safe.
    """

    __slots__ = ("_batch", "_give", "_loop")

    def __init__(self, give: Callable[[bytes], None], loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._give = give
        self._loop = loop or asyncio.get_running_loop()
        self._batch = bridge_pb2.AnswerBatch()

    def put(self, answer: bridge_pb2.Answer) -> None:
        """Queue an answer (or news, id 0); it is handed over before the loop waits again."""
        if not self._batch.answers:
            self._loop.call_soon(self.flush)
        self._batch.answers.append(answer)

    def flush(self) -> None:
        """Hand over what is queued now."""
        if self._batch.answers:
            batch, self._batch = self._batch, bridge_pb2.AnswerBatch()
            self._give(batch.SerializeToString())
