# ruff: noqa: SIM300 - expected first, then actual
"""What a thread computes while Postgres works is there with its answer, and never in the way of its failure."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tollkeeper_ledger.services.usage_beside import beside

pytestmark = pytest.mark.asyncio


async def test_both_go_on_at_the_same_time() -> None:
    """Each waits for the other to have begun: one after the other would never end."""
    computing, asked = threading.Event(), threading.Event()

    def compute() -> str:
        computing.set()
        assert asked.wait(60)
        return "computed"

    async def answer() -> str:
        asked.set()
        assert await asyncio.to_thread(computing.wait, 60)
        return "answered"

    async with asyncio.timeout(60):
        assert ("answered", "computed") == await beside(answer(), compute)


async def test_a_failed_answer_is_told_as_it_is() -> None:
    """The caller, who rolls back, hears at once and of that alone, while the thread is still at work."""
    released = threading.Event()

    async def fail() -> None:
        raise ConnectionResetError("gone")

    try:
        async with asyncio.timeout(60):
            with pytest.raises(ConnectionResetError, match="gone"):
                await beside(fail(), lambda: released.wait(120))
    finally:
        released.set()


async def test_a_failed_computation_waits_for_the_answer() -> None:
    """Nobody touches the connection before Postgres has answered, so what went wrong here is told after that."""
    answered = False

    def fail() -> None:
        raise ValueError("wrong")

    async def answer() -> None:
        nonlocal answered
        await asyncio.to_thread(lambda: None)
        answered = True

    with pytest.raises(ValueError, match="wrong"):
        await beside(answer(), fail)
    assert answered
