"""Tell Redis about pools and token buckets: what is open, how much is in it, what is closed."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tollkeeper_ledger.store.functions import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from redis.asyncio import Redis
    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.store.limits import Identity

_TAG_BYTES = 12
_ANSWER_SECONDS_MAX = 0.25


@dataclass(frozen=True, slots=True)
class PoolKeys:
    """Names in Redis of one window's pool, all with one hash tag. The channel is the identity's."""

    pool: str
    holders: str
    channel: str


@dataclass(frozen=True, slots=True)
class BucketKeys:
    """Names in Redis of one limit's token buckets; the key hash in hex follows the prefix."""

    marker: str
    prefix: str
    channel: str


def _tag(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(4, "little"))
        digest.update(part)
    return digest.digest()[:_TAG_BYTES].hex()


def pool_keys(identity: Identity, window_id: bytes) -> PoolKeys:
    """Name a window's pool. Pure; holds nothing personal, key values enter as their hash only."""
    tag = _tag(identity[0].bytes, identity[1].encode(), identity[2])
    window = window_id.hex()
    return PoolKeys(pool=f"tk:{{{tag}}}:p:{window}", holders=f"tk:{{{tag}}}:h:{window}", channel=f"tk:{{{tag}}}:n")


def bucket_keys(tenant_id: UUID, limit_name: str) -> BucketKeys:
    """Name a token bucket limit's shard. Pure."""
    tag = _tag(tenant_id.bytes, limit_name.encode())
    return BucketKeys(marker=f"tk:{{{tag}}}:m", prefix=f"tk:{{{tag}}}:b:", channel=f"tk:{{{tag}}}:bn")


@dataclass(frozen=True, slots=True)
class Call:
    """One FCALL."""

    function: str
    keys: tuple[str, ...]
    arguments: tuple[int | str, ...]
    window_id: bytes = b""
    """Of pool_extend: the window to be told again where the outcome is unknown."""


def open_pool_call(keys: PoolKeys, *, generation: int, expire_at_unix_s: int) -> Call:
    """Give the call that opens a generation; to be sent once, never again."""
    return Call("pool_open", (keys.pool, keys.holders), (generation, expire_at_unix_s))


def extend_pool_call(
    keys: PoolKeys, *, window_id: bytes, generation: int, allotted_cum: int, amount_version: int, final: bool
) -> Call:
    """Give the call that says how much went into a generation; cumulative, so a repeat is harmless."""
    arguments = (generation, allotted_cum, amount_version, int(final), keys.channel)
    return Call("pool_extend", (keys.pool,), arguments, window_id)


def close_pool_call(keys: PoolKeys, *, generation: int) -> Call:
    """Give the call that ends a generation; its answer is what was never granted."""
    return Call("pool_close", (keys.pool,), (generation, keys.channel))


def open_bucket_call(keys: BucketKeys, *, generation: int, opened_at_us: int, speed_milli: int, first: bool) -> Call:
    """Give the call that opens a shard's generation; to be sent once, never again."""
    return Call("bucket_open", (keys.marker,), (generation, opened_at_us, speed_milli, int(first), keys.channel))


def bucket_speed_call(keys: BucketKeys, *, generation: int, speed_milli: int, now_us: int) -> Call:
    """Give the call that tells a shard how ledger time runs; a repeat is harmless."""
    return Call("bucket_speed", (keys.marker,), (generation, speed_milli, now_us))


class PoolFunctions:
    """Call the function library, many calls in one pipeline, nothing retried by itself.

    Windows whose pool_extend has an unknown outcome are kept in `untold`, to be told again where they stand by then: a
    pool that goes on calling itself final would prove denials that are none.
    """

    def __init__(self, redis: Redis, log: FilteringBoundLogger) -> None:
        self._redis = redis
        self._log = log
        self._loaded = False
        self._untold: set[bytes] = set()

    def take_untold(self, count_max: int) -> list[bytes]:
        """Give, and forget, windows whose pools may not know where they stand."""
        taken = list(islice(self._untold, count_max))
        self._untold.difference_update(taken)
        return taken

    def tell_again(self, window_ids: Iterable[bytes]) -> None:
        """Note windows whose pools may not know where they stand."""
        self._untold.update(window_ids)

    async def ensure_loaded(self) -> None:
        """Load the library where the server lacks it, also after it was emptied. Raises RedisError when it can't."""
        await load(self._redis)
        self._loaded = True

    async def call(self, calls: Sequence[Call]) -> list[list[str] | None]:
        """Send calls in one pipeline; gives each one's reply, or None where the outcome is unknown or an error.

        Loads the library first where the server lacks it: calls that then fail on a lost library stay failed.
        """
        if not calls:
            return []
        try:
            async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                return await self._call(calls)
        except (RedisError, OSError, TimeoutError) as error:
            self._loaded = False
            self._log.warning("redis did not answer", calls=len(calls), error=str(error) or type(error).__name__)
            self._untold.update(call.window_id for call in calls if call.window_id)
            return [None] * len(calls)

    async def _call(self, calls: Sequence[Call]) -> list[list[str] | None]:
        if not self._loaded:
            await load(self._redis)
            self._loaded = True
        pipeline = self._redis.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command("FCALL", call.function, len(call.keys), *call.keys, *call.arguments)
        replies = await pipeline.execute(raise_on_error=False)
        results: list[list[str] | None] = []
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(reply, Exception):
                self._loaded = False
                self._log.warning("redis refused a call", function=call.function, error=str(reply))
                results.append(None)
                if call.window_id:
                    self._untold.add(call.window_id)
            else:
                results.append([str(element) for element in reply])
        return results
