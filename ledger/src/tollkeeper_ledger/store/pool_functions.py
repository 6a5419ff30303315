"""Tell Redis about pools and token buckets: what is open, how much is in it, what is closed."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from redis.exceptions import AskError, BusyLoadingError, ClusterDownError, MovedError, ReadOnlyError, RedisError

from tollkeeper_ledger.store.functions import is_missing, load
from tollkeeper_ledger.store.redis_servers import ANSWER_SECONDS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.store.limits import Identity
    from tollkeeper_ledger.store.redis_servers import Primary, RedisServers

SHARDS = 16
"""Hash tags of a token bucket limit that is split by key: so many slots of a cluster share its load."""

_TAG_BYTES = 12
_COMMANDS_PER_PIPELINE = 256
"""Longer ones would not be faster, and a busy machine would let one wait too long for its answer."""
_GONE = (["ERR", "NO_POOL"], ["ERR", "FENCE"])
_UNFIT = (ReadOnlyError, ClusterDownError, BusyLoadingError)
_POOLS_PER_COMMAND = 64
"""Redis does nothing else meanwhile: about a millisecond."""


@dataclass(frozen=True, slots=True)
class PoolKeys:
    """Names in Redis of one window's pool, all with one hash tag. The channel is the identity's."""

    pool: str
    holders: str
    channel: str
    values: str
    """Unique meters: the values seen in the window, as hashes."""


@dataclass(frozen=True, slots=True)
class BucketKeys:
    """Names in Redis of one shard of a limit's token buckets; the key hash in hex follows the prefix."""

    marker: str
    prefix: str
    channel: str


def _tag(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(4, "little"))
        digest.update(part)
    return digest.digest()[:_TAG_BYTES].hex()


@lru_cache(maxsize=4_096)
def pool_keys(identity: Identity, window_id: bytes) -> PoolKeys:
    """Name a window's pool. Pure; holds nothing personal, key values enter as their hash only.

    Remembered for the batch that names it in an answer and in what Redis is told: hashing is a tenth of an opening.
    """
    tag = _tag(identity[0].bytes, identity[1].encode(), identity[2])
    window = window_id.hex()
    return PoolKeys(
        pool=f"tk:{{{tag}}}:p:{window}",
        holders=f"tk:{{{tag}}}:h:{window}",
        channel=f"tk:{{{tag}}}:n",
        values=f"tk:{{{tag}}}:u:{window}",
    )


def shard_of(key_hash: bytes) -> int:
    """Give the shard of a token bucket limit that holds a key; an empty hash is a limit that nothing splits. Pure."""
    return key_hash[0] % SHARDS if key_hash else 0


def bucket_keys(tenant_id: UUID, limit_name: str, shard: int) -> BucketKeys:
    """Name a shard of a token bucket limit. Pure."""
    tag = _tag(tenant_id.bytes, limit_name.encode(), shard.to_bytes(4, "little"))
    return BucketKeys(marker=f"tk:{{{tag}}}:m", prefix=f"tk:{{{tag}}}:b:", channel=f"tk:{{{tag}}}:bn")


@dataclass(frozen=True, slots=True)
class Call:
    """One FCALL."""

    function: str
    keys: tuple[str, ...]
    arguments: tuple[int | str, ...]
    window_id: bytes = b""
    """The window that is to be told again, by pool_extend, where the outcome is unknown."""


def show_witness_call(installation_id: bytes, *, timeline: int, number: int, value: bytes) -> Call:
    """Give the call that keeps an installation's newest witness; its answer is the one that was there before."""
    return Call("witness_show", (f"tk:witness:{installation_id.hex()}",), (timeline, number, value.hex()))


def open_pool_call(
    keys: PoolKeys,
    *,
    window_id: bytes,
    generation: int,
    expire_at_unix_s: int,
    allotted_cum: int,
    amount_version: int,
    final: bool,
) -> Call:
    """Give the call that opens a generation with what went into it; to be sent once, never again."""
    arguments = (generation, expire_at_unix_s, allotted_cum, amount_version, int(final))
    return Call("pool_open", (keys.pool, keys.holders), arguments, window_id)


def extend_pool_call(
    keys: PoolKeys, *, window_id: bytes, generation: int, allotted_cum: int, amount_version: int, final: bool
) -> Call:
    """Give the call that says how much went into a generation; cumulative, so a repeat is harmless."""
    arguments = (generation, allotted_cum, amount_version, int(final), keys.channel)
    return Call("pool_extend", (keys.pool,), arguments, window_id)


def close_pool_call(keys: PoolKeys, *, generation: int) -> Call:
    """Give the call that ends a generation; its answer is what was never granted."""
    return Call("pool_close", (keys.pool,), (generation, keys.channel))


def look_at_pool_call(keys: PoolKeys, *, generation: int, holder: bytes) -> Call:
    """Give the call of a holder that asks for nothing; the seventh element of its answer is what went into the pool."""
    nothing = (0, 0, 0, 0, 0, 0)
    return Call("lease_grant", (keys.pool, keys.holders), (generation, holder.hex(), 1, *nothing, 1, keys.channel))


def open_bucket_call(keys: BucketKeys, *, generation: int, opened_at_us: int, speed_milli: int, first: bool) -> Call:
    """Give the call that opens a shard's generation; to be sent once, never again."""
    return Call("bucket_open", (keys.marker,), (generation, opened_at_us, speed_milli, int(first), keys.channel))


def bucket_speed_call(keys: BucketKeys, *, generation: int, speed_milli: int, now_us: int) -> Call:
    """Give the call that tells a shard how ledger time runs; a repeat is harmless."""
    return Call("bucket_speed", (keys.marker,), (generation, speed_milli, now_us))


class PoolFunctions:
    """Call the function library, one pipeline per server. What may have been carried out is never repeated by itself.

    Windows whose pool_extend has an unknown outcome are kept in `untold`, to be told again where they stand by then: a
    pool that goes on calling itself final would prove denials that are none. Windows whose pool is gone are kept in
    `gone`: whom it had refused hears of units from the ledger, for it can tell nobody.
    """

    def __init__(self, servers: RedisServers, log: FilteringBoundLogger) -> None:
        self._servers = servers
        self._log = log
        self._untold: set[bytes] = set()
        self._gone: set[bytes] = set()

    def take_untold(self, count_max: int) -> list[bytes]:
        """Give, and forget, windows whose pools may not know where they stand."""
        return _take(self._untold, count_max)

    def tell_again(self, window_ids: Iterable[bytes]) -> None:
        """Note windows whose pools may not know where they stand."""
        self._untold.update(window_ids)

    def take_gone(self, count_max: int) -> list[bytes]:
        """Give, and forget, windows whose pools were found to be gone."""
        return _take(self._gone, count_max)

    def note_gone(self, window_ids: Iterable[bytes]) -> None:
        """Note windows whose pools are gone, and nobody was told."""
        self._gone.update(window_ids)

    def serves(self, keys: PoolKeys) -> bool:
        """Tell whether the server of a pool is known, and not known to be down."""
        return self._servers.serves(keys.pool)

    def is_up(self) -> bool:
        """Tell whether every server is known, and not known to be down."""
        return self._servers.is_up()

    async def call(self, calls: Sequence[Call]) -> list[list[str] | None]:
        """Send calls; gives each one's reply, or None where the outcome is unknown, an error, or nothing was sent.

        Servers that are down are not asked. A call that its server did not carry out, because the slot is elsewhere or
        the library is missing, is sent once more where it belongs.
        """
        results: list[list[str] | None] = [None] * len(calls)
        elsewhere = await self._round(calls, results, [_Try(index) for index in range(len(calls))])
        if elsewhere:
            await self._round(calls, results, elsewhere)
        told = [(call, result) for call, result in zip(calls, results, strict=True) if call.window_id]
        self.tell_again(call.window_id for call, result in told if result is None)
        self.note_gone(call.window_id for call, result in told if call.function == "pool_extend" and result in _GONE)
        return results

    async def _round(self, calls: Sequence[Call], results: list[list[str] | None], tries: Sequence[_Try]) -> list[_Try]:
        """Send each call to its server; gives what was certainly not carried out and is to be sent elsewhere."""
        groups: dict[str, tuple[Primary, list[_Try]]] = {}
        for one in tries:
            primary = one.primary or self._servers.owner_of(calls[one.index].keys[0])
            if primary is not None and (primary.is_up or one.primary is not None):
                groups.setdefault(primary.name, (primary, []))[1].append(one)
        again = await asyncio.gather(*(self._ask(calls, results, *group) for group in groups.values()))
        return [one for some in again for one in some]

    async def _ask(
        self, calls: Sequence[Call], results: list[list[str] | None], primary: Primary, tries: Sequence[_Try]
    ) -> list[_Try]:
        again: list[_Try] = []
        missing: list[_Try] = []
        commands = self._commands(calls, tries)
        for begin in range(0, len(commands), _COMMANDS_PER_PIPELINE):
            some = commands[begin : begin + _COMMANDS_PER_PIPELINE]
            try:
                async with asyncio.timeout(ANSWER_SECONDS_MAX):
                    replies = iter(await _send(primary, some))
            except (RedisError, OSError, TimeoutError) as error:
                self._log.warning("redis did not answer", server=primary.name, calls=len(some), error=_named(error))
                self._servers.doubt(primary)
                break
            for command in some:
                if command.tries[0].asking:
                    next(replies)
                reply = next(replies)
                if not isinstance(reply, Exception):
                    for one, result in zip(command.tries, command.split(reply), strict=True):
                        results[one.index] = result
                elif isinstance(reply, AskError):
                    target = self._servers.at(reply.host, reply.port)
                    asking = not isinstance(reply, MovedError)
                    again += [_Try(one.index, target, asking=asking) for one in command.tries]
                    self._servers.doubt()
                elif is_missing(reply):
                    missing += [_Try(one.index, primary, asking=one.asking) for one in command.tries]
                else:
                    self._log.warning("redis refused a call", function=command.words[1], error=str(reply))
                    # A demoted or cut-off primary: what was to be opened there would be stranded each time.
                    self._servers.doubt(primary if isinstance(reply, _UNFIT) else None)
        return again + (missing if missing and await self._load(primary) else [])

    def _commands(self, calls: Sequence[Call], tries: Sequence[_Try]) -> list[_Command]:
        """Put calls into commands: pools that are opened on a server which holds every key share one."""
        opens = [one for one in tries if calls[one.index].function == "pool_open" and self._servers.is_one]
        taken = {one.index for one in opens}
        groups = [opens[begin : begin + _POOLS_PER_COMMAND] for begin in range(0, len(opens), _POOLS_PER_COMMAND)]
        groups += [[one] for one in tries if one.index not in taken]
        return [_Command.of([calls[one.index] for one in group], group) for group in groups]

    async def _load(self, primary: Primary) -> bool:
        """Bring the library to a server that said that it lacks it; tell whether it is there."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await load(primary.client)
        except (RedisError, OSError, TimeoutError) as error:
            self._log.warning("redis does not take the functions", server=primary.name, error=_named(error))
            self._servers.doubt(primary)
            return False
        return True


def _take(noted: set[bytes], count_max: int) -> list[bytes]:
    taken = list(islice(noted, count_max))
    noted.difference_update(taken)
    return taken


@dataclass(frozen=True, slots=True)
class _Try:
    """One call on its way: to the key's primary, or where a server said."""

    index: int
    primary: Primary | None = None
    asking: bool = False


@dataclass(frozen=True, slots=True)
class _Command:
    """One FCALL, for one call or for several that open pools."""

    words: tuple[int | str, ...]
    tries: Sequence[_Try]

    @classmethod
    def of(cls, calls: Sequence[Call], tries: Sequence[_Try]) -> _Command:
        """Put calls of one function together."""
        keys = tuple(key for call in calls for key in call.keys)
        arguments = tuple(argument for call in calls for argument in call.arguments)
        return cls(("FCALL", calls[0].function, len(keys), *keys, *arguments), tries)

    def split(self, reply: Sequence[object]) -> list[list[str]]:
        """Give each call its own reply."""
        texts = [str(element) for element in reply]
        if len(self.tries) == 1:
            return [texts]
        if len(texts) != len(self.tries) + 1:
            return [texts for _ in self.tries]
        return [["OK"] if text == "OK" else ["ERR", text] for text in texts[1:]]


async def _send(primary: Primary, commands: Sequence[_Command]) -> list[Any]:
    """Send commands in one pipeline; gives their replies in order, with one more before each that is ASKING."""
    pipeline = primary.client.pipeline(transaction=False)
    for command in commands:
        if command.tries[0].asking:
            pipeline.execute_command("ASKING")
        pipeline.execute_command(*command.words)
    replies: list[Any] = await pipeline.execute(raise_on_error=False)
    return replies


def _named(error: BaseException) -> str:
    return str(error) or type(error).__name__
