"""Every command has exactly one answer, whatever becomes of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tollkeeper.bridge.v1 import bridge_pb2
from tollkeeper_sidecar.commands import LEDGER_METHODS, Commands
from tollkeeper_sidecar.errors import NotSent, Refused
from tollkeeper_sidecar.outbox import Outbox

from .conftest import FakePlane, until  # noqa: TID252 - test folders are not packages on the path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class FakeLinks:
    """Both links: each request is the name of what becomes of it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self.hold = asyncio.Event()

    async def unary(self, method: str, request: bytes, *, timeout_s: float) -> bytes:
        """Do as the request says."""
        self.seen.append((method, request))
        match request:
            case b"refused":
                raise Refused("no", reason="TENANT_UNKNOWN", metadata={"tenant": "t"})
            case b"unsent":
                raise NotSent("no connection")
            case b"bug":
                raise ZeroDivisionError
            case b"hold":
                await self.hold.wait()
        return request + b" answered"

    async def send_watch(self, request: bytes) -> None:
        """Note it."""
        self.seen.append(("watch", request))

    async def call(self, calls: Sequence[bridge_pb2.RedisCall]) -> bridge_pb2.RedisReplies:
        """Echo the functions' names."""
        return bridge_pb2.RedisReplies(replies=[bridge_pb2.RedisReply(elements=[call.function]) for call in calls])

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Note it."""
        self.seen += [("subscribe", channel.encode()) for channel in channels]

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """Note it."""
        self.seen += [("unsubscribe", channel.encode()) for channel in channels]


@pytest.fixture
async def links(plane: FakePlane) -> AsyncIterator[FakeLinks]:
    """Run commands over fake links."""
    links = FakeLinks()
    running = asyncio.ensure_future(Commands(plane, Outbox(plane.give_answers), ledger=links, pools=links).run())
    yield links
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert set(plane.counts.values()) <= {1}, "no command has two answers"


def allot(payload: bytes, timeout_ms: int = 0) -> bridge_pb2.Command:
    """Make a command for the ledger."""
    return bridge_pb2.Command(allot=payload, timeout_ms=timeout_ms)


@pytest.mark.parametrize("action", sorted(LEDGER_METHODS))
async def test_ledger_requests_pass_as_bytes(plane: FakePlane, links: FakeLinks, action: str) -> None:
    """The control plane neither reads nor changes what goes to the ledger and back."""
    fields: dict[str, Any] = {action: b"\x00\xffnot even protobuf"}
    (answer,) = await plane.ask(bridge_pb2.Command(**fields))
    assert links.seen == [(LEDGER_METHODS[action], b"\x00\xffnot even protobuf")]
    assert answer.ledger == b"\x00\xffnot even protobuf answered"


async def test_other_actions_are_done(plane: FakePlane, links: FakeLinks) -> None:
    """Subscriptions and watch messages are answered with done, functions with a reply each."""
    channels = bridge_pb2.Channels(channels=["a", "b"])
    calls = bridge_pb2.RedisCalls(calls=[bridge_pb2.RedisCall(function=name) for name in ("x", "y")])
    answers = await plane.ask(
        bridge_pb2.Command(subscribe=channels),
        bridge_pb2.Command(unsubscribe=channels),
        bridge_pb2.Command(watch=b"w"),
        bridge_pb2.Command(redis=calls),
    )
    assert [answer.done for answer in answers] == [True, True, True, False]
    assert [reply.elements[0] for reply in answers[3].redis.replies] == ["x", "y"]
    assert [name for name, _ in links.seen] == ["subscribe", "subscribe", "unsubscribe", "unsubscribe", "watch"]


async def test_failures_say_what_is_known(plane: FakePlane, links: FakeLinks) -> None:
    """A refusal carries its reason, an unsent request is unreachable, a bug is an unknown outcome."""
    refused, unsent, bug, fine = await plane.ask(*map(allot, (b"refused", b"unsent", b"bug", b"fine")))
    assert refused.failure.kind == bridge_pb2.FAILURE_KIND_REFUSED
    assert (refused.failure.reason, dict(refused.failure.metadata)) == ("TENANT_UNKNOWN", {"tenant": "t"})
    assert unsent.failure.kind == bridge_pb2.FAILURE_KIND_UNREACHABLE
    assert bug.failure.kind == bridge_pb2.FAILURE_KIND_DEADLINE
    assert fine.ledger == b"fine answered"


async def test_late_command_is_answered_once(plane: FakePlane, links: FakeLinks) -> None:
    """A command that runs out of time is answered DEADLINE, and its late result goes nowhere."""
    (late,) = await plane.ask(allot(b"hold", timeout_ms=10))
    assert late.failure.kind == bridge_pb2.FAILURE_KIND_DEADLINE
    links.hold.set()
    await plane.ask(allot(b"fine"))
    assert plane.counts[late.id] == 1


async def test_one_stuck_command_holds_up_nobody(plane: FakePlane, links: FakeLinks) -> None:
    """Commands run side by side: one that hangs delays no other."""
    (stuck,) = plane.push(allot(b"hold"))
    answers = await plane.ask(*(allot(b"%d" % number) for number in range(100)))
    assert [b"%d answered" % number for number in range(100)] == [answer.ledger for answer in answers]
    assert plane.counts[stuck] == 0
    links.hold.set()
    await until(lambda: plane.counts[stuck] == 1)


async def test_answers_go_in_batches(plane: FakePlane, links: FakeLinks) -> None:
    """What ends in one turn of the loop crosses the bridge together."""
    await plane.ask(*(allot(b"%d" % number) for number in range(1_000)))
    assert plane.batches < 50


async def test_unknown_action_is_refused(plane: FakePlane, links: FakeLinks) -> None:
    """A command of a kind that this version does not know is refused, not dropped: the data plane waits for it."""
    (answer,) = await plane.ask(bridge_pb2.Command())
    assert answer.failure.kind == bridge_pb2.FAILURE_KIND_REFUSED


async def test_stop_answers_what_is_under_way(plane: FakePlane) -> None:
    """At the end every taken command still gets its one answer: outcome unknown."""
    links = FakeLinks()
    running = asyncio.ensure_future(Commands(plane, Outbox(plane.give_answers), ledger=links, pools=links).run())
    ids = plane.push(*(allot(b"hold") for _ in range(5)))
    await until(lambda: len(links.seen) == len(ids))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [plane.counts[number] for number in ids] == [1] * 5
    assert {plane.answers[number].failure.kind for number in ids} == {bridge_pb2.FAILURE_KIND_DEADLINE}
