"""A reservation in a block ends exactly once, whatever happens in the block."""

# ruff: noqa: PT012 - the block under test is the statement

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tollkeeper.quota.v1 import decision_pb2, quota_pb2
from tollkeeper_client import AsyncClient, Client, ReservationClosed, SidecarError, Unavailable

from .conftest import failing  # noqa: TID252 - test folders are not packages on the path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from .conftest import FakeSidecar  # noqa: TID252 - test folders are not packages on the path


@pytest.fixture
def client(sidecar: FakeSidecar) -> Iterator[Client]:
    """Give a blocking client."""
    with Client(sidecar.path, timeout_s=60) as client:
        yield client


@pytest.fixture
async def async_client(sidecar: FakeSidecar) -> AsyncIterator[AsyncClient]:
    """Give an asyncio client."""
    async with AsyncClient(sidecar.path, timeout_s=60) as client:
        yield client


def kinds(sidecar: FakeSidecar) -> list[str]:
    """Return what the sidecar was asked, in order."""
    return [type(request).__name__.removesuffix("Request") for request in sidecar.seen]


HELD = "token of x"
RESERVED, SETTLED, RELEASED = "CheckQuota", "SettleReservation", "ReleaseReservation"


def test_settled_in_the_block(client: Client, sidecar: FakeSidecar) -> None:
    """What is settled is not released."""
    with client.reserve("acme", {"a": 5}, request_id="x") as hold:
        hold.settle({"a": 3})
    assert kinds(sidecar) == [RESERVED, SETTLED]
    assert sidecar.seen[1].token == HELD


def test_exception_releases(client: Client, sidecar: FakeSidecar) -> None:
    """An exception in the block releases and goes on."""
    with pytest.raises(ZeroDivisionError), client.reserve("acme", {"a": 5}):
        raise ZeroDivisionError
    assert kinds(sidecar) == [RESERVED, RELEASED]


def test_forgotten_settlement_releases(client: Client, sidecar: FakeSidecar) -> None:
    """A block that ends without settling gives everything back."""
    with client.reserve("acme", {"a": 5}):
        pass
    assert kinds(sidecar) == [RESERVED, RELEASED]


def test_released_once(client: Client, sidecar: FakeSidecar) -> None:
    """A release in the block is the only one."""
    with client.reserve("acme", {"a": 5}) as hold:
        hold.release()
    assert kinds(sidecar) == [RESERVED, RELEASED]


def test_failed_settlement_is_never_released(client: Client, sidecar: FakeSidecar) -> None:
    """A settlement of unknown outcome may have been done: it can be repeated, and nothing unbills it."""
    with pytest.raises(Unavailable), client.reserve("acme", {"a": 5}) as hold:
        sidecar.failure = failing(grpc.StatusCode.UNAVAILABLE)
        hold.settle({"a": 3})
    sidecar.failure = None
    assert hold.settle({"a": 3}).record_id == "r/1"
    assert kinds(sidecar) == [RESERVED, SETTLED, SETTLED]


def test_failed_release_hides_no_exception(client: Client, sidecar: FakeSidecar) -> None:
    """The block's own exception goes on, with a note that the reservation will expire."""
    with pytest.raises(ZeroDivisionError) as caught, client.reserve("acme", {"a": 5}):
        sidecar.failure = failing(grpc.StatusCode.UNAVAILABLE)
        raise ZeroDivisionError
    assert "will expire" in caught.value.__notes__[0]


def test_failed_release_is_told(client: Client, sidecar: FakeSidecar) -> None:
    """Where the block itself went well, a release that fails raises."""
    with pytest.raises(Unavailable), client.reserve("acme", {"a": 5}):
        sidecar.failure = failing(grpc.StatusCode.UNAVAILABLE)


def deny(sidecar: FakeSidecar) -> None:
    """Let the sidecar say no."""
    denied = decision_pb2.Decision(reason=decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED)
    sidecar.answers["CheckQuota"] = quota_pb2.CheckQuotaResponse(decision=denied)


def test_denied_hold_ends_nothing(client: Client, sidecar: FakeSidecar) -> None:
    """A denied reservation has no token; settling it is an error, and the block's end sends nothing."""
    deny(sidecar)
    with client.reserve("acme", {"a": 5}) as hold:
        assert (hold.allowed, hold.token, str(hold.decision.reason)) == (False, None, "QUOTA_EXHAUSTED")
        with pytest.raises(ReservationClosed):
            hold.settle({"a": 1})
    assert kinds(sidecar) == [RESERVED]


def test_admission_without_a_token_is_an_error(client: Client, sidecar: FakeSidecar) -> None:
    """A sidecar that says yes and names nothing is not believed."""
    sidecar.answers["CheckQuota"] = quota_pb2.CheckQuotaResponse(decision=decision_pb2.Decision(allowed=True))
    with pytest.raises(SidecarError):
        client.reserve("acme", {"a": 5})


async def test_async_block(async_client: AsyncClient, sidecar: FakeSidecar) -> None:
    """The asyncio hold does the same: settle once, release otherwise, nothing where denied."""
    async with async_client.reserve("acme", {"a": 5}) as hold:
        await hold.settle({"a": 3})
    with pytest.raises(ZeroDivisionError):
        async with async_client.reserve("acme", {"a": 5}):
            raise ZeroDivisionError
    assert kinds(sidecar) == [RESERVED, SETTLED, RESERVED, RELEASED]
    deny(sidecar)
    async with async_client.reserve("acme", {"a": 5}) as hold:
        assert not hold.allowed
    assert len(sidecar.seen) == 5


async def test_async_failures(async_client: AsyncClient, sidecar: FakeSidecar) -> None:
    """A failed settlement is not released; a failed release is told, or noted on the block's exception."""
    with pytest.raises(Unavailable):
        async with async_client.reserve("acme", {"a": 5}) as hold:
            sidecar.failure = failing(grpc.StatusCode.UNAVAILABLE)
            await hold.settle({"a": 3})
    assert kinds(sidecar) == [RESERVED, SETTLED]
    sidecar.failure = None
    caught: Any
    with pytest.raises(ZeroDivisionError) as caught:
        async with async_client.reserve("acme", {"a": 5}):
            sidecar.failure = failing(grpc.StatusCode.UNAVAILABLE)
            raise ZeroDivisionError
    assert "will expire" in caught.value.__notes__[0]


async def test_awaited_hold(async_client: AsyncClient, sidecar: FakeSidecar) -> None:
    """`await` reserves without a block, once; before it nothing is asked."""
    hold = async_client.reserve("acme", {"a": 5}, request_id="x")
    with pytest.raises(ReservationClosed):
        _ = hold.token
    assert sidecar.seen == []
    assert (await hold).token == HELD
    async with hold:
        await hold.release()
    assert kinds(sidecar) == [RESERVED, RELEASED]
