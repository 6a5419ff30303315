"""The link to the ledger over real gRPC: what is known of an outcome, and how the watch stream comes back."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper_sidecar.backoff import Backoff
from tollkeeper_sidecar.commands import LEDGER_METHODS
from tollkeeper_sidecar.errors import CommandFailed, NotSent, OutcomeUnknown, Refused
from tollkeeper_sidecar.ledger_link import LedgerLink
from tollkeeper_sidecar.outbox import Outbox

from .conftest import FakeLedger, FakePlane, abort, until  # noqa: TID252 - test folders are not packages on the path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ALLOT = LEDGER_METHODS["allot"]
REQUEST = limits_pb2.AllotRequest(entries=[limits_pb2.AllotEntry(), limits_pb2.AllotEntry()]).SerializeToString()
HELLO = limits_pb2.WatchLimitsRequest(hello=limits_pb2.WatchHello(protocol_version=1)).SerializeToString()
ADD = limits_pb2.WatchLimitsRequest(add=limits_pb2.WatchTenants(tenants=["t"])).SerializeToString()


@pytest.fixture
async def link(plane: FakePlane, ledger: FakeLedger) -> AsyncIterator[LedgerLink]:
    """Run a link."""
    link = LedgerLink(f"127.0.0.1:{ledger.port}", Outbox(plane.give_answers), backoff=quick())
    running = asyncio.ensure_future(link.run())
    yield link
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def quick() -> Backoff:
    """Make short pauses."""
    return Backoff(first_s=0.01, most_s=0.05, random=Random(1))


async def failure(link: LedgerLink, timeout_s: float = 5) -> CommandFailed:
    """Call Allot and answer how it failed."""
    with pytest.raises(CommandFailed) as caught:
        await link.unary(ALLOT, REQUEST, timeout_s=timeout_s)
    return caught.value


async def test_request_and_answer_pass(link: LedgerLink) -> None:
    """An encoded request brings the encoded answer."""
    answer = await link.unary(ALLOT, REQUEST, timeout_s=60)
    assert len(limits_pb2.AllotResponse.FromString(answer).answers) == 2


async def test_ledger_that_was_never_there_is_unsent(plane: FakePlane) -> None:
    """Without a connection nothing is sent, and that is said at once rather than at the deadline."""
    link = LedgerLink("127.0.0.1:1", Outbox(plane.give_answers), backoff=quick())
    running = asyncio.ensure_future(link.run())
    async with asyncio.timeout(30):
        failed = await failure(link, timeout_s=60)
    assert type(failed) is NotSent
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert plane.heard("watch_up") == [False]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, Refused),
        (grpc.StatusCode.FAILED_PRECONDITION, Refused),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Refused),
        (grpc.StatusCode.UNAVAILABLE, OutcomeUnknown),
        (grpc.StatusCode.INTERNAL, OutcomeUnknown),
        (grpc.StatusCode.ABORTED, OutcomeUnknown),
    ],
)
async def test_error_info_reaches_the_data_plane(
    link: LedgerLink, ledger: FakeLedger, code: grpc.StatusCode, expected: type[CommandFailed]
) -> None:
    """Reason and metadata arrive; only codes that say no beforehand count as refused."""

    async def refuse(_request: object, context: Any) -> Any:
        await abort(context, code, "PRODUCER_GAP", expected="7")

    ledger.on_allot = refuse
    failed = await failure(link)
    assert type(failed) is expected
    assert (failed.reason, failed.metadata) == ("PRODUCER_GAP", {"expected": "7"})


async def test_silence_is_an_unknown_outcome(link: LedgerLink, ledger: FakeLedger) -> None:
    """A ledger that took the request and does not answer in time may have acted."""

    async def hang(_request: object, _context: object) -> Any:
        await asyncio.sleep(60)

    ledger.on_allot = hang
    assert type(await failure(link, timeout_s=0.1)) is OutcomeUnknown


async def test_death_under_way_is_an_unknown_outcome(link: LedgerLink, ledger: FakeLedger) -> None:
    """A ledger that dies with the request in its hands may have acted."""
    taken = asyncio.Event()

    async def die(_request: object, _context: object) -> Any:
        taken.set()
        await asyncio.sleep(60)

    ledger.on_allot = die
    asking = asyncio.ensure_future(failure(link))
    await taken.wait()
    await ledger.stop()
    assert type(await asking) is OutcomeUnknown


async def test_unimplemented_is_refused(link: LedgerLink) -> None:
    """A ledger without the method did nothing."""
    with pytest.raises(Refused):
        await link.unary("/tollkeeper.ledger.v1.LimitService/Nothing", b"", timeout_s=60)


async def test_watch_passes_both_ways(link: LedgerLink, plane: FakePlane, ledger: FakeLedger) -> None:
    """Hello, then whatever the data plane says; every answer of the ledger arrives in order."""
    await until(lambda: plane.heard("watch_up") == [True])
    await link.send_watch(HELLO)
    await link.send_watch(ADD)
    await until(lambda: len(plane.heard("watch")) >= 3)
    assert [request.SerializeToString() for request in ledger.heard[0]] == [HELLO, ADD]
    messages = [limits_pb2.WatchLimitsResponse.FromString(message) for message in plane.heard("watch")]
    assert messages[0].WhichOneof("message") == "welcome"
    assert [message.heartbeat.change for message in messages[1:3]] == [0, 1]


async def test_watch_comes_back_after_the_ledger(link: LedgerLink, plane: FakePlane, ledger: FakeLedger) -> None:
    """A broken stream is told once, nothing is sent meanwhile, and the next one begins with its own hello."""
    await until(lambda: plane.heard("watch_up") == [True])
    await link.send_watch(HELLO)
    await until(lambda: plane.heard("watch"))
    port = ledger.port
    await ledger.stop()
    await until(lambda: plane.heard("watch_up") == [True, False])
    with pytest.raises(NotSent):
        await link.send_watch(ADD)
    await ledger.start(port)
    await until(lambda: plane.heard("watch_up") == [True, False, True])
    with pytest.raises(NotSent):
        await link.send_watch(ADD)
    await link.send_watch(HELLO)
    await link.send_watch(ADD)
    await until(lambda: len(ledger.heard[-1]) == 2)
    assert [request.SerializeToString() for request in ledger.heard[-1]] == [HELLO, ADD]


async def test_a_ledger_that_is_away_from_the_start_is_told_once(plane: FakePlane, ledger: FakeLedger) -> None:
    """Whoever can't connect at the start tells the data plane so, once, and goes on trying."""
    port = ledger.port
    await ledger.stop()
    link = LedgerLink(f"127.0.0.1:{port}", Outbox(plane.give_answers), backoff=quick())
    running = asyncio.ensure_future(link.run())
    try:
        await until(lambda: plane.heard("watch_up") == [False])
        with pytest.raises(NotSent):
            await link.unary(ALLOT, REQUEST, timeout_s=60)
        await ledger.start(port)
        await until(lambda: plane.heard("watch_up") == [False, True])
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_silent_stream_is_given_up(link: LedgerLink, plane: FakePlane, ledger: FakeLedger) -> None:
    """A stream without heartbeats is no proof of anything: it is closed and opened again."""
    ledger.heartbeat_s = 60
    await until(lambda: plane.heard("watch_up") == [True])
    await link.send_watch(HELLO)
    await until(lambda: plane.heard("watch_up")[:3] == [True, False, True])


async def test_second_hello_begins_a_fresh_stream(link: LedgerLink, plane: FakePlane, ledger: FakeLedger) -> None:
    """Two hellos on one stream would be a lie about its beginning: the stream begins anew."""
    await until(lambda: plane.heard("watch_up") == [True])
    await link.send_watch(HELLO)
    with pytest.raises(NotSent):
        await link.send_watch(HELLO)
    await until(lambda: plane.heard("watch_up") == [True, False, True])
    await link.send_watch(HELLO)
    await until(lambda: len(ledger.heard) == 2 and len(ledger.heard[1]) == 1)


def test_backoff_grows_and_resets() -> None:
    """Pauses double up to a bound, spread by half around, and begin anew after a success."""
    backoff = Backoff(first_s=1, most_s=8, random=Random(3))
    for middle in (1, 2, 4, 8, 8):
        assert middle / 2 <= backoff.next_s() <= middle * 1.5
    backoff.reset()
    assert backoff.next_s() <= 1.5
