"""Bodies are read within bounds of size, memory and time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from starlette.requests import Request
from tollkeeper_ledger.web import body
from tollkeeper_ledger.web.body import Bodies, BodyError

if TYPE_CHECKING:
    from starlette.types import Message

CHUNK = b"x" * 100


def request_of(*chunks: bytes, reached: asyncio.Event | None = None, gate: asyncio.Event | None = None) -> Request:
    """Give a request with these chunks; with a gate, which it says to have reached, the last one waits for it."""
    waiting = list(chunks)

    async def receive() -> Message:
        if len(waiting) == 1 and gate is not None:
            if reached is not None:
                reached.set()
            await gate.wait()
        chunk = waiting.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(waiting)}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def test_a_body_is_whole_or_refused_by_its_length() -> None:
    """As long as its bound it is given, one byte more is 413."""
    bodies = Bodies()
    assert await bodies.read(request_of(CHUNK, CHUNK), 200) == CHUNK * 2
    with pytest.raises(BodyError) as caught:
        await bodies.read(request_of(CHUNK, CHUNK), 199)
    assert caught.value.code == 413


async def test_all_bodies_together_are_bounded_and_what_was_read_is_free_again() -> None:
    """While one is held another one that is too much is 503; afterwards it is taken."""
    bodies, reached, gate = Bodies(bytes_max=250), asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(bodies.read(request_of(CHUNK, CHUNK, b"", reached=reached, gate=gate), 1_000))
    await reached.wait()
    with pytest.raises(BodyError) as caught:
        await bodies.read(request_of(CHUNK), 1_000)
    assert caught.value.code == 503
    gate.set()
    assert await first == CHUNK * 2
    assert await bodies.read(request_of(CHUNK, CHUNK), 1_000) == CHUNK * 2


async def test_a_slow_body_is_refused_and_frees_what_it_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that doesn't end in time is 408."""
    monkeypatch.setattr(body, "BODY_SECONDS_MAX", 0.01)
    bodies = Bodies(bytes_max=250)
    with pytest.raises(BodyError) as caught:
        await bodies.read(request_of(CHUNK, CHUNK, b"", gate=asyncio.Event()), 1_000)
    assert caught.value.code == 408
    assert bodies._held == 0
