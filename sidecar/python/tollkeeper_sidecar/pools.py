"""Carries function calls and subscriptions to Redis, and tells the data plane whether notices are still heard."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import structlog
from redis.exceptions import AskError, MovedError, RedisError, ResponseError
from tollkeeper.bridge.v1 import bridge_pb2

from tollkeeper_sidecar.backoff import Backoff
from tollkeeper_sidecar.errors import NotSent
from tollkeeper_sidecar.redis_connection import FunctionLink, NoticeLink

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tollkeeper_sidecar.outbox import Outbox
    from tollkeeper_sidecar.redis_topology import Layout, Locator, Server

PING_INTERVAL_S: Final = 0.04

LOOK_INTERVAL_S: Final = 5.0
"""While every connection is up, the layout is looked up so often; sooner after a sign that it changed."""

LOOK_DISTANCE_S: Final = 0.1

LINK_OPTIONS: Final[Mapping[str, Any]] = {"socket_timeout": None, "protocol": 2}
"""Reads wait for as long as the server is silent: silence is judged by the links."""

_log = structlog.get_logger(__name__)


class RedisPools:
    """Two connections to every primary. What may have been carried out is never repeated here.

    A call that a server sent elsewhere (MOVED, ASK) was not carried out: it is sent there, once. Subscriptions count
    as lost, before that answer is told, wherever a slot has, or may get, another owner.
    """

    def __init__(self, locator: Locator, outbox: Outbox) -> None:
        self._locator, self._outbox = locator, outbox
        self._layout: Layout | None = None
        self._looked = asyncio.Event()
        self._stale = asyncio.Event()
        self._functions: dict[str, FunctionLink] = {}
        self._notices: dict[str, NoticeLink] = {}
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Follow the layout and keep every connection up until cancelled."""
        backoff = Backoff()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                while True:
                    self._stale.clear()
                    is_known = await self._look()
                    if self._locator.is_fixed:
                        await asyncio.get_running_loop().create_future()
                    is_sound = is_known and all(link.connected for link in self._notices.values())
                    if is_sound:
                        backoff.reset()
                    await self._wait(LOOK_INTERVAL_S if is_sound else backoff.next_s())
        finally:
            self._group = None

    async def _wait(self, seconds: float) -> None:
        """Wait so long, or until there is a sign that the layout changed."""
        try:
            async with asyncio.timeout(seconds):
                await self._stale.wait()
        except TimeoutError:
            return
        # A sign may come with every answer: look-ups keep a distance.
        await asyncio.sleep(min(seconds, LOOK_DISTANCE_S))

    async def _look(self) -> bool:
        try:
            self._adopt(await self._locator.locate())
        except RedisError as error:
            _log.warning("nobody says where keys are in redis", error=str(error))
            return False
        finally:
            self._looked.set()
        return True

    def _adopt(self, layout: Layout) -> None:
        """Connect to new primaries, leave old ones, and void subscriptions that no longer are where notices come."""
        self._layout = layout
        names = {server.name for server in layout.primaries}
        gone = self._tasks.keys() - names
        moved = [link for link in self._notices.values() if self._is_elsewhere(link, layout)]
        if gone or moved:
            _log.info("keys moved in redis", left=sorted(gone), moved=[link.name for link in moved])
            self._void()
        for link in moved:
            link.break_off()
        for name in gone:
            self._functions.pop(name, None)
            self._notices.pop(name, None)
            for task in self._tasks.pop(name):
                task.cancel()
        for server in layout.primaries:
            self._function_link(server)
            self._notice_link(server)

    @staticmethod
    def _is_elsewhere(link: NoticeLink, layout: Layout) -> bool:
        owners = {owner.name if owner else "" for owner in map(layout.owner_of, link.channels)}
        return bool(owners - {link.name})

    async def call(self, calls: Sequence[bridge_pb2.RedisCall]) -> bridge_pb2.RedisReplies:
        """Call functions, one pipeline per server, and return a reply for each in its order.

        Raises NotSent where no server could be reached, OutcomeUnknown where one broke off. Where one of several
        servers could not be reached, its calls get an error reply: they were not carried out.
        """
        groups: dict[str, list[int]] = {}
        links: dict[str, FunctionLink] = {}
        for index, call in enumerate(calls):
            server = await self._owner_of(call.keys[0])
            links[server.name] = self._function_link(server)
            groups.setdefault(server.name, []).append(index)
        replies = [bridge_pb2.RedisReply() for _ in calls]

        async def one(name: str, indices: list[int]) -> NotSent | None:
            try:
                answers = await links[name].call([_command(calls[index]) for index in indices])
            except NotSent as failed:
                for index in indices:
                    replies[index].error = failed.message
                return failed
            for index, answer in zip(indices, answers, strict=True):
                final = await self._follow(answer, calls[index]) if isinstance(answer, AskError) else answer
                self._fill(replies[index], final)
            return None

        unsent = [failed for failed in await asyncio.gather(*(one(*group) for group in groups.items())) if failed]
        if unsent and len(unsent) == len(groups):
            raise unsent[0]
        return bridge_pb2.RedisReplies(replies=replies)

    async def _follow(self, redirection: AskError, call: bridge_pb2.RedisCall) -> Any:
        """Send a call where its server said that the slot is; gives the answer, or the redirection where none came.

        Nothing of it was carried out before. Notices of a slot on its way may come from either side: none is proof.
        """
        self._void()
        self._stale.set()
        link = self._function_link(self._locator.server_at(redirection.host, redirection.port))
        asking: list[Sequence[str | int]] = [] if isinstance(redirection, MovedError) else [("ASKING",)]
        try:
            return (await link.call([*asking, _command(call)]))[-1]
        except NotSent:
            return redirection

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe and return when every channel is confirmed. Raises CommandFailed."""
        await asyncio.gather(
            *(self._notice_link(server).subscribe(names) for server, names in await self._by_owner(channels))
        )

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """Leave channels. Raises CommandFailed."""
        await asyncio.gather(
            *(self._notice_link(server).unsubscribe(names) for server, names in await self._by_owner(channels))
        )

    def _fill(self, reply: bridge_pb2.RedisReply, answer: Any) -> None:
        if isinstance(answer, list):
            reply.elements.extend(
                part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in answer
            )
            if reply.elements[:1] == ["ERR"]:
                # The pool may be where this process does not look yet: told to the ledger, a healthy one would be lost.
                self._stale.set()
        else:
            reply.error = f"{type(answer).__name__}: {answer}"
            if isinstance(answer, ResponseError):
                self._stale.set()

    async def _by_owner(self, channels: Sequence[str]) -> list[tuple[Server, list[str]]]:
        grouped: dict[str, tuple[Server, list[str]]] = {}
        for channel in channels:
            server = await self._owner_of(channel)
            grouped.setdefault(server.name, (server, []))[1].append(channel)
        return list(grouped.values())

    async def _owner_of(self, key: str) -> Server:
        await self._looked.wait()
        owner = self._layout.owner_of(key) if self._layout else None
        if owner is None:
            self._stale.set()
            raise NotSent("nobody says which Redis server has the key")
        return owner

    def _function_link(self, server: Server) -> FunctionLink:
        if server.name not in self._functions:
            self._functions[server.name] = FunctionLink(server.connection, name=server.name)
            self._spawn(self._functions[server.name])
        return self._functions[server.name]

    def _notice_link(self, server: Server) -> NoticeLink:
        if server.name not in self._notices:
            self._notices[server.name] = NoticeLink(
                server.connection,
                name=server.name,
                ping_interval_s=PING_INTERVAL_S,
                on_notice=self._heard,
                on_pong=self._alive,
                on_lost=self._lost,
            )
            self._spawn(self._notices[server.name])
        return self._notices[server.name]

    def _spawn(self, link: FunctionLink | NoticeLink) -> None:
        if self._group is None:
            raise NotSent("the control plane is stopping")
        self._tasks.setdefault(link.name, []).append(self._group.create_task(link.run()))

    def _heard(self, channel: str, message: str) -> None:
        notice = bridge_pb2.Notice(channel=channel, message=message)
        self._outbox.put(bridge_pb2.Answer(notice=notice))

    def _alive(self, _link: NoticeLink) -> None:
        # The server of a cluster that is silent longest speaks for all: whose proof it was is not known here.
        heard = [link.alive_at_s for link in self._notices.values()]
        sent = [at_s for at_s in heard if at_s is not None]
        if len(sent) == len(heard):
            self._outbox.put(bridge_pb2.Answer(redis_alive=True, sent_us=int(min(sent) * 1_000_000)))

    def _lost(self, _link: NoticeLink) -> None:
        self._stale.set()
        self._void()

    def _void(self) -> None:
        """Tell the data plane that no subscription counts any more."""
        self._outbox.put(bridge_pb2.Answer(redis_lost=True))


def _command(call: bridge_pb2.RedisCall) -> Sequence[str | int]:
    return ("FCALL", call.function, len(call.keys), *call.keys, *call.arguments)
