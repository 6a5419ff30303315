"""Reservations as context managers: whatever is not settled in the block is released at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_client.errors import ReservationClosed, TollkeeperError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping
    from datetime import datetime
    from types import TracebackType
    from typing import Any, Self

    from tollkeeper_client.client import AsyncClient, Client
    from tollkeeper_client.results import Decision, Release, Reserved, Settlement


class _Held:
    """What both kinds of holds know, and whether the end of the block still has to release."""

    def __init__(self) -> None:
        self._answer: Reserved | None = None
        self._ended = False

    @property
    def reserved(self) -> Reserved:
        """The whole answer. Raises ReservationClosed before there is one."""
        if self._answer is None:
            raise ReservationClosed("nothing is reserved yet: use `async with` or `await`", reason="NOT_RESERVED")
        return self._answer

    @property
    def allowed(self) -> bool:
        """Whether anything is held."""
        return self.reserved.decision.allowed

    @property
    def decision(self) -> Decision:
        """Why, and by which limit."""
        return self.reserved.decision

    @property
    def token(self) -> str | None:
        """Names the reservation at any sidecar, also after this process; absent where it was denied."""
        return self.reserved.token

    def _begin_end(self) -> str:
        """Return the token, and leave the end to the caller from here on.

        A settlement that fails may have been done: releasing after it could unbill what was used. So the block
        releases nothing any more; the caller settles again, or lets the reservation expire.
        """
        if self.token is None:
            raise ReservationClosed(f"nothing is reserved: {self.decision.reason}", reason="NOT_RESERVED")
        self._ended = True
        return self.token

    def _token_to_release(self) -> str | None:
        return None if self._ended or self._answer is None else self._answer.token


class Hold(_Held):
    """A reservation that was asked for. Without `with`, settle or release it yourself; else it expires."""

    def __init__(self, client: Client, reserved: Reserved) -> None:
        super().__init__()
        self._client, self._answer = client, reserved

    def settle(
        self,
        quantities: Mapping[str, int],
        *,
        attributes: Mapping[str, str] | None = None,
        event_time: datetime | None = None,
        timeout_s: float | None = None,
    ) -> Settlement:
        """End it at what was really used (units per meter). May be repeated after an error."""
        token = self._begin_end()
        return self._client.settle(token, quantities, attributes=attributes, event_time=event_time, timeout_s=timeout_s)

    def release(self, *, timeout_s: float | None = None) -> Release:
        """End it at zero. May be repeated after an error."""
        return self._client.release(self._begin_end(), timeout_s=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        token = self._token_to_release()
        if token is None:
            return
        try:
            self._client.release(token)
        except TollkeeperError as failed:
            if error is None:
                raise
            error.add_note(f"the reservation was not released and will expire: {failed}")


class AsyncHold(_Held):
    """A reservation to be asked for: `async with` or `await` does. As `Hold` otherwise."""

    def __init__(self, client: AsyncClient, ask: Callable[[], Awaitable[Reserved]]) -> None:
        super().__init__()
        self._client, self._ask = client, ask

    async def settle(
        self,
        quantities: Mapping[str, int],
        *,
        attributes: Mapping[str, str] | None = None,
        event_time: datetime | None = None,
        timeout_s: float | None = None,
    ) -> Settlement:
        """End it at what was really used (units per meter). May be repeated after an error."""
        token = self._begin_end()
        return await self._client.settle(
            token, quantities, attributes=attributes, event_time=event_time, timeout_s=timeout_s
        )

    async def release(self, *, timeout_s: float | None = None) -> Release:
        """End it at zero. May be repeated after an error."""
        return await self._client.release(self._begin_end(), timeout_s=timeout_s)

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        if self._answer is None:
            self._answer = await self._ask()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        token = self._token_to_release()
        if token is None:
            return
        try:
            await self._client.release(token)
        except TollkeeperError as failed:
            if error is None:
                raise
            error.add_note(f"the reservation was not released and will expire: {failed}")
