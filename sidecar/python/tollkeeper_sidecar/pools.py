"""Carries function calls and subscriptions to Redis, and tells the data plane whether notices are still heard."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import structlog
from redis.exceptions import RedisError, ResponseError
from tollkeeper.bridge.v1 import bridge_pb2

from tollkeeper_sidecar.backoff import Backoff
from tollkeeper_sidecar.errors import NotSent
from tollkeeper_sidecar.redis_connection import FunctionLink, NoticeLink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_sidecar.outbox import Outbox
    from tollkeeper_sidecar.redis_nodes import ClusterServers, Node, SingleServer

PING_INTERVAL_S: Final = 0.04
ALIVE_S: Final = 0.06
"""A pong counts as news of now only where its ping is at most this old."""

_log = structlog.get_logger(__name__)


class RedisPools:
    """Two connections to every server. Nothing is retried: what to repeat is the protocol's decision."""

    def __init__(self, nodes: SingleServer | ClusterServers, outbox: Outbox) -> None:
        self._nodes, self._outbox = nodes, outbox
        self._functions: dict[str, FunctionLink] = {}
        self._notices: dict[str, NoticeLink] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Keep every connection up until cancelled."""
        backoff = Backoff()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                while True:
                    try:
                        for node in await self._nodes.nodes():
                            self._function_link(node)
                            self._notice_link(node)
                        await asyncio.get_running_loop().create_future()
                    except (RedisError, OSError) as error:
                        _log.warning("no node of the redis cluster answers", error=str(error))
                        await asyncio.sleep(backoff.next_s())
        finally:
            self._group = None
            await self._nodes.close()

    async def call(self, calls: Sequence[bridge_pb2.RedisCall]) -> bridge_pb2.RedisReplies:
        """Call functions, one pipeline per server, and return a reply for each in its order.

        Raises NotSent where no server could be reached, OutcomeUnknown where one broke off. Where one of several
        servers could not be reached, its calls get an error reply: they were not carried out.
        """
        groups: dict[str, list[int]] = {}
        links: dict[str, FunctionLink] = {}
        for index, call in enumerate(calls):
            node = await self._node_of(call.keys[0])
            links[node.name] = self._function_link(node)
            groups.setdefault(node.name, []).append(index)
        replies = [bridge_pb2.RedisReply() for _ in calls]

        async def one(name: str, indices: list[int]) -> NotSent | None:
            commands: list[Sequence[str | int]] = [
                ("FCALL", calls[index].function, len(calls[index].keys), *calls[index].keys, *calls[index].arguments)
                for index in indices
            ]
            try:
                answers = await links[name].call(commands)
            except NotSent as failed:
                for index in indices:
                    replies[index].error = failed.message
                return failed
            for index, answer in zip(indices, answers, strict=True):
                self._fill(replies[index], answer)
            return None

        unsent = [failed for failed in await asyncio.gather(*(one(*group) for group in groups.items())) if failed]
        if unsent and len(unsent) == len(groups):
            raise unsent[0]
        return bridge_pb2.RedisReplies(replies=replies)

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe and return when every channel is confirmed. Raises CommandFailed."""
        await asyncio.gather(
            *(self._notice_link(node).subscribe(names) for node, names in await self._by_node(channels))
        )

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """Leave channels. Raises CommandFailed."""
        await asyncio.gather(
            *(self._notice_link(node).unsubscribe(names) for node, names in await self._by_node(channels))
        )

    def _fill(self, reply: bridge_pb2.RedisReply, answer: Any) -> None:
        if isinstance(answer, list):
            reply.elements.extend(
                part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in answer
            )
        else:
            reply.error = f"{type(answer).__name__}: {answer}"
            if isinstance(answer, ResponseError):
                self._nodes.forget()

    async def _by_node(self, channels: Sequence[str]) -> list[tuple[Node, list[str]]]:
        grouped: dict[str, tuple[Node, list[str]]] = {}
        for channel in channels:
            node = await self._node_of(channel)
            grouped.setdefault(node.name, (node, []))[1].append(channel)
        return list(grouped.values())

    async def _node_of(self, key: str) -> Node:
        try:
            return await self._nodes.node_of(key)
        except (RedisError, OSError) as error:
            raise NotSent(f"no node of the Redis cluster answers: {error}") from error

    def _function_link(self, node: Node) -> FunctionLink:
        if node.name not in self._functions:
            self._functions[node.name] = FunctionLink(node.make, name=node.name)
            self._spawn(self._functions[node.name])
        return self._functions[node.name]

    def _notice_link(self, node: Node) -> NoticeLink:
        if node.name not in self._notices:
            self._notices[node.name] = NoticeLink(
                node.make,
                name=node.name,
                ping_interval_s=PING_INTERVAL_S,
                on_notice=self._heard,
                on_pong=self._alive,
                on_lost=self._lost,
            )
            self._spawn(self._notices[node.name])
        return self._notices[node.name]

    def _spawn(self, link: FunctionLink | NoticeLink) -> None:
        if self._group is None:
            raise NotSent("the control plane is stopping")
        self._group.create_task(link.run())

    def _heard(self, channel: str, message: str) -> None:
        notice = bridge_pb2.Notice(channel=channel, message=message)
        self._outbox.put(bridge_pb2.Answer(notice=notice))

    def _alive(self, _link: NoticeLink) -> None:
        # One dead server of a cluster makes all proofs void: whose they are is not known here.
        now_s = asyncio.get_running_loop().time()
        heard = [link.alive_at_s for link in self._notices.values()]
        if all(at_s is not None and now_s - at_s <= ALIVE_S + PING_INTERVAL_S * (len(heard) > 1) for at_s in heard):
            self._outbox.put(bridge_pb2.Answer(redis_alive=True))

    def _lost(self, _link: NoticeLink) -> None:
        self._nodes.forget()
        self._outbox.put(bridge_pb2.Answer(redis_lost=True))
