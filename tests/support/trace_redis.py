"""Replays simulator traces against the real functions on a real Valkey, and compares every reply and every state.

A trace is what `quota-sim` wrote: its README has the format. Two servers stand for the simulator's pair: a fail-over
is another replication history on the other server, with the data that it last got.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import redis
from tollkeeper_ledger.store import functions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Line: TypeAlias = dict[str, Any]
_POOL_FIELDS = ("generation", "total", "granted", "returned", "seq", "final", "closed", "wanted", "amount_version")
_BUCKET_FIELDS = ("generation", "level", "credit", "rate", "interval", "ledger_us", "real_us", "ahead")
_MARKER_FIELDS = ("generation", "first", "opened_us", "speed", "real_us", "ledger_us", "ledger_rest")
_CLOCK_KEY = "test:clock"


class Mismatch(AssertionError):  # noqa: N818 - what it is, not what went wrong
    """A real part did something else than the simulator's model: where, and both."""

    def __init__(self, where: str, what: str, expected: object, actual: object) -> None:
        super().__init__(f"{where}: {what}\n  model: {expected}\n  real:  {actual}")
        name, _, rest = where.partition(":")
        self.trace, self.line = name, int(rest.split(" ", maxsplit=1)[0])


def with_virtual_time(source: str) -> str:
    """Let token buckets read the trace's time instead of Redis'. Pools keep the real one: it only expires keys."""
    real, virtual = (
        "local function redis_now_us()\n",
        (
            f"local function bucket_now_us() return tonumber(redis.call('GET', '{_CLOCK_KEY}')) end\n"
            "local function redis_now_us()\n"
        ),
    )
    replaced = {real: virtual, "local now_us = redis_now_us()": "local now_us = bucket_now_us()"}
    replaced |= {"at = redis_now_us()": "at = bucket_now_us()"}
    for old, new in replaced.items():
        if source.count(old) != 1:
            raise AssertionError(f"{source.count(old)} places have {old!r}; expected 1")
        source = source.replace(old, new)
    return source


@dataclass(slots=True)
class _Asked:
    """A call that is on its way: the trace's line and what comes back for it."""

    number: int
    line: Line
    parts: tuple[str, ...]


@dataclass(slots=True)
class RedisReplay:
    """A pair of servers on which traces run one after the other. Not more than one at a time."""

    clients: tuple[Any, Any]
    source: str = field(default_factory=functions.source)
    calls: int = 0
    """Calls compared so far."""
    _histories: dict[int, str] = field(default_factory=dict)
    _holders: dict[str, str] = field(default_factory=dict)

    def load(self) -> None:
        """Bring the library to both servers."""
        for client in self.clients:
            client.execute_command("FUNCTION LOAD", "REPLACE", with_virtual_time(self.source))

    def run(self, name: str, lines: Iterable[Line]) -> None:
        """Replay one trace. Raises Mismatch at the first difference."""
        for client in self.clients:
            client.flushall()
        self._histories = {1: self._history(0)}
        self._holders = {}
        asked: list[_Asked] = []
        server = 0
        for number, line in enumerate(lines):
            if line["kind"] == "call" and asked and line["server"] != server:
                self._compare(name, server, asked)
            if line["kind"] == "call":
                server = line["server"]
                asked.append(_Asked(number, line, ()))
            elif line["kind"] == "fault":
                self._compare(name, server, asked)
                self._fault(f"{name}:{number} {line['what']}", line)
        self._compare(name, server, asked)

    def _compare(self, name: str, server: int, asked: list[_Asked]) -> None:
        """Send calls in one pipeline, each followed by what shows the state after it, and compare."""
        if not asked:
            return
        pipeline = self.clients[server].pipeline(transaction=False)
        for one in asked:
            one.parts = tuple(self._send(pipeline, one.line))
        replies = iter(pipeline.execute(raise_on_error=False))
        for one in asked:
            where = f"{name}:{one.number} {one.line['function']}{one.line['args']}"
            got = {part: next(replies) for part in one.parts}
            if one.line["reply"] is not None and one.line["reply"] != got["reply"]:
                raise Mismatch(where, "reply", one.line["reply"], got["reply"])
            if "pool" in got:
                self._compare_pool(where, one.line["pool"], got["pool"], got.get("holders", {}))
            if "marker" in got:
                self._compare_bucket(where, one.line, got)
        self.calls += len(asked)
        asked.clear()

    def _send(self, pipeline: Any, line: Line) -> Iterator[str]:
        """Put a call and the questions after it into a pipeline; gives what each reply is."""
        keys = line["keys"]
        is_bucket = line["function"].startswith("bucket")
        if is_bucket:
            pipeline.set(_CLOCK_KEY, line["redis_us"])
            yield "clock"
        pipeline.execute_command("FCALL", line["function"], len(keys), *keys, *line["args"])
        yield "reply"
        if is_bucket:
            pipeline.hmget(keys[0], *_MARKER_FIELDS, "fence")
            yield "marker"
            if len(keys) > 1:
                pipeline.hmget(keys[1], *_BUCKET_FIELDS)
                yield "bucket"
            return
        pipeline.hmget(keys[0], *_POOL_FIELDS, "fence")
        yield "pool"
        if len(keys) > 1:
            self._holders[keys[0]] = keys[1]
        if keys[0] in self._holders:
            pipeline.hgetall(self._holders[keys[0]])
            yield "holders"

    def _compare_pool(self, where: str, model: Line | None, pool: list[str | None], holders: dict[str, str]) -> None:
        if model is None:
            if any(pool):
                raise Mismatch(where, "pool", None, pool)
            return
        expected = [*(str(int(model[name])) for name in _POOL_FIELDS), self._histories.get(model["history"])]
        if expected != pool:
            raise Mismatch(where, f"pool {_POOL_FIELDS} fence", expected, pool)
        if model["holders"] != holders:
            raise Mismatch(where, "holders", model["holders"], holders)

    def _compare_bucket(self, where: str, line: Line, got: dict[str, Any]) -> None:
        model = line["marker"]
        expected = [None] * (len(_MARKER_FIELDS) + 1)
        if model is not None:
            expected = [*(str(model[name]) for name in _MARKER_FIELDS), self._histories.get(model["history"])]
        if expected != got["marker"]:
            raise Mismatch(where, f"marker {_MARKER_FIELDS} fence", expected, got["marker"])
        if line["bucket"] is not None:
            expected = [str(line["bucket"][name]) for name in _BUCKET_FIELDS]
            if expected != got["bucket"]:
                raise Mismatch(where, f"bucket {_BUCKET_FIELDS}", expected, got["bucket"])

    def _fault(self, where: str, line: Line) -> None:
        master = line["master"]
        client = self.clients[master]
        match line["what"]:
            case "flush":
                client.flushall()
            case "restart":
                client.flushall()
                self._new_history(master)
            case "replicate":
                self._replicate(client, self.clients[1 - master])
            case "failover":
                self._new_history(master)
            case other:
                raise AssertionError(f"{where}: unknown fault {other!r}")
        if line["what"] in {"restart", "failover"}:
            self._histories[line["history"]] = self._history(master)
        pipeline = client.pipeline(transaction=False)
        for key in line["pools"]:
            pipeline.hmget(key, *_POOL_FIELDS, "fence")
            pipeline.hgetall(self._holders.get(key, ""))
        replies = iter(pipeline.execute())
        for key, model in line["pools"].items():
            self._compare_pool(f"{where} {key}", model, next(replies), next(replies))

    def _history(self, server: int) -> str:
        found: str = self.clients[server].info("replication")["master_replid"]
        return found

    def _new_history(self, server: int) -> None:
        """Follow nobody for a moment: another history with the same data."""
        self.clients[server].execute_command("REPLICAOF", "127.0.0.1", "1")
        self.clients[server].execute_command("REPLICAOF", "NO", "ONE")

    @staticmethod
    def _replicate(master: Any, other: Any) -> None:
        """Bring the other server to what the master has, keys and times to live."""
        keys = [key for key in master.keys("*") if key != _CLOCK_KEY]
        reading = master.pipeline(transaction=False)
        for key in keys:
            reading.execute_command("DUMP", key, NEVER_DECODE=True)
            reading.pexpiretime(key)
        found = iter(reading.execute())
        writing = other.pipeline(transaction=False)
        writing.flushall()
        for key in keys:
            data, expires_ms = next(found), next(found)
            if data is not None:
                writing.restore(key, max(0, expires_ms), data, absttl=True)
        writing.execute()


def connect(port: int) -> Any:
    """Connect to one server of a pair."""
    return redis.Redis(host="127.0.0.1", port=port, decode_responses=True)


def connect_url(url: str) -> Any:
    """Connect to one server of a pair by its URL."""
    return redis.Redis.from_url(url, decode_responses=True)
