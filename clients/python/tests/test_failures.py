"""Every failure has its type, and says what to do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import tollkeeper_client
from tollkeeper_client import (
    AsyncClient,
    Client,
    ClientClosed,
    DeadlineExceeded,
    Denied,
    InvalidRequest,
    LedgerUnreachable,
    NotFound,
    NotServed,
    PermissionDenied,
    ReservationClosed,
    ReservationInvalid,
    SidecarError,
    SidecarFull,
    SidecarStarting,
    TollkeeperError,
    Unavailable,
    errors,
    target,
    uuid7,
)

from .conftest import failing  # noqa: TID252 - test folders are not packages on the path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import FakeSidecar  # noqa: TID252 - test folders are not packages on the path

CASES = [
    (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_OUT_OF_RANGE", InvalidRequest),
    (grpc.StatusCode.INVALID_ARGUMENT, "RESERVATION_INVALID", ReservationInvalid),
    (grpc.StatusCode.NOT_FOUND, "TENANT_UNKNOWN", NotFound),
    (grpc.StatusCode.FAILED_PRECONDITION, "RESERVATION_RELEASED", ReservationClosed),
    (grpc.StatusCode.FAILED_PRECONDITION, "RESERVATION_ELSEWHERE", ReservationClosed),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "SIDECAR_FULL", SidecarFull),
    (grpc.StatusCode.UNAVAILABLE, "SIDECAR_STARTING", SidecarStarting),
    (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNREACHABLE", LedgerUnreachable),
    (grpc.StatusCode.UNAVAILABLE, "USAGE_LOG_IO", Unavailable),
    (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", NotServed),
    (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", PermissionDenied),
    (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", DeadlineExceeded),
    (grpc.StatusCode.INTERNAL, "INTERNAL", SidecarError),
    (grpc.StatusCode.DATA_LOSS, "", SidecarError),
]


@pytest.mark.parametrize(("code", "reason", "kind"), CASES)
async def test_each_failure_has_its_type(
    sidecar: FakeSidecar, code: grpc.StatusCode, reason: str, kind: type[TollkeeperError]
) -> None:
    """Code and reason choose the type, the same in both clients; reason, fields and pause come along."""
    sidecar.failure = failing(
        code, reason, retry_s=2, field="costs[0].units", bound="0 to 9", remedy="less", value="10"
    )
    async with AsyncClient(sidecar.address, timeout_s=60) as client:
        with pytest.raises(TollkeeperError) as awaited:
            await client.check("acme", {"a": 10})
    with Client(sidecar.path, timeout_s=60) as blocking, pytest.raises(TollkeeperError) as waited:
        blocking.check("acme", {"a": 10})
    for error in (awaited.value, waited.value):
        assert type(error) is kind
        assert (error.reason, error.retry_after) == (reason, timedelta(seconds=2))
        if isinstance(error, InvalidRequest):
            assert (error.field, error.value, error.bound, error.remedy) == ("costs[0].units", "10", "0 to 9", "less")


def test_tree_in_the_docstring_is_the_tree() -> None:
    """Every error stands in the drawn tree, and everything drawn exists."""
    drawn = {line.split()[-1 if line.startswith("Toll") else 1] for line in tree_lines()}
    real = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, TollkeeperError)}
    assert real == drawn
    assert real <= set(tollkeeper_client.__all__)


def tree_lines() -> list[str]:
    """Return the lines of the drawn tree, its branches cut off."""
    lines = (errors.__doc__ or "").splitlines()[2:]
    return [("x " if "─" in line else "") + line.replace("│", "").lstrip(" ├└─") for line in lines if line.strip()]


def test_nobody_there_is_unavailable_at_once() -> None:
    """Without a sidecar the call fails at once, not at its deadline."""
    begin_s = time.monotonic()
    with Client("127.0.0.1:1", timeout_s=90) as client, pytest.raises(Unavailable):
        client.check("acme")
    assert time.monotonic() - begin_s < 30


def hang(sidecar: FakeSidecar) -> Callable[[Any], None]:
    """Answer nothing until the test ends."""
    return lambda _context: sidecar.release_now.wait(30) and None


async def test_deadlines_are_kept(sidecar: FakeSidecar) -> None:
    """A second is the default; each client and each call may choose; the sidecar is told."""
    with Client(sidecar.path) as client:
        with contextlib.suppress(
            DeadlineExceeded
        ):  # The machine may be slow: what counts is what the sidecar was told.
            client.check("acme")
        client.check("acme", timeout_s=70)
    async with AsyncClient(sidecar.path, timeout_s=30) as awaiting:
        await awaiting.check("acme")
    short, own, longer = sidecar.deadlines
    assert short < 1.5 < longer < 31 < own < 71
    sidecar.failure = hang(sidecar)
    with Client(sidecar.path, timeout_s=0.05) as client, pytest.raises(DeadlineExceeded):
        client.check("acme")


async def test_closed_clients_say_so(sidecar: FakeSidecar) -> None:
    """A call after close is a typed error in both clients, and closing twice is harmless."""
    client = Client(sidecar.path)
    client.close()
    client.close()
    with pytest.raises(ClientClosed):
        client.check("acme")
    awaiting = AsyncClient(sidecar.path)
    await awaiting.close()
    await awaiting.close()
    with pytest.raises(ClientClosed):
        await awaiting.check("acme")


def test_one_client_serves_many_threads(sidecar: FakeSidecar) -> None:
    """The blocking client is shared by threads."""
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(20):
                client.check("acme")
        except BaseException as error:  # noqa: BLE001 - the main thread must see it
            failed.append(error)

    with Client(sidecar.path, timeout_s=60) as client:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (failed, len(sidecar.seen)) == ([], 160)


def test_target_comes_from_argument_then_environment() -> None:
    """An argument wins, then the environment's socket, then its address, then the default."""
    both = {"TOLLKEEPER_SIDECAR_SOCKET": "/run/t.sock", "TOLLKEEPER_SIDECAR_LISTEN": "h:1"}
    assert target.find("/x.sock", both) == "unix:/x.sock"
    assert target.find("unix:x.sock", both) == "unix:x.sock"
    assert target.find("a:2", both) == "a:2"
    assert target.find(None, both) == "unix:/run/t.sock"
    assert target.find(None, {"TOLLKEEPER_SIDECAR_LISTEN": "h:1"}) == "h:1"
    assert target.find(None, {}) == "127.0.0.1:8601"


def test_authority_on_a_unix_socket_is_wellformed(tmp_path: Path) -> None:
    """HTTP/2 servers refuse an escaped path as `:authority`, so the first frames say localhost."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        heard = bytearray()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(bytes.fromhex("000000040000000000"))  # An empty SETTINGS frame.
                while b"CheckQuota" not in heard and (more := peer.recv(65536)):
                    heard.extend(more)

        thread = threading.Thread(target=serve)
        thread.start()
        with Client(path) as client, pytest.raises(TollkeeperError):
            client.check("acme")
        thread.join()
    assert b"localhost" in heard
    assert b"%2F" not in heard


def test_ids_sort_by_time_and_have_their_version() -> None:
    """UUIDv7: 48 bits of milliseconds, version, variant, the rest random."""
    assert uuid7(now_ms=0x017F22E279B0, random_bits=(0xCC3 << 62) | 0x18C4DC0C0C07398F) == (
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"
    )
    ids = [uuid7(now_ms=number) for number in range(1_000)]
    assert ids == sorted(ids)
    assert len({uuid7(now_ms=1) for _ in range(1_000)}) == 1_000


async def test_stream_answers_each_its_own(sidecar: FakeSidecar) -> None:
    """Answers in another order find their askers; an error hits one check alone."""
    async with AsyncClient(sidecar.path, timeout_s=60) as client, client.stream() as stream:
        names = [f"pair{number}" for number in range(200)]
        decisions = await asyncio.gather(*(stream.check(name, {"a": 1}) for name in names))
        assert names == [decision.subject for decision in decisions]
        with pytest.raises(InvalidRequest) as caught:
            await stream.check("bad")
        assert caught.value.field == "tenant"
        with pytest.raises(Denied):
            await stream.check("poor", raise_on_denial=True)


async def test_stream_survives_a_late_check(sidecar: FakeSidecar) -> None:
    """A check that ran out of time ends alone."""
    async with AsyncClient(sidecar.path, timeout_s=60) as client, client.stream() as stream:
        with pytest.raises(DeadlineExceeded):
            await stream.check("hang", timeout_s=0.05)
        assert (await stream.check("fine")).subject == "fine"


async def test_broken_stream_tells_everybody(sidecar: FakeSidecar) -> None:
    """When the stream ends, checks in flight and later ones fail at once; a closed one says so."""
    async with AsyncClient(sidecar.path, timeout_s=60) as client:
        async with client.stream() as stream:
            waiting = asyncio.ensure_future(stream.check("hang"))
            await stream.check("fine")
            with pytest.raises(Unavailable):
                await stream.check("end")
            with pytest.raises(Unavailable):
                await waiting
            with pytest.raises(Unavailable):
                await stream.check("fine")
        with pytest.raises(ClientClosed):
            await stream.check("fine")
        with pytest.raises(ClientClosed):
            await client.stream().check("fine")
